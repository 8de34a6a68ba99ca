// The kernel, for one number of action dimensions: DTAG_ACTIONS. One launch refines a batch; blocks
// stay and take row after row.
#include <cuda_runtime.h>

#include "block.h"
#include "device_team.cuh"
#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

// crowded: at least so many blocks of the most threads are to fit on a multiprocessor; 0: as the compiler
// likes. Of a cluster 1: left to itself it spills. A crowded block's threads hold more units, and have
// what can be had again from memory. queued: for job.queue, which devices with clusters have.
template <int actions, int units, int blocks, int threads, int crowded, bool queued, typename Precision>
__global__ void __launch_bounds__(threads, blocks > 1 ? 1 : crowded)
    walk_kernel(const __grid_constant__ Job job) {
  if constexpr ((blocks == 1 && !queued) || DTAG_CLUSTERS) {
    extern __shared__ __align__(16) float shared[];
    constexpr bool roomy = threads <= most_threads && crowded == 0;
    DeviceBlock<actions, units, blocks, roomy, queued, (crowded > 2), Precision> block(job, shared);
    refine_rows<actions, blocks, Precision>(block, job);
  }
}

template <int actions, int units, int blocks, int threads, int crowded, typename Precision, bool queued = false>
Kernel kernel() {
  return {reinterpret_cast<const void*>(
              &walk_kernel<actions, units, blocks, threads, crowded, queued, Precision>),
          blocks, units, blocks > 1};
}

template <int actions, typename Precision>
KernelsOf::Kinds kinds() {
  constexpr int units = units_per_thread(actions), lean = units_of_lean(actions);
  constexpr int lean_threads = most_threads * units / lean;
  KernelsOf::Kinds made{kernel<actions, units, 1, most_threads, 0, Precision>(),
                        kernel<actions, lean, 1, lean_threads, 2, Precision>(),
                        kernel<actions, units, blocks_of_cluster(actions), most_threads, 0, Precision>(),
                        kernel<actions, units, 1, most_threads_wide, 0, Precision>(),
                        {}};
  if constexpr (std::is_same_v<Precision, Fp32>)
    made.queued =
        kernel<actions, lean, 1, lean_threads, crowded_with_maps(actions) ? 3 : 2, Precision, true>();
  return made;
}

}  // namespace

template <>
KernelsOf kernels_of<DTAG_ACTIONS>() {
  return {DTAG_ACTIONS, {kinds<DTAG_ACTIONS, Fp32>(), kinds<DTAG_ACTIONS, Bf16>()}};
}

}  // namespace dtag::cuda
