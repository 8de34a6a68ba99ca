// Starts the kernel of maps.cu, which only compute capability 9.0 has.
#pragma once

#include <cuda_runtime.h>

#include "job.h"

namespace dtag::cuda {

#if DTAG_HAS_WGMMA

// Null, or why the device cannot run it.
const char* why_no_maps(int device);

// Load it, as prepare() does.
cudaError_t prepare_maps(int device);

// Build job.maps. A kernel launched next may begin before this ends (wait_for_kernel_before).
cudaError_t launch_maps(const Job& job, int device, cudaStream_t stream);

#else

inline const char* why_no_maps(int) {
  return "precision tf32x3 needs an extension that was built for compute capability 9.0";
}
inline cudaError_t prepare_maps(int) { return cudaErrorNotSupported; }
inline cudaError_t launch_maps(const Job&, int, cudaStream_t) { return cudaErrorNotSupported; }

#endif

}  // namespace dtag::cuda
