// The kernels for one number of action dimensions, walk.cu compiled for it.
#pragma once

#include "job.h"

namespace dtag::cuda {

struct Kernel {
  const void* function = nullptr;  // void(const Job)
  int blocks = 1;                  // that take a row
  int units = 0;                   // that a thread holds
  bool has_map = false;            // SharedLayout
};

struct KernelsOf {
  struct Kinds {
    Kernel row;      // a row a block, whose threads have all the registers they can use
    Kernel lean;     // a row a block of half as many threads with twice as many units
    Kernel cluster;  // a row a cluster; for compute capability 9.0 and above
    Kernel wide;     // a row a block of more threads than the others take
    Kernel queued;   // as lean, of rows whose maps were built before, from a queue; of float32 only
  };
  int actions;
  Kinds kinds[2];  // of weights in float32, and in bfloat16
};

template <int actions>
KernelsOf kernels_of();

}  // namespace dtag::cuda
