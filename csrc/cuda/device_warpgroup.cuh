// The warpgroups of a block of dense tiles on the device (dense_input.h), and the blocks of a cluster.
//
//   each(f)              f(thread, place) by their 256 threads
//   same(x)              which is the same for all threads
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
//   add_product<numbers>(factors, sums)   to sums(thread)[4] the product of a warp's HalfFactors, factors(thread)
//   get_first<transposed>(place, block, words)   of W_1a, of 16 units: of either eight, and then of what half floats
//                        leave, the thread's part of its right factor with the units for columns or, transposed,
//                        for numbers
//   put(place, i, fragment)   of 64 rows the 16 columns of index i of those of the thread's warpgroup, to
//                        shared memory (TileLayout::layer); its rows are there with the other threads'
//   get(place, block, fragment)   of what was put, after a wait: of the columns of all warpgroups 16
//   fence(), multiply(onto, sums, a, b, apart), commit()   wgmma.cuh, by each warpgroup: A from byte a on, and B, 128
//                        columns, from byte b on, and `apart` bytes further on for each warpgroup; sums(thread) are
//                        registers, not to be touched until it was waited for them
//   multiply_own(onto, sums, fragment, b, apart)   the same of fragment(thread), as put() takes it and not to be
//                        touched either, by 64 columns of B, transposed
//   take_turn(), pass_turn()   the second waits for the first to have passed its turn
//   wait<pending>(registers)   until all groups are done but the last few; those registers are free then
#pragma once

#include <cuda_runtime.h>

#include "dense_tiles.h"
#include "mark.cuh"

namespace dtag::cuda {

// Not kept in a register: where it lies is known when the kernel is loaded.
extern __shared__ __align__(1024) char tile_memory[];

class DeviceWarpgroups {
 public:
  using Thread = TileThread;

  __device__ DeviceWarpgroups() : place_{static_cast<int>(threadIdx.x)} {}

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
  __device__ __forceinline__ void give(int turn, int byte, const float (&numbers)[2]) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            of_other(address() + static_cast<uint32_t>(byte))),
        "f"(numbers[0]), "f"(numbers[1]), "r"(of_other(sent_mark(turn).address))
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

  // For the compiler to know it.
  __device__ __forceinline__ static int same(int x) { return __shfl_sync(0xffffffffu, x, 0); }

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

  template <int numbers, typename Factors, typename Sums>
  __device__ __forceinline__ void add_product(Factors factors, Sums sums) {
    multiply_halves(sums(thread_), factors(thread_));
  }

  template <bool transposed>
  __device__ __forceinline__ void get_first(const TilePlace& at, int block, uint32_t (&words)[4]) const {
    // A lane says where a unit's eight numbers lie, of two eights and their other parts.
    const int lane = at.lane(), unit = block * 16 + lane % 16;
    const uint32_t from = address() + TileLayout::first + lane / 16 * TileLayout::first_part + 16 * unit;
    if constexpr (transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(from));
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(from));
  }

  __device__ __forceinline__ void put(const TilePlace& at, int i, const uint32_t (&fragment)[4]) const {
    const uint32_t to = place_of(at, at.group() * (blocks / TileLayout::groups / blocks_of_slab) * slab, i);
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(fragment[0]),
                 "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
                 : "memory");
  }
  __device__ __forceinline__ void get(const TilePlace& at, int block, uint32_t (&fragment)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(place_of(at, 0, block)));
  }

  // Without a branch, which may not lie between multiplications.
  __device__ __forceinline__ void take_turn() const {
    asm volatile("{ .reg .pred p; setp.gt.s32 p, %0, 0; @p bar.sync 1, %1; }" ::"r"(place_.group()),
                 "n"(TileLayout::threads)
                 : "memory");
  }
  __device__ __forceinline__ void pass_turn() const {
    asm volatile("{ .reg .pred p; setp.eq.s32 p, %0, 0; @p bar.arrive 1, %1; }" ::"r"(place_.group()),
                 "n"(TileLayout::threads)
                 : "memory");
  }

  __device__ __forceinline__ void fence() {
    // The compiler is to know that it is the same for a warp; and anew, so that descriptions of tiles are not kept.
    which_ = __shfl_sync(0xffffffffu, place_.group(), 0);
    wgmma_fence();
  }
  template <typename Sums>
  __device__ __forceinline__ void multiply(bool onto, Sums sums, int a, int b, int apart) {
    const uint64_t from = wgmma_tile(address(), 1024) + (a >> 4);
    wgmma_bf16(sums(thread_), from, wgmma_tile(address(), 1024) + (b + which_ * apart >> 4), onto);
  }
  template <typename Sums, typename Fragment>
  __device__ __forceinline__ void multiply_own(bool onto, Sums sums, Fragment fragment, int b, int apart) {
    wgmma_bf16(sums(thread_), fragment(thread_), wgmma_tile(address(), 1024) + (b + which_ * apart >> 4), onto);
  }
  __device__ __forceinline__ void commit() const { wgmma_commit(); }
  template <int pending, typename Registers>
  __device__ __forceinline__ void wait(Registers registers) {
    wgmma_wait<pending>();
#pragma unroll
    for (auto& one : registers(thread_)) touch(one);
  }

 private:
  static constexpr int slab = TileLayout::layer_slab, blocks = TileLayout::units / 16;
  static constexpr int blocks_of_slab = TileLayout::slab_units / 16;

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

  __device__ __forceinline__ static void multiply_halves(float (&d)[4], const HalfFactors<16>& of) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(of.left[0]), "r"(of.left[1]), "r"(of.left[2]), "r"(of.left[3]), "r"(of.right[0]), "r"(of.right[1]));
  }
  __device__ __forceinline__ static void multiply_halves(float (&d)[4], const HalfFactors<8>& of) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(of.left[0]), "r"(of.left[1]), "r"(of.right[0]));
  }

  // A warp's lane says where a row of eight numbers lies, of four times eight rows; so many bytes on.
  __device__ __forceinline__ uint32_t place_of(const TilePlace& at, uint32_t bytes, int block) const {
    const int lane = at.lane(), row = at.first_row() + lane % 16;
    const uint32_t place = TileLayout::layer + bytes + row * 128 + ((lane / 16 ^ lane % 8) << 4);
    return address() + (place ^ static_cast<uint32_t>(block % blocks_of_slab << 5)) + block / blocks_of_slab * slab;
  }

  // For the compiler: it changes here.
  __device__ __forceinline__ static void touch(float& x) { asm volatile("" : "+f"(x)); }

  TilePlace place_;
  int which_;  // of the warpgroups
  Thread thread_;
};

template <int heads>
class DeviceCluster {
 public:
  __device__ explicit DeviceCluster(const Job& job) : tiles_(DeviceWarpgroups(), job, rank()) {
#if DTAG_CLUSTERS
    DeviceWarpgroups().begin_marks();
    if constexpr (heads > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
  }

  // Had again each time: there is no register to keep it.
  __device__ int index() const { return anew(static_cast<int>(blockIdx.x)) / heads; }
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

  DenseTiles<heads, DeviceWarpgroups> tiles_;
};

}  // namespace dtag::cuda
