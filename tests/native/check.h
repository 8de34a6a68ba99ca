// What must hold of a kernel's result, whatever the numbers are.
#pragma once

#include <cstdint>
#include <string>

#include "problem.h"
#include "refine.h"

namespace dtag::test {

struct Coverage {
  int64_t flips = 0;
  int64_t dense_steps = 0;
  int64_t compared = 0;  // rows held against the scalar kernel
  int64_t shaken = 0;    // of these, those that were not the same to rounding at once
};

// Runs the kernel and returns what is wrong, or an empty string.
//   - Every output is written, and nothing beside them. The numbers are in range, the actions in
//     the box and the ball, and Q is not below that of the starting points.
//   - It is the same bit for bit whatever the scratch memory held, and for each row on its own.
//   - With `compare`, for numbers of ordinary size: it is that of refine_scalar up to rounding. A
//     row that amplifies rounding (a path along a kink, a tie between candidates) may differ by
//     what the scalar kernel's own result does when all numbers are off by one part in a million.
std::string wrong_with(const Problem& problem, const Critic& critic, const Kernel& kernel,
                       bool compare, Coverage& coverage);

}  // namespace dtag::test
