// Teams and blocks on the device; what they do is said in team.h and block.h.
#pragma once

#include <cuda_runtime.h>

#include "job.h"
#include "mark.cuh"
#include "memory.h"
#include "team.h"

namespace dtag::cuda {

__device__ __forceinline__ int lane_index() { return threadIdx.x % warp_size; }

// The least power of two that is no less, up to 32.
DTAG_BOTH constexpr int padded(int count) {
  int size = 1;
  while (size < count && size < warp_size) size *= 2;
  return size;
}

// The sums of `count` values over a warp, in v[0] of some lane each (index_of_sum): at every step half
// of the values leave a lane, so that they take count + 4 exchanges or so and not 5 * count. Neighbours
// first: threads of twice as many units, in half as many warps, then round as these do.
template <int count, int offset = 1>
__device__ __forceinline__ void scatter_sums(float* v) {
  if constexpr (count > 1) {
    constexpr int half = count / 2;
    const bool upper = lane_index() & offset;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? v[i] : v[i + half];
      const float keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, give, offset);
    }
    if constexpr (offset < warp_size / 2) scatter_sums<half, 2 * offset>(v);
  } else {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], offset);
    if constexpr (offset < warp_size / 2) scatter_sums<1, 2 * offset>(v);
  }
}

// The sum of one of values[0] ... values[count - 1] over a warp: of the lane's, by index_of_sum.
template <int count>
__device__ __forceinline__ float sum_warp(const float* values) {
  float v[padded(count)];
#pragma unroll
  for (int i = 0; i < padded(count); ++i) v[i] = i < count ? values[i] : 0.0f;
  scatter_sums<padded(count)>(v);
  return v[0];
}

// Which of the sums of sum_warp<count> the lane is to pass on, or -1.
template <int count>
__device__ __forceinline__ int index_of_sum() {
  constexpr int apart = padded(count);  // lanes of the same
  int index = 0;
  for (int lane = lane_index(), half = apart / 2; half > 0; lane /= 2, half /= 2)
    index += lane % 2 * half;
  return lane_index() < apart && index < count ? index : -1;
}

#if DTAG_CLUSTERS
// The thread of a block that begins its marks and says what they expect: of a warp that has no part of
// most observations to take.
__device__ __forceinline__ bool marks() { return threadIdx.x + warp_size == blockDim.x; }
#endif

// A row's threads.
template <int actions, int units_of_thread, bool has_room, bool from_queue, bool is_crowded>
class DeviceTeam {
 public:
  static constexpr int units = units_of_thread;
  static constexpr bool roomy = has_room, queued = from_queue, crowded = is_crowded;
  using Unit = Thread<actions, units, roomy>;

  __device__ DeviceTeam(const Job& job, float* shared) : shared_(shared) {
    const int thread = threadIdx.x;
    const int head = thread / warp_size * job.shared.heads_per_warp >> 16;
    seat_ = anew(Seat::of<actions, units>(head, thread - head * job.shared.threads_per_head,
                                          job.critic.layout.width));
    const int which = index_of_sum<1 + actions>();
    sum_ = anew(which < 0 ? -1 : thread / warp_size * term_stride(actions) + which);
  }

  __device__ float* shared() const { return shared_; }

  template <typename F>
  __device__ __forceinline__ void each(F f) {
    f(unit_, seat_);
  }

  // By the engine that copies; threads have nothing to do with it until it is done.
  __device__ __forceinline__ void send(void* to, const char* from, int bytes, int n, int apart) const {
#if DTAG_CLUSTERS
    if (!marks()) return;
    const Mark mark(shared_ + SharedLayout::slice_mark);
    mark.expect(n * bytes);
#pragma unroll 1
    for (int i = 0; i < n; ++i)
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              address_of(to) + i * bytes),
          "l"(from + static_cast<int64_t>(i) * apart), "r"(bytes), "r"(mark.address)
          : "memory");
#endif
  }
  __device__ __forceinline__ void await_sent() const {
#if DTAG_CLUSTERS
    Mark(shared_ + SharedLayout::slice_mark).wait(0);
#endif
  }

  __device__ __forceinline__ void sync() const { __syncthreads(); }

  template <typename F>
  __device__ __forceinline__ bool any(F f) {
    return __syncthreads_or(f(unit_, seat_) ? 1 : 0) != 0;
  }

  template <typename F>
  __device__ __forceinline__ void vote(int to, F f) {
    int count = 0;
#pragma unroll
    for (int u = 0; u < units; ++u) {
      unit_.votes[u] = __ballot_sync(0xffffffffu, f(unit_, u));
      count += __popc(unit_.votes[u]);
    }
    if (lane_index() == 0) put(to + static_cast<int>(threadIdx.x) / warp_size, count);
  }

  // A row has no more warps than a warp has lanes.
  __device__ __forceinline__ int count_votes(int from, int n) const {
    const int* const votes = reinterpret_cast<const int*>(shared_) + from;
    return __reduce_add_sync(0xffffffffu, lane_index() < n ? votes[lane_index()] : 0);
  }

  template <typename F>
  __device__ __forceinline__ void reduce(int sums, F f) const {
    float values[1 + actions];
    f(unit_, seat_, values);
    if constexpr (actions < warp_size) {
      const float sum = sum_warp<1 + actions>(values);
      if (sum_ >= 0) put(sums + sum_, sum);
    } else {
      const float sum = sum_warp<actions>(values), last = sum_warp<1>(values + actions);
      put(sums + sum_, sum);
      if (lane_index() == 0) put(sums + sum_ + actions, last);
    }
  }

  template <typename F>
  __device__ __forceinline__ void lanes(F f) {
    f(lane_, lane_index());
  }

  template <typename F>
  __device__ __forceinline__ float sum_lanes(F f) const {
    float sum = f(lane_);
#pragma unroll
    for (int offset = 1; offset < warp_size; offset *= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
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
  __device__ __forceinline__ void once(F f) const {
    if (seat_.head == 0 && seat_.thread < warp_size) f(lane_, lane_index());
  }

  __device__ __forceinline__ void sync_lanes() const { __syncwarp(); }

  // By one thread, without a branch, so that it goes on meanwhile.
  __device__ __forceinline__ void draw(bool so, int32_t* counter) {
    if constexpr (queued) draw_if(so && threadIdx.x == 0, counter, number_);
  }
  __device__ __forceinline__ void put_drawn(bool so) const {
    if constexpr (queued)
      store_if(so && threadIdx.x == 0, reinterpret_cast<int*>(shared_) + SharedLayout::drawn, number_);
  }
  __device__ __forceinline__ int drawn() const {
    return reinterpret_cast<const int*>(shared_)[SharedLayout::drawn];
  }

 private:
  template <typename Word>
  __device__ __forceinline__ void put(int to, Word value) const {
    reinterpret_cast<Word*>(shared_)[to] = value;
  }

  Seat seat_;
  int sum_;  // where among all warps' sums the lane's is; none if negative
  float* shared_;
  Unit unit_;
  Lane lane_;
  int number_;  // that was drawn, by one thread
};

// blocks: of a cluster, all of which take the same rows, or 1.
template <int actions, int units, int blocks, bool roomy, bool queued, bool crowded, typename Precision>
class DeviceBlock {
 public:
  using Team = DeviceTeam<actions, units, roomy, queued, crowded>;

  __device__ DeviceBlock(const Job& job, float* shared)
      : shared_(shared), walk_(Team(job, shared), job) {
#if DTAG_CLUSTERS
    if constexpr (blocks > 1) begin_marks();
#endif
  }

  __device__ int64_t index() const { return blockIdx.x / blocks; }
  __device__ int64_t count() const { return gridDim.x / blocks; }

  template <typename F>
  __device__ __forceinline__ int find(F f) const {
    const uint32_t found = __ballot_sync(0xffffffffu, f(lane_index()));
    return found == 0 ? warp_size : __ffs(static_cast<int>(found)) - 1;
  }

  template <typename F>
  __device__ __forceinline__ void teams(F f) {
#if DTAG_CLUSTERS
    if constexpr (blocks > 1) return f(walk_, static_cast<int>(__clusterRelativeBlockRank()));
#endif
    f(walk_, 0);
  }

#if DTAG_CLUSTERS
  // Nothing is handed over but that all have come so far.
  __device__ void arrive() const { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
  __device__ void wait() const { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
  __device__ void expect(int bytes) const {
    if (marks()) map_mark().expect(bytes);
  }
  __device__ void give(int to, float value) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            of_first(address_of(shared_ + to))),
        "r"(__float_as_uint(value)), "r"(of_first(map_mark().address))
        : "memory");
  }
  __device__ void receive() {
    map_mark().wait(received_);
    received_ ^= 1;
  }
#endif

 private:
#if DTAG_CLUSTERS
  __device__ Mark map_mark() const { return Mark(shared_ + SharedLayout::map_mark); }
  // Seen by the others after they have waited.
  __device__ void begin_marks() const {
    if (!marks()) return;
    map_mark().begin();
    Mark(shared_ + SharedLayout::slice_mark).begin();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  // The same place in the shared memory of the cluster's first block.
  __device__ static unsigned of_first(unsigned address) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(address));
    return there;
  }

  int received_ = 0;  // maps, modulo 2
#endif

  float* shared_;
  Walk<actions, Precision, Team> walk_;
};

}  // namespace dtag::cuda
