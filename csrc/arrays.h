// Torch tensors and numpy arrays, read and made without the cost of a call from Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "dlpack.h"

namespace dtag {

// A plain array: float32, on the CPU, contiguous, of one to three dimensions.
struct ArrayView {
  const float* data;
  int dimensions;
  int64_t shape[3];
};

// A new array, uninitialised.
struct NewArray {
  pybind11::object object;
  float* data;
};

// What is used of torch, which the module meets only while it runs. All needs the GIL.
class Torch {
 public:
  static Torch& get();  // imports torch the first time

  bool is_tensor(PyObject* object) const {
    return PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(tensor_type_));
  }
  // Of exactly torch's own type.
  bool is_exactly_tensor(PyObject* object) const {
    return Py_TYPE(object) == reinterpret_cast<PyTypeObject*>(tensor_type_);
  }

  // False for a tensor that is not plain: one that holds its numbers in another way, or stands for
  // something else, as inside torch.func.vmap. No exception is left behind.
  bool read(PyObject* tensor, ArrayView* view) const;
  NewArray empty(int dimensions, const int64_t* shape) const;

  // Where the numbers of any tensor begin; 0 if it has none.
  uintptr_t address(PyObject* tensor) const;
  // How often it was written in place; -1 for a tensor of inference mode, which carries no count.
  int64_t version(PyObject* tensor) const;

  bool in_dispatch_mode() const;  // a TorchDispatchMode wants to see every operation
  int threads() const;            // torch.get_num_threads()

  // Whether to use DLPack's exchange API; torch has it from 2.10 on. For tests.
  bool use_exchange_api(bool use);

 private:
  Torch();
  bool read_by_attributes(PyObject* tensor, ArrayView* view) const;

  // Kept for ever: modules are not unloaded.
  PyObject *tensor_type_, *float32_, *empty_, *empty_keywords_, *get_num_threads_,
      *dispatch_stack_;
  PyObject *dtype_name_, *is_cpu_name_, *shape_name_;
  PyObject* version_;  // how the C attribute is read
  PyObject *is_contiguous_, *is_neg_, *data_ptr_;  // methods, to be called with a tensor
  const DLPackExchangeAPI* available_ = nullptr;
  const DLPackExchangeAPI* exchange_ = nullptr;
};

bool is_exactly_numpy(PyObject* object);
bool read_numpy(PyObject* array, ArrayView* view);
NewArray empty_numpy(int dimensions, const int64_t* shape);

}  // namespace dtag
