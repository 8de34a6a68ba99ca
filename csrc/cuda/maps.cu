// The kernel of maps.h. It needs wgmma, which compute capability 9.0 has and no other.
#include <cuda_runtime.h>

#include <algorithm>

#include "maps_block.h"
#include "maps_kernel.h"

namespace dtag::cuda {
namespace {

template <typename Lane>
struct DeviceMapWarp {
  Lane& lane;
  int index;  // of the group's

  template <typename F>
  __device__ __forceinline__ void each(F f) const {
    f(lane, static_cast<int>(threadIdx.x % warp_size));
  }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  template <typename F>
  __device__ __forceinline__ float largest(F f) const {  // of numbers that are not negative
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(f(lane))));
  }
};

template <int columns, int units>
class DeviceGroup {
 public:
  explicit __device__ DeviceGroup(unsigned char* shared)
      : shared_(shared), bytes_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))) {}

  __device__ unsigned char* shared() const { return shared_; }
  __device__ int index() const { return threadIdx.x / (warp_size * warps_of_group); }

  template <typename F>
  __device__ __forceinline__ void warps(F f) {
    const auto index = static_cast<int>(threadIdx.x / warp_size % warps_of_group);
    DeviceMapWarp<MapLane<columns, units>> warp{lane_, index};
    f(warp);
  }

  template <typename A>
  __device__ __forceinline__ void multiply(A a_of, int byte) {
    constexpr int eight_columns = 8 * 128;
    const uint64_t tile = wgmma_tile(bytes_ + static_cast<uint32_t>(byte), eight_columns);
    wgmma<columns>(lane_.d, a_of(lane_), tile, true);
  }
  __device__ __forceinline__ void fence() const { wgmma_fence(); }
  __device__ __forceinline__ void commit() const { wgmma_commit(); }
  template <int pending>
  __device__ __forceinline__ void wait() const {
    wgmma_wait<pending>();
  }
  __device__ __forceinline__ void take_turn() {
    if (!takes_turns) return;
    if (took_turn_ || index() > 0) asm volatile("bar.sync %0, 256;" ::"r"(1 + index()) : "memory");
    took_turn_ = true;
  }
  __device__ __forceinline__ void pass_turn(bool last) const {
    if (!takes_turns) return;
    const int groups = blockDim.x / (warp_size * warps_of_group);
    const int next = index() + 1 < groups ? index() + 1 : 0;
    if (next > 0 || !last) asm volatile("bar.arrive %0, 256;" ::"r"(1 + next) : "memory");
  }

 private:
  unsigned char* shared_;
  uint32_t bytes_;  // where that is
  // Of wide layers there are no registers for it.
  static constexpr bool takes_turns = units * warp_size <= 256;
  bool took_turn_ = false;
  MapLane<columns, units> lane_;
};

template <int columns, int units>
class DeviceMapBlock {
 public:
  __device__ DeviceMapBlock(const Job& job, const MapsLayout& at, unsigned char* shared)
      : bytes_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
        barriers_(bytes_ + static_cast<uint32_t>(at.barriers)),
        builder_(DeviceGroup<columns, units>(shared), job, at, kind()) {}

  __device__ int kind() const { return blockIdx.x; }
  __device__ int index() const { return blockIdx.y; }
  __device__ int count() const { return gridDim.y; }
  __device__ int groups_of() const { return blockDim.x / (warp_size * warps_of_group); }

  // One thread sends, and a barrier for each batch counts bytes.
  __device__ __forceinline__ void expect(int first, int second) const {
    if (threadIdx.x == 0) {
      for (int batch = 0; batch < 2; ++batch)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier_of(batch)) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      for (int batch = 0; batch < 2; ++batch)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_of(batch)),
                     "r"(batch == 0 ? first : second)
                     : "memory");
    }
    __syncthreads();
  }
  __device__ __forceinline__ void copy(int batch, int byte, const void* from, int bytes) const {
    if (threadIdx.x == 0)
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              bytes_ + static_cast<uint32_t>(byte)),
          "l"(from), "r"(bytes), "r"(barrier_of(batch))
          : "memory");
  }
  __device__ __forceinline__ void wait(int batch) const {
    asm volatile(
        "{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra again; }" ::"r"(
            barrier_of(batch))
        : "memory");
  }
  template <typename F>
  __device__ __forceinline__ void groups(F f) {
    f(builder_, static_cast<int>(threadIdx.x) / (warp_size * warps_of_group));
  }

 private:
  __device__ uint32_t barrier_of(int batch) const { return barriers_ + 8u * static_cast<uint32_t>(batch); }

  uint32_t bytes_, barriers_;  // where the shared memory is, and its barriers
  MapBuilder<columns, units, DeviceGroup<columns, units>> builder_;
};

template <int columns, int units>
__global__ void __launch_bounds__(most_groups* warps_of_group* warp_size, 1)
    maps_kernel(const __grid_constant__ Job job, const __grid_constant__ MapsLayout at) {
#if DTAG_WGMMA
  extern __shared__ __align__(1024) unsigned char shared[];
  asm volatile("griddepcontrol.launch_dependents;");  // they wait for this kernel's end
  DeviceMapBlock<columns, units> block(job, at, shared);
  build_maps<columns>(block, job, at);
#endif
}

using MapsKernel = void (*)(Job, MapsLayout);

MapsKernel kernel_for(int width) {
  if (columns_of_maps(width) == 128) return maps_kernel<128, 8>;
  return width <= 256 ? maps_kernel<64, 8> : maps_kernel<64, most_map_width / warp_size>;
}

}  // namespace

const char* why_no_maps(int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major != 9 || minor != 0) return "precision tf32x3 needs compute capability 9.0";
  return nullptr;
}

cudaError_t prepare_maps(int device) {
  int bytes;
  cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  for (const int width : {64, 128, most_map_width})
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(kernel_for(width), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return error;
}

cudaError_t launch_maps(const Job& job, int device, cudaStream_t stream) {
  int multiprocessors, most_bytes;
  cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const PackedCritic& critic = job.critic;
  const int columns = columns_of_maps(critic.layout.width);
  const int kinds = critic.heads * critic.layout.width / columns;
  const int tiles = tiles_of(job);
  const int blocks = std::min(tiles, std::max(1, multiprocessors / kinds));
  int groups = std::min(most_groups, (tiles + blocks - 1) / blocks);
  const MapsLayout layout = MapsLayout::within(most_bytes, critic, &groups);
  const MapsKernel kernel = kernel_for(critic.layout.width);
  const dim3 grid(static_cast<unsigned>(kinds), static_cast<unsigned>(blocks));
  kernel<<<grid, groups * warps_of_group * warp_size, layout.bytes, stream>>>(job, layout);
  return cudaGetLastError();
}

}  // namespace dtag::cuda
