// The kernels of one instruction set, and the choice among the sets: made once, at load, by what
// the processor has, or by the environment variable DTAG_ISA.
#pragma once

#include <string>
#include <vector>

#include "cost_model.h"
#include "refine.h"
#include "training.h"
#include "transformer.h"

namespace dtag {

// `dense` takes every critic. `walk` is for those of which why_no_walk() has nothing to say; its
// function is null in the set "scalar", the readable C++ of refine_scalar.cpp, and so are those of
// `transformer`.
struct KernelSet {
  const char* isa;
  Kernel walk;
  Kernel dense;
  CostRates rates;
  const TrainingKernels* training;  // null in the set "scalar": torch trains there
  TransformerKernel transformer;
};

// Compiled from simd/kernels.cpp, once for each.
extern const KernelSet kernels_avx512;
extern const KernelSet kernels_avx2;
extern const KernelSet kernels_baseline;  // SSE2
extern const KernelSet kernels_neon;

// The set in use.
const KernelSet& kernels();

// Of the sets in this build, those that this processor can run; the fastest first, "scalar" last.
std::vector<std::string> runnable_isas();

// From now on use this set. Throws std::invalid_argument for one that is not runnable here, with
// the names of those that are.
void select_isa(const std::string& name);

// Why the critic's linear regions cannot be walked, or null if they can.
const char* why_no_walk(const Critic& critic);

}  // namespace dtag
