#include "arrays.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace dtag {
namespace {

constexpr int most_dimensions = 3;
constexpr DLDevice cpu{1, 0};
constexpr DLDataType float32{2, 32, 1};

bool is_float32_on_cpu(const DLTensor& tensor) {
  return tensor.device.device_type == cpu.device_type && tensor.dtype.code == float32.code &&
         tensor.dtype.bits == float32.bits && tensor.dtype.lanes == float32.lanes;
}

// Strides of dimensions of size 1 do not matter.
bool is_contiguous(const DLTensor& tensor) {
  int64_t expected = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

// A tensor's numbers and their description in one piece of memory, which the tensor frees.
struct Block {
  DLManagedTensorVersioned managed;
  int64_t shape[most_dimensions], strides[most_dimensions];
  alignas(std::max_align_t) float data[1];
};

DLManagedTensorVersioned* new_block(int dimensions, const int64_t* shape) {
  int64_t count = 1;
  for (int d = 0; d < dimensions; ++d) count *= shape[d];
  auto* const block = new (::operator new(sizeof(Block) + count * sizeof(float))) Block;
  DLManagedTensorVersioned& managed = block->managed;
  managed.version = {1, 0};
  managed.manager_ctx = block;
  managed.deleter = [](DLManagedTensorVersioned* self) { ::operator delete(self->manager_ctx); };
  managed.flags = 0;
  managed.dl_tensor = {block->data, cpu, dimensions, float32, block->shape, block->strides, 0};
  int64_t stride = 1;
  for (int d = dimensions - 1; d >= 0; --d) {
    block->shape[d] = shape[d];
    block->strides[d] = stride;
    stride *= shape[d];
  }
  return &managed;
}

// A method without further arguments; null with an exception.
py::object call(PyObject* method, PyObject* self) {
  if (Py_TYPE(method) == &PyMethodDescr_Type) {  // spare what vectorcall checks
    const PyMethodDef* const c = reinterpret_cast<PyMethodDescrObject*>(method)->d_method;
    if (c->ml_flags == METH_NOARGS)
      return py::reinterpret_steal<py::object>(c->ml_meth(self, nullptr));
  }
  return py::reinterpret_steal<py::object>(PyObject_Vectorcall(method, &self, 1, nullptr));
}

// The number, or `otherwise` and no exception where it is none.
int64_t number(const py::object& object, int64_t otherwise) {
  const Py_ssize_t value = object ? PyLong_AsSsize_t(object.ptr()) : -1;
  if (value != -1 || PyErr_Occurred() == nullptr) return value;
  PyErr_Clear();
  return otherwise;
}

// Whether the object is True; anything else, a null with an exception included, is not.
bool is_true(const py::object& object) {
  if (!object) PyErr_Clear();
  return object.ptr() == Py_True;
}

}  // namespace

Torch& Torch::get() {
  static Torch* torch = new Torch;
  return *torch;
}

Torch::Torch() {
  const py::module_ torch = py::module_::import("torch");
  const py::object tensor = torch.attr("Tensor");
  const auto keep = [](py::object object) { return object.release().ptr(); };
  const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
  tensor_type_ = keep(tensor);
  float32_ = keep(torch.attr("float32"));
  empty_ = keep(torch.attr("empty"));
  py::dict keywords;
  keywords["dtype"] = torch.attr("float32");
  keywords["device"] = torch.attr("device")("cpu");
  empty_keywords_ = keep(keywords);
  get_num_threads_ = keep(torch.attr("get_num_threads"));
  dispatch_stack_ = keep(torch.attr("_C").attr("_len_torch_dispatch_stack"));
  dtype_name_ = name("dtype");
  is_cpu_name_ = name("is_cpu");
  shape_name_ = name("shape");
  version_ = keep(torch.attr("_C").attr("TensorBase").attr("_version"));
  if (Py_TYPE(version_) != &PyGetSetDescr_Type)
    throw std::runtime_error("torch.Tensor._version: expected a C attribute");
  is_contiguous_ = keep(tensor.attr("is_contiguous"));
  is_neg_ = keep(tensor.attr("is_neg"));
  data_ptr_ = keep(tensor.attr("data_ptr"));

  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return;
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const void* const pointer = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (pointer == nullptr) throw py::error_already_set();
  const auto* const api = static_cast<const DLPackExchangeAPI*>(pointer);
  if (api->header.version.major == 1 && api->dltensor_from_py_object_no_sync != nullptr)
    exchange_ = available_ = api;
}

bool Torch::use_exchange_api(bool use) {
  exchange_ = use ? available_ : nullptr;
  return exchange_ != nullptr;
}

bool Torch::read(PyObject* tensor, ArrayView* view) const {
  if (exchange_ == nullptr) return read_by_attributes(tensor, view);
  DLTensor given;
  if (exchange_->dltensor_from_py_object_no_sync(tensor, &given) != 0) {
    PyErr_Clear();
    return false;
  }
  if (!is_float32_on_cpu(given) || given.data == nullptr || given.ndim < 1 ||
      given.ndim > most_dimensions || !is_contiguous(given))
    return false;
  view->data = reinterpret_cast<const float*>(static_cast<const char*>(given.data) +
                                              given.byte_offset);
  view->dimensions = given.ndim;
  std::copy_n(given.shape, given.ndim, view->shape);
  // The memory of a tensor with this bit holds the numbers with their signs changed.
  return call(is_neg_, tensor).ptr() == Py_False;
}

bool Torch::read_by_attributes(PyObject* tensor, ArrayView* view) const {
  const auto attribute = [&](PyObject* name) {
    return py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, name));
  };
  const py::object shape = attribute(shape_name_);
  if (!shape || !PyTuple_Check(shape.ptr())) {
    PyErr_Clear();
    return false;
  }
  const Py_ssize_t dimensions = PyTuple_GET_SIZE(shape.ptr());
  if (dimensions < 1 || dimensions > most_dimensions) return false;
  view->dimensions = static_cast<int>(dimensions);
  for (int d = 0; d < view->dimensions; ++d) {
    view->shape[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d));
    if (view->shape[d] == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
  }
  const py::object dtype = attribute(dtype_name_);
  if (dtype.ptr() != float32_ || !is_true(attribute(is_cpu_name_)) ||
      !is_true(call(is_contiguous_, tensor)) || is_true(call(is_neg_, tensor))) {
    PyErr_Clear();
    return false;
  }
  view->data = reinterpret_cast<const float*>(address(tensor));
  return view->data != nullptr;
}

NewArray Torch::empty(int dimensions, const int64_t* shape) const {
  if (exchange_ != nullptr) {
    DLManagedTensorVersioned* const block = new_block(dimensions, shape);
    auto* const data = static_cast<float*>(block->dl_tensor.data);
    void* tensor = nullptr;
    if (exchange_->managed_tensor_to_py_object_no_sync(block, &tensor) != 0)
      throw py::error_already_set();
    return {py::reinterpret_steal<py::object>(static_cast<PyObject*>(tensor)), data};
  }
  py::tuple sizes(dimensions);
  for (int d = 0; d < dimensions; ++d) sizes[d] = shape[d];
  py::object tensor = py::reinterpret_steal<py::object>(
      PyObject_Call(empty_, py::make_tuple(sizes).ptr(), empty_keywords_));
  if (!tensor) throw py::error_already_set();
  auto* const data = reinterpret_cast<float*>(address(tensor.ptr()));
  return {std::move(tensor), data};
}

uintptr_t Torch::address(PyObject* tensor) const {
  return static_cast<uintptr_t>(number(call(data_ptr_, tensor), 0));
}

int64_t Torch::version(PyObject* tensor) const {
  const PyGetSetDef* const c = reinterpret_cast<PyGetSetDescrObject*>(version_)->d_getset;
  return number(py::reinterpret_steal<py::object>(c->get(tensor, c->closure)), -1);
}

bool Torch::in_dispatch_mode() const {
  const py::object depth =
      py::reinterpret_steal<py::object>(PyObject_CallNoArgs(dispatch_stack_));
  if (!depth) throw py::error_already_set();
  return PyLong_AsLong(depth.ptr()) != 0;
}

int Torch::threads() const {
  const py::object count =
      py::reinterpret_steal<py::object>(PyObject_CallNoArgs(get_num_threads_));
  if (!count) throw py::error_already_set();
  return static_cast<int>(PyLong_AsLong(count.ptr()));
}

bool is_exactly_numpy(PyObject* object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) ==
         reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
}

bool read_numpy(PyObject* object, ArrayView* view) {
  static const PyObject* const descriptor = py::dtype::of<float>().release().ptr();
  constexpr int wanted =
      py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const auto* const array = py::detail::array_proxy(object);
  if (array->descr != descriptor || (array->flags & wanted) != wanted || array->nd < 1 ||
      array->nd > most_dimensions)
    return false;
  view->data = reinterpret_cast<const float*>(array->data);
  view->dimensions = array->nd;
  std::copy_n(array->dimensions, array->nd, view->shape);
  return true;
}

NewArray empty_numpy(int dimensions, const int64_t* shape) {
  py::array_t<float> array(std::vector<py::ssize_t>(shape, shape + dimensions));
  float* const data = array.mutable_data();
  return {std::move(array), data};
}

}  // namespace dtag
