// The hot call: refinement of plain arrays in one go, from Python objects to a Python object.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "execution.h"
#include "weights_version.h"

namespace dtag {

struct FastCall {
  const Critic& critic;
  const Options& options;
  Algorithm algorithm;
  int threads;  // the most to use; 0: as many as torch
  std::pair<int64_t, int64_t> rows;  // the least, and the first that is too many
  const WeightsVersion& version;
  pybind11::object owners;  // of what the references refer to
};

// A Python function of (observations [B, S] or [S], actions [B, A], [A] or [B, N, A]), float32 on
// the CPU, both torch tensors or both numpy arrays. It returns the refined actions, or
// NotImplemented for whatever is not plain or not right, for its caller to see to: another type,
// dtype, device, memory order or shape, no rows or too few or many, weights of which `version` is not
// current, or a mode that wants to see torch's operations. The sizes of `critic` and `options` must agree.
pybind11::object make_fast_call(FastCall call);

}  // namespace dtag
