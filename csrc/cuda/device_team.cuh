// Teams and blocks on the device; what they do is said in team.h and block.h.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "job.h"
#include "team.h"

// What clusters are made of; for other devices their kernels are compiled, but are empty.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DTAG_CLUSTERS 1
#else
#define DTAG_CLUSTERS 0
#endif

namespace dtag::cuda {

// The sums of `count` values over a warp, in v[0] of some lane each: lane index % 32 / (32 / count)
// for a count that is a power of two. At every step half of the values leave a lane, so that they
// take count + 4 exchanges or so and not 5 * count. `index` comes to the value that the lane holds.
template <int count, int offset = warp_size / 2>
__device__ __forceinline__ void scatter_sums(float* v, int lane, int& index) {
  if constexpr (count > 1) {
    constexpr int half = count / 2;
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? v[i] : v[i + half];
      const float keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, give, offset);
    }
    if (upper) index += half;
    if constexpr (offset > 1) scatter_sums<half, offset / 2>(v, lane, index);
  } else {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], offset);
    if constexpr (offset > 1) scatter_sums<1, offset / 2>(v, lane, index);
  }
}

// The sums of values[0] ... values[count - 1] over a warp: give(index, sum), by some lane each.
template <int count, typename Give>
__device__ __forceinline__ void sum_warp(const float* values, int lane, Give give) {
  constexpr int padded = count <= 1 ? 1 : count <= 2 ? 2 : count <= 4 ? 4 : count <= 8 ? 8
                         : count <= 16 ? 16 : 32;
  float v[padded];
#pragma unroll
  for (int i = 0; i < padded; ++i) v[i] = i < count ? values[i] : 0.0f;
  int index = 0;
  scatter_sums<padded>(v, lane, index);
  if (lane % (warp_size / padded) == 0 && index < count) give(index, v[0]);
}

// A warp that multiplies tiles; see tiles.h.
template <typename State>
struct DeviceWarp {
  State lane;

  template <typename F>
  __device__ __forceinline__ void each(F f) {
    f(lane, threadIdx.x % warp_size);
  }

  // d += a * b
  template <typename A, typename B>
  __device__ __forceinline__ void multiply(A a_of, B b_of) {
    const float(&a)[4] = a_of(lane);
    const float(&b)[2] = b_of(lane);
    float(&d)[4] = lane.d;
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
  }
};

// The bits 0, 2, 4, ... of a word, together.
__device__ __forceinline__ uint32_t even_bits(uint32_t x) {
  x &= 0x55555555u;
  x = (x | x >> 1) & 0x33333333u;
  x = (x | x >> 2) & 0x0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0x0000ffffu;
}

enum class Span { part, block, cluster };  // what a team is

// A row's threads. index: of the team, where a block has several; thread: of the team, in its block.
template <int actions, Span span>
class DeviceTeam {
 public:
  static constexpr int units =
      span == Span::cluster ? units_in_cluster : units_per_thread(actions);
  using Unit = Thread<actions, units>;
  // Where a block has four rows its 512 threads have 128 registers each, and mostly correct.
  static constexpr int rows_ahead = span == Span::part ? 2 : span == Span::block ? 4 : 8;

  __device__ DeviceTeam(const PackedCritic& critic, int thread, int index, float* shared)
      : index_(index),
        thread_(thread),
        head_(thread / (critic.layout.width / units)),
        t_(thread % (critic.layout.width / units)),
        threads_(critic.heads * critic.layout.width / units),
        shared_(shared),
        remote_(shared) {
    if constexpr (span == Span::cluster) {
      threads_ /= blocks_of_cluster;
#if DTAG_CLUSTERS
      const auto cluster = cooperative_groups::this_cluster();
      const unsigned rank = cluster.block_rank();
      head_ += rank * (critic.heads / blocks_of_cluster);
      remote_ = cluster.map_shared_rank(shared, rank ^ 1);
#endif
    }
  }

  __device__ float* shared() const { return shared_; }

  template <typename F>
  __device__ __forceinline__ void each(F f) {
    f(unit_, head_, t_);
  }

  template <typename F>
  __device__ __forceinline__ void share(int n, F f) const {
    for (int i = thread_; i < n; i += threads_) f(i);
  }

  __device__ __forceinline__ void sync() const {
#if DTAG_CLUSTERS
    if constexpr (span == Span::cluster) return cooperative_groups::this_cluster().sync();
#endif
    sync_block();
  }
  __device__ __forceinline__ void sync_block() const {
    if constexpr (span == Span::part)
      asm volatile("barrier.sync %0, %1;" ::"r"(1 + index_), "r"(threads_) : "memory");
    else
      __syncthreads();
  }

  template <typename F>
  __device__ __forceinline__ void vote(int to, int words_per_head, F f) const {
    uint32_t ballots[units];
#pragma unroll
    for (int u = 0; u < units; ++u)
      ballots[u] = __ballot_sync(0xffffffffu, f(unit_, head_, t_, u));
    // A lane for each word. Of four units, the lanes of even index hold one group's, the others the
    // next one's (Place in team.h).
    const int lane = lane_index(), group = lane / 2;
    uint32_t word = lane % 2 ? ballots[1] : ballots[0];
    if constexpr (units == 4) {
      const uint32_t further = lane % 2 ? ballots[3] : ballots[2];
      word = even_bits(word >> group) | even_bits(further >> group) << 16;
    }
    if (lane < units)
      push(to + head_ * words_per_head + t_ / warp_size * units + lane, word);
  }

  template <typename F>
  __device__ __forceinline__ void reduce(int sums, int warps_per_head, F f) const {
    float values[1 + actions];
    f(unit_, head_, t_, values);
    const int to = sums + (head_ * warps_per_head + t_ / warp_size) * (1 + actions);
    constexpr int together = actions < warp_size ? 1 + actions : actions;
    sum_warp<together>(values, lane_index(), [&](int i, float sum) { push(to + i, sum); });
    if constexpr (actions == warp_size)
      sum_warp<1>(values + actions, lane_index(), [&](int, float sum) { push(to + actions, sum); });
  }

  template <typename State, typename F>
  __device__ __forceinline__ void warps(F f) const {
    DeviceWarp<State> warp;
    f(warp, head_, t_ / warp_size * warp_size * units);
  }

  template <typename F>
  __device__ __forceinline__ void lanes(F f) {
    f(lane_, lane_index());
  }

  template <typename F>
  __device__ __forceinline__ float sum_lanes(F f) const {
    float sum = f(lane_);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
  }

  template <typename F>
  __device__ __forceinline__ bool all_lanes(F f) const {
    return __all_sync(0xffffffffu, f(lane_));
  }

  template <typename F>
  __device__ __forceinline__ float pick(int index, F f) const {
    return __shfl_sync(0xffffffffu, f(lane_), index);
  }

  template <typename F>
  __device__ __forceinline__ int count_bits(int words, F f) const {
    int count = 0;
    for (int i = lane_index(); i < words; i += warp_size) count += __popc(f(i));
    return __reduce_add_sync(0xffffffffu, count);
  }

  template <typename F>
  __device__ __forceinline__ void once(F f) const {
    if (head_ == 0 && t_ < warp_size) f(lane_, lane_index());
  }

 private:
  __device__ static int lane_index() { return threadIdx.x % warp_size; }

  // To every block's shared memory.
  template <typename Word>
  __device__ __forceinline__ void push(int to, Word value) const {
    reinterpret_cast<Word*>(shared_)[to] = value;
    if constexpr (span == Span::cluster) reinterpret_cast<Word*>(remote_)[to] = value;
  }

  int index_, thread_, head_, t_;
  int threads_;  // of the team, in this block
  float* shared_;
  float* remote_;  // of the cluster's other block
  Unit unit_;
  Lane lane_;
};

// blocks: of a team, 1 or a cluster's; together: teams of a block.
template <int actions, int together, int blocks, typename Precision>
class DeviceBlock {
 public:
  static constexpr Span span = blocks > 1     ? Span::cluster
                               : together > 1 ? Span::part
                                              : Span::block;
  using Team = DeviceTeam<actions, span>;

  __device__ DeviceBlock(const Job& job, float* shared)
      : shared_(shared),
        at_(job.shared),
        team_threads_(job.critic.heads * job.critic.layout.width / (Team::units * blocks)),
        index_(threadIdx.x / team_threads_),
        walk_(Team(job.critic, threadIdx.x % team_threads_, index_, this->shared(index_)), job) {
#if DTAG_CLUSTERS
    // Before the other block's memory is written to, it has to be there.
    if constexpr (blocks > 1) cooperative_groups::this_cluster().sync();
#endif
  }

  __device__ int64_t index() const { return blockIdx.x / blocks; }
  __device__ int64_t count() const { return gridDim.x / blocks; }
  __device__ float* shared(int r) const { return shared_ + r * at_.floats; }
  __device__ float* handover() const { return shared_ + together * at_.floats; }
  __device__ void sync() const { __syncthreads(); }

  template <typename F>
  __device__ __forceinline__ void teams(F f) {
    f(walk_, index_);
  }
  template <typename F>
  __device__ __forceinline__ void threads(F f) const {
    f(static_cast<int>(threadIdx.x));
  }

 private:
  float* shared_;
  const SharedLayout& at_;
  int team_threads_, index_;
  Walk<actions, Precision, Team> walk_;
};

}  // namespace dtag::cuda
