// The kernels of dense tiles, for compute capability 9.0 alone: compiled for 90a (CMakeLists.txt).
#include <cuda_runtime.h>

#include "dense_kernel.h"
#include "device_warpgroup.cuh"

namespace dtag::cuda {
namespace {

template <int actions, int heads>
__global__ void __launch_bounds__(TileLayout::threads, 1) dense_kernel(const __grid_constant__ Job job) {
#if DTAG_WGMMA
  asm volatile("griddepcontrol.launch_dependents;");  // they wait for this kernel's end
  DeviceCluster<actions, heads> cluster(job);
  refine_tiles(cluster, job);
#endif
}

template <int actions>
const void* of_heads(int heads) {
  return heads == 1 ? reinterpret_cast<const void*>(&dense_kernel<actions, 1>)
                    : reinterpret_cast<const void*>(&dense_kernel<actions, 2>);
}

}  // namespace

const void* dense_kernel_for(const PackedCritic& critic) {
  switch (tile_actions(critic.layout.actions)) {
    case 4: return of_heads<4>(critic.heads);
    case 6: return of_heads<6>(critic.heads);
    case 8: return of_heads<8>(critic.heads);
  }
  return nullptr;
}

}  // namespace dtag::cuda
