// The warpgroups and clusters of csrc/cuda/device_warpgroup.cuh as loops on the host.
//
// Multiplications read shared memory by the numbers of their tiles' descriptions when it is waited for them:
// until then the sums are NaN, and numbers that changed are found out.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "dense_tiles.h"
#include "host_team.h"

namespace dtag::cuda {

class HostWarpgroups {
 public:
  using Thread = TileThread;

  HostWarpgroups(char* memory, char* other, Turns* turns)
      : memory_(memory), other_(other), turns_(turns), threads_(TileLayout::threads) {
    std::memset(threads_.data(), 0xff, sizeof(Thread) * threads_.size());  // NaN
  }

  char* memory() const { return memory_; }
  // The device would wait forever for bytes that do not come, and copies by sixteen.
  void expect(int batch, int bytes) { missing_[batch] += bytes; }
  void copy(int batch, int byte, const void* from, int bytes) {
    if (byte % 16 != 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
      throw std::logic_error("a copy that is not aligned");
    std::memcpy(memory_ + byte, from, bytes);
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
  uint32_t address() const { return first_address; }

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
    for (int warp = 0; warp < TileLayout::threads / warp_size; ++warp) {
      double left[16][numbers], right[numbers][8];
      for (int lane = 0; lane < warp_size; ++lane) {
        const HalfFactors<numbers> factors = factors_of(std::as_const(threads_[warp * warp_size + lane]));
        for (int n = 0; n < numbers / 2; ++n)
          left[lane / 4 + n / 2 % 2 * 8][n / 4 * 8 + lane % 4 * 2 + n % 2] = half_of(factors.left[n / 2], n % 2);
        for (int n = 0; n < numbers / 4; ++n)
          right[n / 2 * 8 + lane % 4 * 2 + n % 2][lane / 4] = half_of(factors.right[n / 2], n % 2);
      }
      for (int lane = 0; lane < warp_size; ++lane)
        for (int n = 0; n < 4; ++n) {
          float& to = sums_of(threads_[warp * warp_size + lane])[n];
          double sum = to;
          for (int k = 0; k < numbers; ++k) sum += left[lane / 4 + n / 2 * 8][k] * right[k][lane % 4 * 2 + n % 2];
          to = toward_zero(sum);
        }
    }
  }
  template <bool transposed>
  void get_first(const TilePlace& at, int block, uint32_t (&words)[4]) const {
    for (int word = 0; word < 4; ++word) {
      uint16_t pair[2];
      for (int n = 0; n < 2; ++n) {
        const int row = transposed ? at.lane() % 4 * 2 + n : at.lane() / 4;
        const int column = transposed ? at.lane() / 4 : at.lane() % 4 * 2 + n;
        const int unit = 16 * block + word % 2 * 8 + row;
        const int part = TileLayout::first + word / 2 * TileLayout::first_part;
        std::memcpy(&pair[n], memory_ + part + 16 * unit + 2 * column, 2);
      }
      std::memcpy(&words[word], pair, 4);
    }
  }

  void put(const TilePlace& at, int i, const uint32_t (&fragment)[4]) {
    const int block = at.group() * Thread::fragments + i;
    for (int word = 0; word < 4; ++word) std::memcpy(place_of(at, block, word), &fragment[word], 4);
  }
  void get(const TilePlace& at, int block, uint32_t (&fragment)[4]) const {
    for (int word = 0; word < 4; ++word) std::memcpy(&fragment[word], place_of(at, block, word), 4);
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
      const int lane = row % 8 * 4 + k % 8 / 2, word = row % 16 / 8 + k / 8 * 2;
      Thread& thread = threads_[group * TileLayout::group_threads + row / 16 * 32 + lane];
      return static_cast<uint16_t>(fragment_of(thread)[word] >> 16 * (k % 2));
    };
    multiply<64, true>(onto, sums, left, b, apart);
  }
  void commit() {
    groups_.push_back(std::move(group_));
    group_.clear();
  }
  template <int pending, typename SumsOf>
  void wait(SumsOf) {
    for (; groups_.size() > pending; groups_.pop_front())
      for (const auto& multiplication : groups_.front()) multiplication();
  }

 private:
  // Where the memory would lie on the device.
  static constexpr uint32_t first_address = 2048;

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
      group_.push_back([=] {
        double of[64][16], times[16][columns];
        for (int row = 0; row < 64; ++row)
          for (int k = 0; k < 16; ++k) {
            const uint16_t word = left(group, row, k);
            if (word != given[row * 16 + k]) throw std::logic_error("what is multiplied changed meanwhile");
            of[row][k] = number(word);
          }
        for (int k = 0; k < 16; ++k)
          for (int n = 0; n < columns; ++n) times[k][n] = number(word_at(by, transposed, k, n));
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

  char* place_of(const TilePlace& at, int block, int word) const {
    const int column = 16 * block;
    const int byte = at.row(word % 2) * 128 + 2 * (column % 64 + 8 * (word / 2) + 2 * at.pair());
    return memory_ + TileLayout::layer + column / 64 * TileLayout::layer_slab + swizzled(byte);
  }

  static double half_of(uint32_t word, int which) { return from_half(static_cast<uint16_t>(word >> 16 * which)); }

  // Tensor cores cut digits off.
  static float toward_zero(double sum) {
    const float nearest = static_cast<float>(sum);
    return std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
  }
  static double number(uint32_t bfloat16) {
    const uint32_t word = bfloat16 << 16;
    float x;
    std::memcpy(&x, &word, sizeof(x));
    return x;
  }

  // Number k of column n of a tile, as the descriptions of shared memory have it: those of a swizzle of 128
  // bytes, in CUTLASS's words ((8, n), (8, k)):((1, LBO), (8, SBO)) and ((8, n), 2):((8, SBO), 1) pieces; n = 1 of
  // the former, so that LBO has no meaning.
  uint16_t word_at(uint64_t tile, bool transposed, int k, int n) const {
    const auto field = [&](int from) { return static_cast<uint32_t>(tile >> from & 0x3fff) << 4; };
    if (tile >> 62 != 1) throw std::logic_error("not swizzled by 128 bytes");
    if (transposed && n >= 64) throw std::logic_error("more columns than lie together");
    const uint32_t start = field(0), stride = field(32);
    const uint32_t at = transposed ? start + k / 8 * stride + k % 8 * 128 + n * 2
                                   : start + n / 8 * stride + n % 8 * 128 + k * 2;
    const uint32_t exchanged = at ^ (at >> 3 & 0x70);
    uint16_t word;
    if (exchanged < first_address || exchanged - first_address + 2 > TileLayout::climbs)
      throw std::logic_error("a tile lies outside of the weights and the layer");
    std::memcpy(&word, memory_ + (exchanged - first_address), sizeof(word));
    return word;
  }

  int missing_[2] = {}, given_ = 0;
  char* memory_;
  char* other_;
  Turns* turns_;
  std::vector<Thread> threads_;
  std::vector<std::function<void()>> group_;
  std::deque<std::vector<std::function<void()>>> groups_;
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
