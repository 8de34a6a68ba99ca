// Whether the weights of a torch module are still those that were read.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace dtag {

// Changes whenever torch sees a parameter or buffer written in place, moved or replaced, or a
// submodule replaced, and with every step of any optimiser, as a fused one writes without telling
// the tensor. It keeps neither the module nor its tensors alive. All needs the GIL.
class WeightsVersion {
 public:
  explicit WeightsVersion(pybind11::handle module);  // as they are now

  bool is_current() const;
  void expire() { expired_ = true; }  // is_current() is false from now on

  static void count_optimizer_step() { ++steps; }
  static uint64_t optimizer_steps() { return steps; }

 private:
  // A parameter, buffer or submodule.
  struct Member {
    const PyObject* object;  // to be compared, no more: it may be gone
    // What keeps another from passing for it: of a module, a weak reference; of a tensor, one that
    // holds its memory, so that no other tensor's numbers can come to lie there.
    pybind11::object guard;
    bool is_tensor;
    uintptr_t address = 0;
    int64_t version = 0;

    bool is_still(const pybind11::object& value) const;
  };
  // What one of a module's dictionaries held, less any None. One that was empty does not count.
  struct Members {
    pybind11::object module;  // a weak reference
    PyObject* dictionary;     // its name: _parameters, _buffers or _modules
    std::vector<Member> values;
  };

  static uint64_t steps;

  void add(pybind11::handle module);

  std::vector<Members> members_;
  uint64_t steps_ = steps;
  bool expired_ = false;
};

}  // namespace dtag
