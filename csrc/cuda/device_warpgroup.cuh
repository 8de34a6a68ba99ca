// A warpgroup of dense tiles on the device (dense_input.h), and the blocks of a cluster.
//
//   each(f)              f(thread, place) by its 128 threads
//   forget()             what was made of a place: it is not to take registers through every step
//   memory(), address()  the block's shared memory, from a multiple of 1024 on; where it is for tensor cores
//   expect(batch, bytes), copy(batch, byte, from, bytes), arrived(batch)   of two batches, once: so many bytes
//                        will be copied; to shared memory; wait until all are there, for tensor cores too
//   give(turn, byte, numbers), receive(turn)   to the other block's shared memory, in a turn; wait until what
//                        the other gives in a turn is there
//   sync(), sync_warps() what was written before is seen after, by all threads or within a warp
//   sync_for_tensor_cores()   by tensor cores, too
//   exchange<n>(d, give, take)   give(thread, place, values) n numbers to the thread whose index differs in
//                        bit d, within four; take(thread, place, values)
//   fence(), fence_memory(), multiply<transposed>(onto, sums, fragment, tile), commit()   wgmma.cuh; sums(thread) and
//                        fragment(thread) are registers, not to be touched until it was waited for them
//   wait<pending>(registers)   until all groups are done but the last few; those registers are free then
//   keep(registers)      others that are
//   know(f)              that by here f(thread), a sum, is computed
#pragma once

#include <cuda_runtime.h>

#include "dense_tiles.h"
#include "mark.cuh"

namespace dtag::cuda {

// Not kept in a register: where it lies is known when the kernel is loaded.
extern __shared__ __align__(1024) char tile_memory[];

template <int actions>
class DeviceWarpgroup {
 public:
  using Thread = TileThread<actions>;

  __device__ DeviceWarpgroup() : place_{static_cast<int>(threadIdx.x)} {}

  __device__ char* memory() const { return tile_memory; }
  __device__ uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(tile_memory)); }

#if DTAG_CLUSTERS
  // What comes is counted, by a mark for each of two turns and two batches, by the first thread.
  __device__ void begin_marks() const {
    if (threadIdx.x > 0) return;
    for (int i = 0; i < TileLayout::mark_count; ++i) mark(i).begin();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    for (int turn = 0; turn < 2; ++turn) sent_mark(turn).expect(TileLayout::sent_bytes);
  }
  __device__ __forceinline__ void expect(int batch, int bytes) const {
    if (threadIdx.x == 0) mark(2 + batch).expect(bytes);
  }
  __device__ __forceinline__ void copy(int batch, int byte, const void* from, int bytes) const {
    if (threadIdx.x == 0)
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              address() + static_cast<uint32_t>(byte)),
          "l"(from), "r"(bytes), "r"(mark(2 + batch).address)
          : "memory");
  }
  __device__ __forceinline__ void arrived(int batch) const { mark(2 + batch).wait(0); }
  __device__ __forceinline__ void give(int turn, int byte, const float (&numbers)[4]) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            of_other(address() + static_cast<uint32_t>(byte))),
        "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3]),
        "r"(of_other(sent_mark(turn).address))
        : "memory");
  }
  __device__ __forceinline__ void give(int turn, int byte, float number) const {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                     of_other(address() + static_cast<uint32_t>(byte))),
                 "f"(number), "r"(of_other(sent_mark(turn).address))
                 : "memory");
  }
  __device__ __forceinline__ void receive(int turn) const {
    sent_mark(turn).wait(turn / 2 % 2);
    if (threadIdx.x == 0) sent_mark(turn).expect(TileLayout::sent_bytes);  // of the turn after the next
  }
#endif

  template <typename F>
  __device__ __forceinline__ void each(F f) {
    f(thread_, place_);
  }

  __device__ __forceinline__ void forget() { place_ = anew(place_); }

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
  __device__ __forceinline__ void fence_memory() const { wgmma_fence(); }
  template <bool transposed, typename Sums, typename Fragment>
  __device__ __forceinline__ void multiply(bool onto, Sums sums, Fragment fragment, uint64_t tile) {
    wgmma_bf16<transposed>(sums(thread_), fragment(thread_), tile, onto);
  }
  __device__ __forceinline__ void commit() const { wgmma_commit(); }
  template <int pending, typename Registers>
  __device__ __forceinline__ void wait(Registers registers) {
    wgmma_wait_registers<pending>();
    keep(registers);
  }
  template <typename F>
  __device__ __forceinline__ void know(F f) const {
    if (is_signalling(f(thread_))) __trap();
  }
  template <typename Registers>
  __device__ __forceinline__ void keep(Registers registers) {
#pragma unroll
    for (auto& one : registers(thread_)) touch(one);
  }

 private:
#if DTAG_CLUSTERS
  __device__ static Mark mark(int i) {
    return Mark(reinterpret_cast<const float*>(tile_memory + TileLayout::marks) + 2 * i);
  }
  __device__ static Mark sent_mark(int turn) { return mark(turn % 2); }
  // The same place in the shared memory of the cluster's other block.
  __device__ static uint32_t of_other(uint32_t address) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(1 - blockIdx.x % 2));
    return there;
  }
#endif

  // For the compiler: it changes here.
  __device__ __forceinline__ static void touch(float& x) { asm volatile("" : "+f"(x)); }
  __device__ __forceinline__ static void touch(uint32_t& x) { asm volatile("" : "+r"(x)); }

  TilePlace place_;
  Thread thread_;
};

template <int actions, int heads>
class DeviceCluster {
 public:
  __device__ explicit DeviceCluster(const Job& job) : tiles_(DeviceWarpgroup<actions>(), job, rank()) {
#if DTAG_CLUSTERS
    DeviceWarpgroup<actions>().begin_marks();
    if constexpr (heads > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
  }

  __device__ int index() const { return static_cast<int>(blockIdx.x / heads); }
  __device__ int count() const { return static_cast<int>(gridDim.x / heads); }

  template <typename F>
  __device__ __forceinline__ void blocks(F f) {
    f(tiles_);
  }
  __device__ __forceinline__ void meet() const {
    if constexpr (heads > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  }

 private:
  __device__ static int rank() { return heads > 1 ? static_cast<int>(blockIdx.x % heads) : 0; }

  DenseTiles<actions, heads, DeviceWarpgroup<actions>> tiles_;
};

}  // namespace dtag::cuda
