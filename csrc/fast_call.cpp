#include "fast_call.h"

#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arrays.h"

namespace py = pybind11;

namespace dtag {
namespace {

constexpr const char* capsule_name = "dtag_fast.FastCall";

// What the kernels write beside the actions, and no one asked for; memory that a thread keeps.
Result into(float* actions, int64_t rows) {
  thread_local std::vector<float> floats;
  thread_local std::vector<int64_t> indices;
  const size_t count = static_cast<size_t>(rows);
  if (floats.size() < 3 * count) floats.resize(3 * count);
  if (indices.size() < 4 * count) indices.resize(4 * count);
  float* const f = floats.data();
  int64_t* const i = indices.data();
  return {actions, f, f + count, i, i + count, f + 2 * count, i + 2 * count, i + 3 * count};
}

// The batch, if the arrays' shapes make one for this critic.
bool as_batch(const Critic& critic, const ArrayView& observations, const ArrayView& actions,
              Batch* batch) {
  const int last = actions.dimensions - 1;
  const bool single = observations.dimensions == 1;
  batch->rows = single ? 1 : observations.shape[0];
  batch->starts = last == 2 ? actions.shape[1] : 1;
  batch->observations = observations.data;
  batch->actions = actions.data;
  return observations.dimensions <= 2 && (last == 0) == single && batch->rows > 0 &&
         batch->starts > 0 &&
         (single || actions.shape[0] == batch->rows) &&
         observations.shape[observations.dimensions - 1] == critic.observation_dim &&
         actions.shape[last] == critic.action_dim;
}

struct WithoutGil {
  PyThreadState* const state = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(state); }
};

// A null object where the normal way has to be taken.
py::object run(const FastCall& self, PyObject* observations, PyObject* actions) {
  const Torch& torch = Torch::get();
  const bool tensors = torch.is_exactly_tensor(observations) && torch.is_exactly_tensor(actions);
  ArrayView given[2];
  Batch batch;
  if (tensors) {
    if (!torch.read(observations, &given[0]) || !torch.read(actions, &given[1])) return {};
  } else {
    if (!is_exactly_numpy(observations) || !is_exactly_numpy(actions) ||
        !read_numpy(observations, &given[0]) || !read_numpy(actions, &given[1]))
      return {};
  }
  if (!as_batch(self.critic, given[0], given[1], &batch) || batch.rows < self.rows.first ||
      batch.rows >= self.rows.second ||
      (tensors && torch.in_dispatch_mode()) || !self.version.is_current())
    return {};

  Execution execution{self.algorithm, self.threads};
  if (execution.threads == 0) execution.threads = batch.rows == 1 ? 1 : torch.threads();
  try {
    execution.algorithm = choose(self.critic, self.options, batch, execution.algorithm);
  } catch (const std::invalid_argument&) {
    return {};
  }
  const int64_t shape[] = {batch.rows, self.critic.action_dim};
  const int dimensions = given[0].dimensions;  // [B, A] or [A]
  NewArray result = tensors ? torch.empty(dimensions, shape + 2 - dimensions)
                            : empty_numpy(dimensions, shape + 2 - dimensions);
  {
    const WithoutGil others_run;
    refine(self.critic, self.options, batch, into(result.data, batch.rows), execution);
  }
  return std::move(result.object);
}

PyObject* call(PyObject* capsule, PyObject* const* arguments, Py_ssize_t count) noexcept {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "expected observations and actions");
    return nullptr;
  }
  try {
    const auto* const self =
        static_cast<const FastCall*>(PyCapsule_GetPointer(capsule, capsule_name));
    py::object result = run(*self, arguments[0], arguments[1]);
    if (!result) result = py::reinterpret_borrow<py::object>(Py_NotImplemented);
    return result.release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace

py::object make_fast_call(FastCall values) {
  static PyMethodDef definition{
      "refine", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)), METH_FASTCALL,
      "(observations, actions) -> refined actions, or NotImplemented"};
  auto kept = std::make_unique<FastCall>(std::move(values));
  const auto free = [](PyObject* capsule) {
    delete static_cast<FastCall*>(PyCapsule_GetPointer(capsule, capsule_name));
  };
  const auto capsule =
      py::reinterpret_steal<py::object>(PyCapsule_New(kept.get(), capsule_name, free));
  if (!capsule) throw py::error_already_set();
  kept.release();
  auto function = py::reinterpret_steal<py::object>(
      PyCFunction_NewEx(&definition, capsule.ptr(), nullptr));
  if (!function) throw py::error_already_set();
  return function;
}

}  // namespace dtag
