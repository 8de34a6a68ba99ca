// The kernels for one number of action dimensions, walk.cu compiled for it.
#pragma once

#include "job.h"

namespace dtag::cuda {

struct Kernel {
  const void* function = nullptr;  // void(const Job)
  int together = 1;
};

// By precision, then by how many rows a block takes: one, or rows_together(actions).
struct KernelsOf {
  int actions;
  Kernel kernels[2][2];
};

template <int actions>
KernelsOf kernels_of();

}  // namespace dtag::cuda
