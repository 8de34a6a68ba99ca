// The kernel, for one number of action dimensions: DTAG_ACTIONS. One launch refines a batch; blocks
// stay and take row after row.
#include <cuda_runtime.h>

#include "block.h"
#include "device_team.cuh"
#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

template <int actions, int together, typename Weight>
__global__ void __launch_bounds__(together == 1 ? most_threads : 512)
    walk_kernel(const __grid_constant__ Job job) {
  extern __shared__ __align__(16) float shared[];
  DeviceBlock<actions, together, Weight> block(job, shared);
  refine_rows<actions, together, Weight>(block, job);
}

template <int actions, int together, typename Weight>
Kernel kernel() {
  return {reinterpret_cast<const void*>(&walk_kernel<actions, together, Weight>), together};
}

}  // namespace

template <>
KernelsOf kernels_of<DTAG_ACTIONS>() {
  constexpr int actions = DTAG_ACTIONS, together = rows_together(actions);
  return {actions,
          {{kernel<actions, 1, float>(), kernel<actions, together, float>()},
           {kernel<actions, 1, uint16_t>(), kernel<actions, together, uint16_t>()}}};
}

}  // namespace dtag::cuda
