// The kernels of dense tiles, for compute capability 9.0 alone: compiled for 90a (CMakeLists.txt).
#include <cuda_runtime.h>

#include "dense_kernel.h"
#include "device_warpgroup.cuh"

namespace dtag::cuda {
namespace {

template <int heads>
__global__ void __launch_bounds__(TileLayout::threads, 1) dense_kernel(const __grid_constant__ Job job) {
#if DTAG_WGMMA
  asm volatile("griddepcontrol.launch_dependents;");  // they wait for this kernel's end
  DeviceCluster<heads> cluster(job);
  refine_tiles(cluster, job);
#endif
}

}  // namespace

const void* dense_kernel_for(const PackedCritic& critic) {
  return critic.heads == 1 ? reinterpret_cast<const void*>(&dense_kernel<1>)
                           : reinterpret_cast<const void*>(&dense_kernel<2>);
}

}  // namespace dtag::cuda
