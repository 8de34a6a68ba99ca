// Starts the kernel of maps.cu, which only compute capability 9.0 has.
#pragma once

#include <cuda_runtime.h>

#include "job.h"

namespace dtag::cuda {

// Null, or why the device cannot run it.
const char* why_no_maps(int device);

// Load it, as prepare() does.
cudaError_t prepare_maps(int device);

// Build job.maps. A kernel launched next may begin before this ends (wait_for_kernel_before).
cudaError_t launch_maps(const Job& job, int device, cudaStream_t stream);

}  // namespace dtag::cuda
