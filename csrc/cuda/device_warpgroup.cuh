// A warpgroup of dense tiles on the device (dense_network.h), and the blocks of a cluster.
//
//   each(f)              f(thread, place) by its 128 threads
//   memory(), other()    the block's shared memory, from a multiple of 1024 on, and that of the other block;
//   address()            where it is for tensor cores
//   sync(), sync_warps() what was written before is seen after, by all threads or within a warp
//   sync_for_tensor_cores()   by tensor cores, too
//   exchange<n>(d, give, take)   give(thread, place, values) n numbers to the thread whose index differs in
//                        bit d, within four; take(thread, place, values)
//   fence(), multiply<transposed>(onto, sums, fragment, tile), commit(), wait<pending>(sums)   wgmma.cuh;
//                        sums(thread) and fragment(thread) are registers, which are not to be touched until
//                        it was waited for them
//   keep(fragments)      until here they were needed
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "dense_tiles.h"

namespace dtag::cuda {

template <int actions>
class DeviceWarpgroup {
 public:
  using Thread = TileThread<actions>;

  __device__ DeviceWarpgroup(char* memory, char* other)
      : memory_(memory),
        other_(other),
        address_(static_cast<uint32_t>(__cvta_generic_to_shared(memory))),
        place_{static_cast<int>(threadIdx.x)} {}

  __device__ char* memory() const { return memory_; }
  __device__ char* other() const { return other_; }
  __device__ uint32_t address() const { return address_; }

  template <typename F>
  __device__ __forceinline__ void each(F f) {
    f(thread_, place_);
  }

  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warps() const { __syncwarp(); }
  __device__ __forceinline__ void sync_for_tensor_cores() const {
    wgmma_fence_shared();
    __syncthreads();
  }

  template <int count, typename Give, typename Take>
  __device__ __forceinline__ void exchange(int distance, Give give, Take take) {
    float values[count];
    give(thread_, place_, values);
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = __shfl_xor_sync(0xffffffffu, values[i], distance);
    take(thread_, place_, values);
  }

  __device__ __forceinline__ void fence() const { wgmma_fence_registers(); }
  template <bool transposed, typename Sums, typename Fragment>
  __device__ __forceinline__ void multiply(bool onto, Sums sums, Fragment fragment, uint64_t tile) {
    if (onto)
      wgmma_bf16<transposed, true>(sums(thread_), fragment(thread_), tile);
    else
      wgmma_bf16<transposed, false>(sums(thread_), fragment(thread_), tile);
  }
  __device__ __forceinline__ void commit() const { wgmma_commit(); }
  template <int pending, typename Sums>
  __device__ __forceinline__ void wait(Sums sums) {
    wgmma_wait<pending>();
    // For the compiler: they change here.
#pragma unroll
    for (float& sum : sums(thread_)) asm volatile("" : "+f"(sum));
  }
  template <typename Fragments>
  __device__ __forceinline__ void keep(Fragments fragments) {
#pragma unroll
    for (auto& fragment : fragments(thread_)) {
#pragma unroll
      for (uint32_t& word : fragment) asm volatile("" ::"r"(word));
    }
  }

 private:
  char* memory_;
  char* other_;
  uint32_t address_;
  TilePlace place_;
  Thread thread_;
};

template <int actions, int heads>
class DeviceCluster {
 public:
  __device__ DeviceCluster(const Job& job, char* memory)
      : tiles_(DeviceWarpgroup<actions>(memory, other(memory)), job, rank()) {}

  __device__ int64_t index() const { return blockIdx.x / heads; }
  __device__ int64_t count() const { return gridDim.x / heads; }

  template <typename F>
  __device__ __forceinline__ void blocks(F f) {
    f(tiles_);
  }
  __device__ __forceinline__ void meet() const {
    if constexpr (heads > 1) cooperative_groups::this_cluster().sync();
  }

 private:
  __device__ static int rank() { return heads > 1 ? static_cast<int>(blockIdx.x % heads) : 0; }
  __device__ static char* other(char* memory) {
    if constexpr (heads > 1) return cooperative_groups::this_cluster().map_shared_rank(memory, 1 - rank());
    return memory;
  }

  DenseTiles<actions, heads, DeviceWarpgroup<actions>> tiles_;
};

}  // namespace dtag::cuda
