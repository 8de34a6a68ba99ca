#include "weights_version.h"

#include <stdexcept>
#include <utility>

#include "arrays.h"

namespace py = pybind11;

namespace dtag {
namespace {

// What the weak reference refers to, or null.
py::object referent(const py::object& weak) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* object = nullptr;
  if (PyWeakref_GetRef(weak.ptr(), &object) < 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
#else
  PyObject* const object = PyWeakref_GET_OBJECT(weak.ptr());
  return py::reinterpret_borrow<py::object>(object == Py_None ? nullptr : object);
#endif
}

// The module's dictionary of that name, or null.
py::object dictionary_of(py::handle module, PyObject* name) {
  const auto attributes =
      py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
  PyObject* const found =
      attributes ? PyDict_GetItemWithError(attributes.ptr(), name) : nullptr;
  if (found == nullptr) PyErr_Clear();
  return py::reinterpret_borrow<py::object>(
      found != nullptr && PyDict_Check(found) ? found : nullptr);
}

// Whether visit(value) is true for every value of the dictionary but None, as far as it comes.
template <typename Visit>
bool all_values(const py::object& dictionary, const Visit& visit) {
  Py_ssize_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(dictionary.ptr(), &position, &key, &value))
    if (value != Py_None && !visit(py::reinterpret_borrow<py::object>(value))) return false;
  return true;
}

}  // namespace

uint64_t WeightsVersion::steps = 0;

WeightsVersion::WeightsVersion(py::handle module) {
  for (const py::handle each : module.attr("modules")()) add(each);
}

void WeightsVersion::add(py::handle module) {
  static PyObject* const names[] = {PyUnicode_InternFromString("_parameters"),
                                    PyUnicode_InternFromString("_buffers"),
                                    PyUnicode_InternFromString("_modules")};
  const Torch& torch = Torch::get();
  for (PyObject* const name : names) {
    const py::object dictionary = dictionary_of(module, name);
    if (!dictionary) throw std::invalid_argument("module: expected a torch.nn.Module");
    Members members{py::weakref(module), name, {}};
    all_values(dictionary, [&](const py::object& value) {
      PyObject* const object = value.ptr();
      if (torch.is_tensor(object))
        members.values.push_back({object, value.attr("detach")(), true, torch.address(object),
                                  torch.version(object)});
      else
        members.values.push_back({object, py::weakref(value), false});
      return true;
    });
    if (!members.values.empty()) members_.push_back(std::move(members));
  }
}

bool WeightsVersion::Member::is_still(const py::object& value) const {
  if (value.ptr() != object) return false;
  if (!is_tensor) return static_cast<bool>(referent(guard));
  const Torch& torch = Torch::get();
  return torch.address(value.ptr()) == address &&
         (version == -1 || torch.version(value.ptr()) == version);
}

bool WeightsVersion::is_current() const {
  if (expired_ || steps_ != steps) return false;
  for (const Members& members : members_) {
    const py::object module = referent(members.module);
    const py::object dictionary = module ? dictionary_of(module, members.dictionary) : module;
    if (!dictionary) return false;
    auto known = members.values.begin();
    const bool same = all_values(dictionary, [&](const py::object& value) {
      return known != members.values.end() && (known++)->is_still(value);
    });
    if (!same || known != members.values.end()) return false;
  }
  return true;
}

}  // namespace dtag
