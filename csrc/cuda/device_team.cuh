// Teams and blocks on the device; what they do is said in team.h and block.h.
#pragma once

#include <cuda_runtime.h>

#include "job.h"
#include "team.h"

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

// The sums of values[0] ... values[count - 1] over a warp, to `to`.
template <int count>
__device__ __forceinline__ void sum_warp(const float* values, int lane, float* to) {
  constexpr int padded = count <= 1 ? 1 : count <= 2 ? 2 : count <= 4 ? 4 : count <= 8 ? 8
                         : count <= 16 ? 16 : 32;
  float v[padded];
#pragma unroll
  for (int i = 0; i < padded; ++i) v[i] = i < count ? values[i] : 0.0f;
  int index = 0;
  scatter_sums<padded>(v, lane, index);
  if (lane % (warp_size / padded) == 0 && index < count) to[index] = v[0];
}

// A row's threads; all of the block where there is one row. index: of the team
// in the block.
template <int actions, bool whole_block>
class DeviceTeam {
 public:
  using Unit = Thread<actions, units_per_thread(actions)>;
  // Where a block has four rows its 512 threads have 128 registers each, and mostly correct.
  static constexpr int rows_ahead = whole_block ? 4 : 2;

  __device__ DeviceTeam(const Layout& layout, int heads, int thread, int index, float* shared)
      : threads_(heads * layout.threads_per_head),
        index_(index),
        head_(thread / layout.threads_per_head),
        t_(thread % layout.threads_per_head),
        shared_(shared) {}

  __device__ float* shared() const { return shared_; }

  template <typename F>
  __device__ __forceinline__ void each(F f) {
    f(unit_, head_, t_);
  }

  __device__ __forceinline__ void sync() const {
    if constexpr (whole_block)
      __syncthreads();
    else
      asm volatile("barrier.sync %0, %1;" ::"r"(1 + index_), "r"(threads_) : "memory");
  }

  template <typename F>
  __device__ __forceinline__ void vote(uint32_t* words, int words_per_head, F f) const {
    constexpr int units = units_per_thread(actions);
#pragma unroll
    for (int u = 0; u < units; ++u) {
      const uint32_t word = __ballot_sync(0xffffffffu, f(unit_, head_, t_, u));
      if (lane_index() == 0) words[head_ * words_per_head + t_ / warp_size * units + u] = word;
    }
  }

  template <typename F>
  __device__ __forceinline__ void reduce(float* sums, int warps_per_head, F f) const {
    float values[1 + actions];
    f(unit_, head_, t_, values);
    float* const to = sums + (head_ * warps_per_head + t_ / warp_size) * (1 + actions);
    constexpr int together = actions < warp_size ? 1 + actions : actions;
    sum_warp<together>(values, lane_index(), to);
    if constexpr (actions == warp_size) sum_warp<1>(values + actions, lane_index(), to + actions);
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

  int threads_, index_, head_, t_;
  float* shared_;
  Unit unit_;
  Lane lane_;
};

template <int actions, int together, typename Weight>
class DeviceBlock {
 public:
  using Team = DeviceTeam<actions, together == 1>;

  __device__ DeviceBlock(const Job& job, float* shared)
      : shared_(shared),
        at_(job.shared),
        team_threads_(job.critic.heads * job.critic.layout.threads_per_head),
        index_(threadIdx.x / team_threads_),
        walk_(Team(job.critic.layout, job.critic.heads, threadIdx.x % team_threads_, index_,
                   this->shared(index_)),
              job) {}

  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int64_t count() const { return gridDim.x; }
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
  Walk<actions, Weight, Team> walk_;
};

}  // namespace dtag::cuda
