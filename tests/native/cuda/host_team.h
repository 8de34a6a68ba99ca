// Teams and blocks of csrc/cuda as loops on the host: what a thread, a lane or a warp does at once is
// done for one after the other, and waits are nothing.
//
// Threads take their turns in an order that changes from one turn to the next: forwards, backwards.
// What a thread reads in a turn in which another writes it is then sometimes the old number and
// sometimes the new one. Of waits between turns that are missing nothing is seen here: fiber_team.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "job.h"
#include "memory.h"
#include "team.h"
#include "team_memory.h"
#include "walk.h"

namespace dtag::cuda {

// Counts turns, for all teams.
struct Turns {
  uint32_t count = 0;
  template <typename F>
  void take(int n, F f) {
    const bool backwards = count++ % 2 != 0;
    for (int i = 0; i < n; ++i) f(backwards ? n - 1 - i : i);
  }
};

template <int actions, int units_of_thread, bool has_room, bool from_queue, bool is_crowded>
class HostTeam : public TeamMemory {
 public:
  static constexpr int units = units_of_thread;
  static constexpr bool roomy = has_room, queued = from_queue, crowded = is_crowded;
  using Unit = Thread<actions, units, roomy>;

  HostTeam(const Job& job, float* shared, Turns* turns)
      : TeamMemory(shared),
        threads_per_head_(job.critic.layout.width / units),
        heads_(job.critic.heads),
        turns_(turns),
        units_(static_cast<size_t>(heads_) * threads_per_head_) {
    std::memset(units_.data(), 0xff, units_.size() * sizeof(Unit));  // NaN
    std::memset(lanes_, 0xff, sizeof(lanes_));
  }

  void sync() { let_see_drawn(); }

  // A number is seen after the next wait, as late as it may be.
  void draw(bool so, int32_t* counter) {
    number_ = -1;
    draw_if(so, counter, number_);
  }
  void put_drawn(bool so) { puts_ = so || puts_; }

  // What is sent for comes as late as it may.
  void send(char* to, const char* from, int bytes, int n, int apart) {
    sent_ = [=] {
      for (int i = 0; i < n; ++i)
        std::memcpy(to + i * bytes, from + static_cast<int64_t>(i) * apart, bytes);
    };
  }
  void await_sent() { sent_(); }

  template <typename F>
  void each(F f) {
    turns_->take(count(), [&](int i) { f(units_[i], seat(i)); });
  }

  template <typename F>
  bool any(F f) {
    bool found = false;
    turns_->take(count(), [&](int i) { found = f(units_[i], seat(i)) || found; });
    let_see_drawn();
    return found;
  }

  template <typename F>
  void vote(int to, F f) {
    turns_->take(count() / warp_size, [&](int warp) {
      Unit* const own = &units_[warp * warp_size];
      int votes = 0;
      for (int u = 0; u < units; ++u) {
        uint32_t word = 0;
        for (int lane = 0; lane < warp_size; ++lane) word |= (f(own[lane], u) ? 1u : 0u) << lane;
        for (int lane = 0; lane < warp_size; ++lane) own[lane].votes[u] = word;
        votes += bits_of(word);
      }
      put(to + warp, votes);
    });
  }

  int count_votes(int from, int n) const {
    int count = 0, votes;
    for (int i = 0; i < n; ++i) {
      std::memcpy(&votes, shared() + from + i, sizeof(votes));
      count += votes;
    }
    return count;
  }

  template <typename F>
  void reduce(int to, F f) {
    turns_->take(count() / warp_size, [&](int warp) {
      const int first = warp * warp_size;
      float values[warp_size][1 + actions];
      for (int lane = 0; lane < warp_size; ++lane)
        f(units_[first + lane], seat(first + lane), values[lane]);
      for (int i = 0; i <= actions; ++i)
        put(to + warp * term_stride(actions) + i, tree_sum([&](int lane) { return values[lane][i]; }));
    });
  }

  template <typename F>
  void lanes(F f) {
    turns_->take(warp_size, [&](int lane) { f(lanes_[lane], lane); });
  }
  template <typename F>
  float sum_lanes(F f) const {
    return tree_sum([&](int lane) { return f(lanes_[lane]); });
  }
  template <typename F>
  bool all_lanes(F f) const {
    bool all = true;
    for (const Lane& lane : lanes_) all = f(lane) && all;
    return all;
  }
  template <typename F>
  float pick(int index, F f) const {
    return f(lanes_[index]);
  }
  template <typename F>
  void once(F f) const {
    turns_->take(warp_size, [&](int lane) { f(lanes_[lane], lane); });
  }
  void sync_lanes() const {}

 private:
  void let_see_drawn() {
    if (puts_) put(SharedLayout::drawn, number_);
    puts_ = false;
  }
  int count() const { return heads_ * threads_per_head_; }
  Seat seat(int i) const {
    return Seat::of<actions, units>(i / threads_per_head_, i % threads_per_head_,
                                    threads_per_head_ * units);
  }

  int threads_per_head_, heads_;
  Turns* turns_;
  std::vector<Unit> units_;
  std::function<void()> sent_;
  bool puts_ = false;
  int number_ = -1;
  Lane lanes_[warp_size];
};

// blocks: of a cluster, all of them, each with a team and a memory of its own.
template <int actions, int units, int blocks, bool roomy, bool queued, bool crowded, typename Precision>
class HostBlock {
 public:
  using Team = HostTeam<actions, units, roomy, queued, crowded>;

  HostBlock(const Job& job, int64_t index, int64_t count, uint32_t turn)
      : index_(index),
        count_(count),
        at_(job.shared),
        turns_{turn},
        memory_(blocks * at_.floats, std::numeric_limits<float>::quiet_NaN()) {
    for (int r = 0; r < blocks; ++r)
      walks_.emplace_back(Team(job, memory_.data() + r * at_.floats, &turns_), job);
  }

  int64_t index() const { return index_; }
  int64_t count() const { return count_; }
  template <typename F>
  int find(F f) const {
    for (int i = 0; i < warp_size; ++i)
      if (f(i)) return i;
    return warp_size;
  }

  // Nobody may wait for those who did not arrive, nor arrive again before.
  void arrive() { arrive_or_wait(true); }
  void wait() { arrive_or_wait(false); }

  // What is given comes as late as it may.
  void expect(int bytes) { expected_ = bytes; }
  void give(int to, float number) { given_.emplace_back(to, number); }
  void receive() {
    if (expected_ != static_cast<int>(given_.size() * sizeof(float)))
      throw std::logic_error("other bytes are expected than were given");
    for (const auto& [to, number] : given_) memory_[to] = number;
    given_.clear();
  }

  template <typename F>
  void teams(F f) {
    turns_.take(blocks, [&](int r) { f(walks_[r], r); });
  }

 private:
  void arrive_or_wait(bool arrives) {
    if (arrives == arrived_) throw std::logic_error("a cluster's blocks arrive and wait in turn");
    arrived_ = arrives;
  }

  int64_t index_, count_;
  bool arrived_ = false;
  int expected_ = 0;
  std::vector<std::pair<int, float>> given_;
  const SharedLayout at_;
  Turns turns_;
  std::vector<float> memory_;
  std::vector<Walk<actions, Precision, Team>> walks_;
};

}  // namespace dtag::cuda
