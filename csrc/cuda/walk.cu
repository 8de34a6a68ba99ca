// The kernel, for one number of action dimensions: DTAG_ACTIONS. One launch refines a batch; blocks
// stay and take row after row.
#include <cuda_runtime.h>

#include "block.h"
#include "device_team.cuh"
#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

template <int actions, int together, int blocks, typename Weight>
__global__ void __launch_bounds__(together == 1 ? most_threads : 512)
    walk_kernel(const __grid_constant__ Job job) {
#if !DTAG_CLUSTERS
  if constexpr (blocks > 1) return;
#endif
  extern __shared__ __align__(16) float shared[];
  DeviceBlock<actions, together, blocks, Weight> block(job, shared);
  refine_rows<actions, together, Weight>(block, job);
}

template <int actions, int together, int blocks, typename Weight>
Kernel kernel() {
  return {reinterpret_cast<const void*>(&walk_kernel<actions, together, blocks, Weight>),
          together, blocks, blocks == 1 ? units_per_thread(actions) : units_in_cluster};
}

template <int actions, typename Weight>
KernelsOf::Kinds kinds() {
  return {kernel<actions, 1, 1, Weight>(), kernel<actions, rows_together(actions), 1, Weight>(),
          kernel<actions, 1, blocks_of_cluster, Weight>()};
}

}  // namespace

template <>
KernelsOf kernels_of<DTAG_ACTIONS>() {
  return {DTAG_ACTIONS, {kinds<DTAG_ACTIONS, float>(), kinds<DTAG_ACTIONS, uint16_t>()}};
}

}  // namespace dtag::cuda
