// The blocks of csrc/cuda/maps.cu by fibers of the host.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "fibers.h"
#include "maps_block.h"
#include "tensor_cores.h"

namespace dtag::cuda {

// What the threads of a block share.
struct MapBlock {
  MapBlock(const MapsLayout& at, int of_groups)
      : groups(of_groups),
        barrier(of_groups * warps_of_group * warp_size),
        warps(static_cast<size_t>(of_groups * warps_of_group)),
        memory(static_cast<size_t>(at.bytes), 0xff) {}  // NaN

  int groups;
  Barrier<true> barrier;
  Barrier<false> turns[most_groups] = {Barrier<false>(256), Barrier<false>(256), Barrier<false>(256)};
  std::vector<Warp> warps;
  Mark batches[2];
  std::vector<unsigned char> memory;
};

template <typename Lane>
struct FiberMapWarp {
  Lane& own;
  int lane, index;  // index: of the group's
  Warp* warp;

  template <typename F>
  void each(F f) const {
    f(own, lane);
  }
  void sync() const { warp->sync(); }
  template <typename F>
  float largest(F f) const {
    const float of[1] = {f(own)};
    const auto all = warp->share(lane, of);
    float found = 0.0f;
    for (const auto& one : all.of) found = std::fmax(found, one[0]);
    return found;
  }
};

template <int columns, int units>
class FiberGroup {
 public:
  using Lane = MapLane<columns, units>;

  FiberGroup(MapBlock* block, int thread) : block_(block), thread_(thread) {
    std::memset(static_cast<void*>(&lane_), 0xff, sizeof(lane_));  // NaN
  }

  unsigned char* shared() const { return block_->memory.data(); }
  int index() const { return thread_ / (warps_of_group * warp_size); }

  template <typename F>
  void warps(F f) {
    FiberMapWarp<Lane> warp{lane_, lane(), thread_ / warp_size % warps_of_group, &own_warp()};
    f(warp);
  }

  template <typename A>
  void multiply(A a_of, int byte) {
    const uint32_t(*own)[4] = &a_of(lane_);
    const auto all = own_warp().share(lane(), *own);
    std::array<uint32_t, 4> given;
    std::copy(*own, *own + 4, given.begin());
    std::array<std::array<double, depth>, 2> left;  // of the lane's two rows
    for (int r = 0; r < 2; ++r)
      for (int k = 0; k < depth; ++k)
        left[static_cast<size_t>(r)][static_cast<size_t>(k)] =
            half_of(all.of[fragment_lane(lane() / 4, k)][fragment_word(8 * r, k)], k % 2);
    multiplications_.begin([=, this_ = this] {
      if (!std::equal(given.begin(), given.end(), *own))
        throw std::logic_error("registers that are multiplied changed meanwhile");
      for (int i = 0; i < columns / 2; ++i) {
        float& d = this_->lane_.d[i];
        const int column = i / 4 * 8 + this_->lane() % 4 * 2 + i % 2;
        double sum = d;
        for (int k = 0; k < depth; ++k) {
          // Relative to a multiple of 1024, as the device's exchange is.
          const uint32_t from = swizzled(static_cast<uint32_t>(byte + column * 128 + k * 2));
          uint16_t weight;
          std::memcpy(&weight, this_->shared() + from, sizeof(weight));
          sum += left[static_cast<size_t>(i / 2 % 2)][static_cast<size_t>(k)] * from_half(weight);
        }
        d = toward_zero(sum);
      }
    });
  }
  void fence() const {}
  void commit() { multiplications_.commit(); }
  template <int pending>
  void wait() {
    multiplications_.wait(pending);
  }

  void take_turn() {
    if (!takes_turns) return;
    if (took_turn_ || index() > 0) block_->turns[index()].wait();
    took_turn_ = true;
  }
  void pass_turn(bool last) const {
    if (!takes_turns) return;
    const int next = index() + 1 < block_->groups ? index() + 1 : 0;
    if (next > 0 || !last) block_->turns[next].arrive();
  }

 private:
  static constexpr bool takes_turns = units * warp_size <= 256;

  int lane() const { return thread_ % warp_size; }
  Warp& own_warp() const { return block_->warps[static_cast<size_t>(thread_ / warp_size)]; }

  MapBlock* block_;
  int thread_;
  bool took_turn_ = false;
  Lane lane_;
  Multiplications multiplications_;
};

// A thread's part of it.
template <int columns, int units>
class FiberMapBlock {
 public:
  FiberMapBlock(const Job& job, const MapsLayout& at, MapBlock* block, int kind, int index, int count, int thread)
      : kind_(kind),
        index_(index),
        count_(count),
        thread_(thread),
        block_(block),
        builder_(FiberGroup<columns, units>(block, thread), job, at, kind) {}

  // All threads of it, which build the maps of the tiles that are the block's.
  static void run(const Job& job, const MapsLayout& at, int groups, int kind, int index, int count, uint32_t seed) {
    MapBlock shared(at, groups);
    Fibers threads(seed);
    for (int thread = 0; thread < groups * warps_of_group * warp_size; ++thread)
      threads.add([&, thread] {
        FiberMapBlock block(job, at, &shared, kind, index, count, thread);
        build_maps<columns>(block, job, at);
      });
    threads.run();
  }

  int kind() const { return kind_; }
  int index() const { return index_; }
  int count() const { return count_; }
  int groups_of() const { return block_->groups; }

  void expect(int first, int second) const {
    if (thread_ == 0) {
      for (Mark& mark : block_->batches) mark.begin();
      block_->batches[0].expect(first);
      block_->batches[1].expect(second);
    }
    block_->barrier.wait();
  }
  void copy(int batch, int byte, const void* from, int bytes) const {
    if (thread_ > 0) return;
    copy_in_bulk(block_->memory.data() + byte, from, bytes, &block_->batches[batch]);
  }
  void wait(int batch) const { block_->batches[batch].wait(0); }
  template <typename F>
  void groups(F f) {
    f(builder_, thread_ / (warps_of_group * warp_size));
  }

 private:
  int kind_, index_, count_, thread_;
  MapBlock* block_;
  MapBuilder<columns, units, FiberGroup<columns, units>> builder_;
};

}  // namespace dtag::cuda
