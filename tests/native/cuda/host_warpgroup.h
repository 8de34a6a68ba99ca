// The warpgroups and clusters of csrc/cuda/device_warpgroup.cuh as loops on the host.
//
// Multiplications read shared memory by the numbers of their tiles' descriptions when it is waited for them:
// until then the sums are NaN, and numbers that changed are found out.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "dense_tiles.h"
#include "host_team.h"
#include "tensor_cores.h"
#include "tile_memory.h"

namespace dtag::cuda {

class HostWarpgroups : public TileMemory {
 public:
  using Thread = TileThread;

  HostWarpgroups(char* memory, char* other, Turns* turns)
      : TileMemory(memory), other_(other), turns_(turns), threads_(TileLayout::threads) {
    std::memset(threads_.data(), 0xff, sizeof(Thread) * threads_.size());  // NaN
  }

  // The device would wait forever for bytes that do not come, and copies by sixteen.
  void expect(int batch, int bytes) { missing_[batch] += bytes; }
  void copy(int batch, int byte, const void* from, int bytes) {
    if (byte % 16 != 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
      throw std::logic_error("a copy that is not aligned");
    std::memcpy(memory() + byte, from, bytes);
    missing_[batch] -= bytes;
  }
  void arrived(int batch) const {
    if (missing_[batch] != 0) throw std::logic_error("other bytes than were expected");
  }
  template <typename Numbers>
  void give(int, int byte, const Numbers& numbers) {
    if (byte % sizeof(numbers) != 0) throw std::logic_error("a number that is not aligned");
    std::memcpy(other_ + byte, &numbers, sizeof(numbers));
    given_ += sizeof(numbers);
  }
  void receive(int) {
    if (given_ != TileLayout::sent_bytes) throw std::logic_error("other bytes than were expected");
    given_ = 0;
  }

  template <typename F>
  void each(F f) {
    turns_->take(TileLayout::threads, [&](int i) { f(threads_[i], TilePlace{i}); });
  }

  static int same(int x) { return x; }
  void forget() const {}
  void sync() const {}
  void sync_warps() const {}
  void sync_for_tensor_cores() const {}

  template <int count, typename Give, typename Take>
  void exchange(int distance, Give give, Take take) {
    std::vector<std::array<float[count], 1>> values(TileLayout::threads);
    each([&](Thread& thread, const TilePlace& at) { give(thread, at, values[at.thread][0]); });
    each([&](Thread& thread, const TilePlace& at) {
      take(thread, at, std::as_const(values[at.thread ^ distance][0]));
    });
  }

  template <int numbers, typename Factors, typename SumsOf>
  void add_product(Factors factors_of, SumsOf sums_of) {
    for (auto* warp = threads_.data(); warp != threads_.data() + threads_.size(); warp += warp_size) {
      HalfFactors<numbers> lanes[warp_size];
      for (int lane = 0; lane < warp_size; ++lane) lanes[lane] = factors_of(std::as_const(warp[lane]));
      const ProductOfHalves<numbers> product(lanes);
      for (int lane = 0; lane < warp_size; ++lane)
        for (int n = 0; n < 4; ++n) {
          float& to = sums_of(warp[lane])[n];
          to = product.add(lane, n, to);
        }
    }
  }
  void take_turn() const {}
  void pass_turn() const {}
  void fence() const {}
  template <typename SumsOf>
  void multiply(bool onto, SumsOf sums, int a, int b, int apart) {
    const uint64_t tile = wgmma_tile(address() + a, 1024);
    const auto left = [this, tile](int, int row, int k) { return word_at(tile, false, k, row); };
    multiply<128, false>(onto, sums, left, b, apart);
  }
  template <typename SumsOf, typename FragmentOf>
  void multiply_own(bool onto, SumsOf sums, FragmentOf fragment_of, int b, int apart) {
    const auto left = [this, fragment_of](int group, int row, int k) {
      Thread& thread = threads_[group * TileLayout::group_threads + row / 16 * 32 + fragment_lane(row, k)];
      return static_cast<uint16_t>(fragment_of(thread)[fragment_word(row, k)] >> 16 * (k % 2));
    };
    multiply<64, true>(onto, sums, left, b, apart);
  }
  void commit() { multiplications_.commit(); }
  template <int pending, typename SumsOf>
  void wait(SumsOf) {
    multiplications_.wait(pending);
  }

 private:
  // left(group, row, k): a number of A, of each warpgroup's.
  template <int columns, bool transposed, typename SumsOf, typename Left>
  void multiply(bool onto, SumsOf sums, Left left, int b, int apart) {
    for (int group = 0; group < TileLayout::groups; ++group) {
      const int first = group * TileLayout::group_threads;
      const uint64_t by = wgmma_tile(address() + b + group * apart, 1024);
      std::vector<uint16_t> given;
      for (int i = 0; i < 64 * 16; ++i) given.push_back(left(group, i / 16, i % 16));
      if (!onto)
        for (int i = 0; i < TileLayout::group_threads; ++i)
          for (float& sum : sums(threads_[first + i])) sum = std::numeric_limits<float>::quiet_NaN();
      multiplications_.begin([=] {
        double of[64][16], times[16][columns];
        for (int row = 0; row < 64; ++row)
          for (int k = 0; k < 16; ++k) {
            const uint16_t word = left(group, row, k);
            if (word != given[row * 16 + k]) throw std::logic_error("what is multiplied changed meanwhile");
            of[row][k] = number_of_bfloat16(word);
          }
        for (int k = 0; k < 16; ++k)
          for (int n = 0; n < columns; ++n) times[k][n] = number_of_bfloat16(word_at(by, transposed, k, n));
        for (int i = 0; i < TileLayout::group_threads; ++i)
          for (int d = 0; d < columns / 2; ++d) {
            const int row = i / 32 * 16 + i % 32 / 4 + 8 * (d / 2 % 2), column = d / 4 * 8 + i % 4 * 2 + d % 2;
            float& to = sums(threads_[first + i])[d];
            double sum = onto ? to : 0.0;
            for (int k = 0; k < 16; ++k) sum += of[row][k] * times[k][column];
            to = toward_zero(sum);
          }
      });
    }
  }

  int missing_[2] = {}, given_ = 0;
  char* other_;
  Turns* turns_;
  std::vector<Thread> threads_;
  Multiplications multiplications_;
};

template <int heads>
class HostCluster {
 public:
  HostCluster(const Job& job, int index, int count, uint32_t turn)
      : index_(index), count_(count), turns_{turn} {
    constexpr size_t bytes = TileLayout::bytes;
    for (int e = 0; e < heads; ++e) {
      memory_.emplace_back(std::make_unique<char[]>(bytes));
      std::memset(memory_.back().get(), 0xff, bytes);  // NaN
    }
    for (int e = 0; e < heads; ++e)
      tiles_.push_back(std::make_unique<Tiles>(
          HostWarpgroups(memory_[e].get(), memory_[heads - 1 - e].get(), &turns_), job, e));
  }

  int index() const { return index_; }
  int count() const { return count_; }
  void meet() const {}

  template <typename F>
  void blocks(F f) {
    turns_.take(heads, [&](int e) { f(*tiles_[e]); });
  }

 private:
  using Tiles = DenseTiles<heads, HostWarpgroups>;
  int index_, count_;
  Turns turns_;
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<std::unique_ptr<Tiles>> tiles_;
};

}  // namespace dtag::cuda
