// The warpgroups and clusters of csrc/cuda/device_warpgroup.cuh by fibers of the host.
//
// A multiplication reads its tiles when it begins and when it is waited for it; in between they may not change.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "dense_tiles.h"
#include "fibers.h"
#include "tensor_cores.h"
#include "tile_memory.h"

namespace dtag::cuda {

// What the threads of a block share.
struct TileBlock {
  TileBlock() : warps(TileLayout::threads / warp_size), memory(TileLayout::bytes, '\xff') {}  // NaN

  Barrier<true> barrier{TileLayout::threads};
  Barrier<false> turn{TileLayout::threads};
  std::vector<Warp> warps;
  Mark sent[2], batches[2];
  int unfenced = 0;  // threads that wrote what tensor cores are not to read yet
  std::vector<char> memory;
};

class FiberWarpgroups : public TileMemory {
 public:
  using Thread = TileThread;

  FiberWarpgroups(TileBlock* own, TileBlock* other, int thread)
      : TileMemory(own->memory.data()), block_(own), other_(other), place_{thread} {
    std::memset(static_cast<void*>(&thread_), 0xff, sizeof(thread_));  // NaN
  }

  void begin_marks() const {
    if (place_.thread > 0) return;
    for (Mark& mark : block_->batches) mark.begin();
    for (Mark& mark : block_->sent) {
      mark.begin();
      mark.expect(TileLayout::sent_bytes);
    }
  }
  void expect(int batch, int bytes) const {
    if (place_.thread == 0) block_->batches[batch].expect(bytes);
  }
  void copy(int batch, int byte, const void* from, int bytes) const {
    if (place_.thread > 0) return;
    copy_in_bulk(memory() + byte, from, bytes, &block_->batches[batch]);
  }
  void arrived(int batch) const { block_->batches[batch].wait(0); }
  template <typename Numbers>
  void give(int turn, int byte, const Numbers& numbers) const {
    std::memcpy(other_->memory.data() + byte, &numbers, sizeof(numbers));
    other_->sent[turn % 2].complete(sizeof(numbers));
  }
  void receive(int turn) const {
    Mark& mark = block_->sent[turn % 2];
    mark.wait(turn / 2 % 2);
    if (place_.thread == 0) mark.expect(TileLayout::sent_bytes);
  }

  template <typename F>
  void each(F f) {
    f(thread_, place_);
  }
  static int same(int x) { return x; }
  void forget() const {}
  void sync() const { block_->barrier.wait(); }
  void sync_warps() const { warp().sync(); }
  void sync_for_tensor_cores() {
    {
      const Unseen unseen;
      if (unfenced_) --block_->unfenced;
      unfenced_ = false;
    }
    sync();
  }

  template <int count, typename Give, typename Take>
  void exchange(int distance, Give give, Take take) {
    float values[count];
    give(thread_, place_, values);
    const auto all = warp().share(place_.lane(), values);
    take(thread_, place_, all.of[place_.lane() ^ distance]);
  }

  template <int numbers, typename Factors, typename SumsOf>
  void add_product(Factors factors_of, SumsOf sums_of) {
    const HalfFactors<numbers> own[1] = {factors_of(std::as_const(thread_))};
    const auto all = warp().share(place_.lane(), own);
    const ProductOfHalves<numbers> product(&all.of[0][0]);
    for (int n = 0; n < 4; ++n) {
      float& to = sums_of(thread_)[n];
      to = product.add(place_.lane(), n, to);
    }
  }

  void put(const TilePlace& at, int i, const uint32_t (&fragment)[4]) {
    TileMemory::put(at, i, fragment);
    const Unseen unseen;
    if (!unfenced_) ++block_->unfenced;
    unfenced_ = true;
  }

  void take_turn() const {
    if (place_.group() > 0) block_->turn.wait();
  }
  void pass_turn() const {
    if (place_.group() == 0) block_->turn.arrive();
  }
  void fence() const {}
  template <typename SumsOf>
  void multiply(bool onto, SumsOf sums, int a, int b, int apart) {
    const uint64_t tile = wgmma_tile(address() + a, 1024);
    const auto left = [this, tile] {
      Left words;
      for (int r = 0; r < 2; ++r)
        for (int k = 0; k < 16; ++k)
          words[static_cast<size_t>(16 * r + k)] = word_at(tile, false, k, place_.first_row() + row(r));
      return words;
    };
    {
      const Unseen unseen;
      if (block_->unfenced > 0) throw std::logic_error("multiplied is what tensor cores do not see yet");
    }
    begin<128, false>(onto, sums(thread_), left, b, apart);
  }
  template <typename SumsOf, typename FragmentOf>
  void multiply_own(bool onto, SumsOf sums, FragmentOf fragment_of, int b, int apart) {
    const uint32_t(*fragment)[4] = &fragment_of(thread_);
    const auto all = warp().share(place_.lane(), *fragment);
    Left words;
    for (int r = 0; r < 2; ++r)
      for (int k = 0; k < 16; ++k) {
        const uint32_t word = all.of[fragment_lane(row(r), k)][fragment_word(row(r), k)];
        words[static_cast<size_t>(16 * r + k)] = static_cast<uint16_t>(word >> 16 * (k % 2));
      }
    std::array<uint32_t, 4> given;
    std::copy(*fragment, *fragment + 4, given.begin());
    const auto left = [=] {
      if (!std::equal(given.begin(), given.end(), *fragment))
        throw std::logic_error("registers that are multiplied changed meanwhile");
      return words;
    };
    begin<64, true>(onto, sums(thread_), left, b, apart);
  }
  void commit() { multiplications_.commit(); }
  template <int pending, typename SumsOf>
  void wait(SumsOf) {
    multiplications_.wait(pending);
  }

 private:
  using Left = std::array<uint16_t, 32>;  // of the thread's two rows 16 numbers each

  int row(int r) const { return place_.lane() / 4 + 8 * r; }  // of its warp's
  Warp& warp() const { return block_->warps[static_cast<size_t>(place_.warp())]; }

  template <int columns, bool transposed, typename LeftOf>
  void begin(bool onto, float (&sums)[columns / 2], LeftOf left, int b, int apart) {
    const uint64_t by = wgmma_tile(address() + b + place_.group() * apart, 1024);
    const Left given = left();
    if (!onto)
      for (float& sum : sums) sum = std::numeric_limits<float>::quiet_NaN();
    multiplications_.begin([=, this_ = this, to = &sums[0]] {
      if (left() != given) throw std::logic_error("what is multiplied changed meanwhile");
      double times[columns / 4][16];
      for (int n = 0; n < columns / 4; ++n)
        for (int k = 0; k < 16; ++k)
          times[n][k] =
              number_of_bfloat16(this_->word_at(by, transposed, k, n / 2 * 8 + this_->place_.lane() % 4 * 2 + n % 2));
      for (int d = 0; d < columns / 2; ++d) {
        double sum = onto ? to[d] : 0.0;
        for (int k = 0; k < 16; ++k)
          sum += number_of_bfloat16(given[static_cast<size_t>(16 * (d / 2 % 2) + k)]) * times[d / 4 * 2 + d % 2][k];
        to[d] = toward_zero(sum);
      }
    });
  }

  TileBlock* block_;
  TileBlock* other_;
  TilePlace place_;
  Thread thread_;
  bool unfenced_ = false;
  Multiplications multiplications_;
};

// A thread's part of it.
template <int heads>
class FiberCluster {
 public:
  // What its blocks share.
  struct Blocks {
    Blocks(int of_index, int of_count) : index(of_index), count(of_count) {}
    int index, count;
    TileBlock of[heads];
    Barrier<true> all{heads * TileLayout::threads};
  };

  FiberCluster(const Job& job, Blocks* blocks, int head, int thread)
      : blocks_(blocks),
        tiles_(FiberWarpgroups(&blocks->of[head], &blocks->of[heads - 1 - head], thread), job, head) {
    FiberWarpgroups(&blocks->of[head], nullptr, thread).begin_marks();
    arrived_ = blocks->all.arrive();
  }

  // All threads of all of its blocks, which refine the tiles that are the cluster's.
  static void run(const Job& job, int index, int count, uint32_t seed) {
    Blocks blocks(index, count);
    Fibers threads(seed);
    for (int head = 0; head < heads; ++head)
      for (int thread = 0; thread < TileLayout::threads; ++thread)
        threads.add([&job, &blocks, head, thread] {
          FiberCluster cluster(job, &blocks, head, thread);
          refine_tiles(cluster, job);
        });
    threads.run();
  }

  int index() const { return blocks_->index; }
  int count() const { return blocks_->count; }
  void meet() const { blocks_->all.await(arrived_); }
  template <typename F>
  void blocks(F f) {
    f(tiles_);
  }

 private:
  Blocks* blocks_;
  int arrived_;
  DenseTiles<heads, FiberWarpgroups> tiles_;
};

}  // namespace dtag::cuda
