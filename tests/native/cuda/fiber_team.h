// The teams and blocks of csrc/cuda/device_team.cuh by fibers of the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "block.h"
#include "fibers.h"
#include "job.h"
#include "memory.h"
#include "team.h"
#include "team_memory.h"
#include "walk.h"

namespace dtag::cuda {

// What a block's threads share.
struct TeamBlock {
  TeamBlock(int threads, int64_t floats)
      : barrier(threads),
        warps(static_cast<size_t>(threads / warp_size)),
        memory(static_cast<size_t>(floats), std::numeric_limits<float>::quiet_NaN()) {}

  Barrier<true> barrier;
  std::vector<Warp> warps;
  Mark map_mark, slice_mark;
  std::vector<float> memory;
};

template <int actions, int units_of_thread, bool has_room, bool from_queue, bool is_crowded>
class FiberTeam : public TeamMemory {
 public:
  static constexpr int units = units_of_thread;
  static constexpr bool roomy = has_room, queued = from_queue, crowded = is_crowded;
  using Unit = Thread<actions, units, roomy>;

  FiberTeam(const Job& job, TeamBlock* block, int thread)
      : TeamMemory(block->memory.data()),
        seat_(Seat::of<actions, units>(thread / job.shared.threads_per_head, thread % job.shared.threads_per_head,
                                       job.critic.layout.width)),
        thread_(thread),
        threads_(threads_of(job.critic, units)),
        block_(block) {
    std::memset(static_cast<void*>(&unit_), 0xff, sizeof(unit_));  // NaN
    std::memset(static_cast<void*>(&lane_), 0xff, sizeof(lane_));
  }

  void sync() const { block_->barrier.wait(); }

  template <typename F>
  void each(F f) {
    f(unit_, seat_);
  }
  template <typename F>
  bool any(F f) {
    return block_->barrier.wait(f(unit_, seat_));
  }

  void send(char* to, const char* from, int bytes, int n, int apart) const {
    if (thread_ + warp_size != threads_) return;
    block_->slice_mark.expect(n * bytes);
    for (int i = 0; i < n; ++i)
      copy_in_bulk(to + i * bytes, from + static_cast<int64_t>(i) * apart, bytes, &block_->slice_mark);
  }
  void await_sent() const { block_->slice_mark.wait(0); }

  template <typename F>
  void vote(int to, F f) {
    uint32_t own[units];
    for (int u = 0; u < units; ++u) own[u] = f(unit_, u) ? 1 : 0;
    const auto all = warp().share(lane(), own);
    int count = 0;
    for (int u = 0; u < units; ++u) {
      unit_.votes[u] = 0;
      for (int i = 0; i < warp_size; ++i) unit_.votes[u] |= all.of[i][u] << i;
      count += bits_of(unit_.votes[u]);
    }
    if (lane() == 0) put(to + thread_ / warp_size, count);
  }
  int count_votes(int from, int n) const {
    int vote[1] = {};
    if (lane() < n) std::memcpy(vote, shared() + from + lane(), sizeof(vote));
    const auto all = warp().share(lane(), vote);
    int count = 0;
    for (const auto& one : all.of) count += one[0];
    return count;
  }

  template <typename F>
  void reduce(int to, F f) const {
    float values[1 + actions];
    f(unit_, seat_, values);
    const auto all = warp().share(lane(), values);
    for (int i = lane(); i <= actions; i += warp_size)
      put(to + thread_ / warp_size * term_stride(actions) + i, tree_sum([&](int of) { return all.of[of][i]; }));
  }

  template <typename F>
  void lanes(F f) {
    f(lane_, lane());
  }
  template <typename F>
  float sum_lanes(F f) const {
    const auto all = share(f(lane_));
    return tree_sum([&](int i) { return all.of[i][0]; });
  }
  template <typename F>
  bool all_lanes(F f) const {
    const auto all = share(f(lane_));
    bool so = true;
    for (const auto& one : all.of) so = so && one[0];
    return so;
  }
  template <typename F>
  float pick(int index, F f) const {
    return share(f(lane_)).of[index][0];
  }
  template <typename F>
  void once(F f) const {
    if (thread_ < warp_size) f(lane_, lane());
  }
  void sync_lanes() const { warp().sync(); }

  void draw(bool so, int32_t* counter) { draw_if(so && thread_ == 0, counter, number_); }
  void put_drawn(bool so) const {
    if (so && thread_ == 0) put(SharedLayout::drawn, number_);
  }

 private:
  int lane() const { return thread_ % warp_size; }
  Warp& warp() const { return block_->warps[static_cast<size_t>(thread_ / warp_size)]; }
  template <typename Number>
  auto share(Number x) const {
    const Number own[1] = {x};
    return warp().share(lane(), own);
  }
  Seat seat_;
  int thread_, threads_;
  TeamBlock* block_;
  Unit unit_;
  Lane lane_;
  int number_ = -1;
};

// A thread's part of it.
template <int actions, int units, int blocks, bool roomy, bool queued, bool crowded, typename Precision>
class FiberBlock {
 public:
  using Team = FiberTeam<actions, units, roomy, queued, crowded>;

  // What the blocks of a cluster share.
  struct Cluster {
    Cluster(const Job& job, int64_t of_index, int64_t of_count) : index(of_index), count(of_count) {
      const int threads = threads_of(job.critic, units);
      for (int rank = 0; rank < blocks; ++rank) shared.push_back(std::make_unique<TeamBlock>(threads, job.shared.floats));
      all = std::make_unique<Barrier<true>>(blocks * threads);
    }
    int64_t index, count;
    std::vector<std::unique_ptr<TeamBlock>> shared;
    std::unique_ptr<Barrier<true>> all;
  };

  FiberBlock(const Job& job, Cluster* cluster, int rank, int thread)
      : rank_(rank),
        marks_(thread + warp_size == threads_of(job.critic, units)),
        cluster_(cluster),
        warp_(&cluster->shared[static_cast<size_t>(rank)]->warps[static_cast<size_t>(thread / warp_size)]),
        lane_(thread % warp_size),
        walk_(Team(job, cluster->shared[static_cast<size_t>(rank)].get(), thread), job) {
    if (blocks == 1 || !marks_) return;
    cluster->shared[static_cast<size_t>(rank)]->map_mark.begin();
    cluster->shared[static_cast<size_t>(rank)]->slice_mark.begin();
  }

  // All threads of all of its blocks, which refine the rows that are the cluster's.
  static void run(const Job& job, int64_t index, int64_t count, uint32_t seed) {
    Cluster cluster(job, index, count);
    Fibers threads(seed);
    for (int rank = 0; rank < blocks; ++rank)
      for (int thread = 0; thread < threads_of(job.critic, units); ++thread)
        threads.add([&job, &cluster, rank, thread] {
          FiberBlock block(job, &cluster, rank, thread);
          refine_rows<actions, blocks, Precision>(block, job);
        });
    threads.run();
  }

  int64_t index() const { return cluster_->index; }
  int64_t count() const { return cluster_->count; }
  template <typename F>
  int find(F f) const {
    const bool own[1] = {f(lane_)};
    const auto all = warp_->share(lane_, own);
    for (int i = 0; i < warp_size; ++i)
      if (all.of[i][0]) return i;
    return warp_size;
  }
  template <typename F>
  void teams(F f) {
    f(walk_, rank_);
  }

  // The device's arrival, which is relaxed, orders reads alone, by being after them.
  void arrive() { arrived_ = cluster_->all->arrive(); }
  void wait() { cluster_->all->await(arrived_); }
  void expect(int bytes) const {
    if (marks_) first().map_mark.expect(bytes);
  }
  void give(int to, float number) const {
    first().memory[static_cast<size_t>(to)] = number;
    first().map_mark.complete(sizeof(number));
  }
  void receive() {
    first().map_mark.wait(received_);
    received_ ^= 1;
  }

 private:
  TeamBlock& first() const { return *cluster_->shared[0]; }

  int rank_;
  bool marks_;
  Cluster* cluster_;
  Warp* warp_;
  int lane_;
  int arrived_ = 0;
  int received_ = 0;  // maps, modulo 2
  Walk<actions, Precision, Team> walk_;
};

}  // namespace dtag::cuda
