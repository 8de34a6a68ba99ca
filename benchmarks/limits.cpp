// What this machine can do at most: the multiply-adds and the reads that every kernel is made of,
// and what a call from Python costs before it has done anything. Compiled for this processor when
// a benchmark starts (limits.py); no part of the package.
#include <Python.h>

#include <cstddef>

#include "../csrc/simd/product.h"

namespace dtag {
inline namespace DTAG_TARGET {
namespace {

volatile float one = 1.0f, tiny = 1e-30f;  // not known to the compiler

// Chains of multiply-adds that hide each other's latency, as many as fit into the registers.
// Returns the number of multiply-adds.
long long multiply_adds(long long rounds) {
  constexpr int chains = Vec::registers == 32 ? 24 : 12;
  const Vec factor = broadcast(one), term = broadcast(tiny);
  Vec sum[chains];
  for (Vec& chain : sum) chain = factor;
  for (long long round = 0; round < rounds; ++round) {
    DTAG_UNROLL
    for (int i = 0; i < chains; ++i) sum[i] = fma(sum[i], factor, term);
  }
  for (int i = 1; i < chains; ++i) sum[0] = sum[0] + sum[i];
  one = dtag::sum(sum[0]) > 0.0f ? 1.0f : 2.0f;
  return rounds * chains * Vec::lanes;
}

// Loads all of an array, into sums that hide each other's latency.
void read(const float* data, size_t count) {
  constexpr int chains = 8;
  constexpr size_t stride = chains * Vec::lanes;
  Vec total[chains];
  for (Vec& chain : total) chain = zero();
  for (size_t i = 0; i + stride <= count; i += stride) {
    DTAG_UNROLL
    for (int c = 0; c < chains; ++c) total[c] = total[c] + load(data + i + c * Vec::lanes);
  }
  for (int i = 1; i < chains; ++i) total[0] = total[0] + total[i];
  tiny = dtag::sum(total[0]) == 1.0f ? 1e-29f : 1e-30f;
}

PyObject* multiply_adds_method(PyObject*, PyObject* rounds) {
  const long long count = PyLong_AsLongLong(rounds);
  if (count == -1 && PyErr_Occurred()) return nullptr;
  long long done;
  Py_BEGIN_ALLOW_THREADS;
  done = multiply_adds(count);
  Py_END_ALLOW_THREADS;
  return PyLong_FromLongLong(done);
}

PyObject* read_method(PyObject*, PyObject* arguments) {
  PyObject* array;
  int times;
  if (!PyArg_ParseTuple(arguments, "Oi", &array, &times)) return nullptr;
  Py_buffer buffer;
  if (PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE) != 0) return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  for (int i = 0; i < times; ++i)
    read(static_cast<const float*>(buffer.buf), buffer.len / sizeof(float));
  Py_END_ALLOW_THREADS;
  PyBuffer_Release(&buffer);
  Py_RETURN_NONE;
}

PyObject* empty_method(PyObject*, PyObject*) { Py_RETURN_NONE; }

PyObject* release_method(PyObject*, PyObject*) {
  Py_BEGIN_ALLOW_THREADS;
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"multiply_adds", multiply_adds_method, METH_O, "Do so many rounds; how many that were."},
    {"read", read_method, METH_VARARGS, "Read an array from end to end, so many times."},
    {"empty", empty_method, METH_NOARGS, "Nothing."},
    {"release", release_method, METH_NOARGS, "Give the interpreter's lock up and take it back."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_limits", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace DTAG_TARGET
}  // namespace dtag

PyMODINIT_FUNC PyInit__limits() { return PyModule_Create(&dtag::module); }
