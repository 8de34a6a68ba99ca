// The part of dtag_fast._native that acts.
#pragma once

#include <pybind11/pybind11.h>

namespace dtag {

void bind_acting(pybind11::module_& module);

}  // namespace dtag
