// The kernel, for one number of action dimensions: DTAG_ACTIONS. One launch refines a batch; blocks
// stay and take row after row.
#include <cuda_runtime.h>

#include "block.h"
#include "device_team.cuh"
#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

// Left to itself the compiler spills registers of some kernels so that more blocks fit.
constexpr int least_blocks(int blocks) { return blocks > 1 ? 1 : 0; }

template <int actions, int together, int blocks, int threads, typename Precision>
__global__ void __launch_bounds__(threads, least_blocks(blocks))
    walk_kernel(const __grid_constant__ Job job) {
  if constexpr (blocks == 1 || DTAG_CLUSTERS) {
    extern __shared__ __align__(16) float shared[];
    constexpr bool roomy = is_roomy(together, threads, Precision::tiles);
    DeviceBlock<actions, together, blocks, roomy, Precision> block(job, shared);
    refine_rows<actions, together, blocks, Precision>(block, job);
  }
}

template <int actions, int together, int blocks, int threads, typename Precision>
Kernel kernel() {
  return {reinterpret_cast<const void*>(&walk_kernel<actions, together, blocks, threads, Precision>),
          together, blocks, Precision::tiles || blocks > 1};
}

template <int actions, typename Precision>
Kernel cluster_kernel() {
  if constexpr (Precision::tiles)
    return {};
  else
    return kernel<actions, 1, blocks_of_cluster(actions), most_threads, Precision>();
}

// Tiles build a row at a time.
template <int actions, typename Precision>
KernelsOf::Kinds kinds() {
  constexpr int most = Precision::tiles ? most_threads_of_tiles : most_threads;
  constexpr int wide = Precision::tiles ? most : most_threads_wide;
  constexpr int together = Precision::tiles ? 1 : rows_together(actions);
  return {kernel<actions, 1, 1, most, Precision>(),
          kernel<actions, together, 1, together == 1 ? most : most_threads_together, Precision>(),
          cluster_kernel<actions, Precision>(),
          kernel<actions, 1, 1, wide, Precision>()};
}

}  // namespace

template <>
KernelsOf kernels_of<DTAG_ACTIONS>() {
  return {DTAG_ACTIONS, {kinds<DTAG_ACTIONS, Fp32>(), kinds<DTAG_ACTIONS, Bf16>(), kinds<DTAG_ACTIONS, Tf32x3>()}};
}

}  // namespace dtag::cuda
