#pragma once

#include <pybind11/pybind11.h>

namespace dtag {

// Adds the training kernels to the module dtag_fast._native. Addresses are of float32 memory that
// the caller keeps alive; they and the sizes are checked in dtag_fast/training.
void bind_training(pybind11::module_& module);

}  // namespace dtag
