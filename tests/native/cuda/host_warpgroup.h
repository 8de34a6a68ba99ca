// The warpgroups and clusters of csrc/cuda/device_warpgroup.cuh as loops on the host.
//
// Multiplications read shared memory by the numbers of their tile's description, and registers by the
// instruction's layout of fragments, when it is waited for them: until then the sums are NaN, and a fragment
// that changed is found out.
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

template <int actions>
class HostWarpgroup {
 public:
  using Thread = TileThread<actions>;
  using Fragment = uint32_t (&)[4];

  HostWarpgroup(char* memory, char* other, Turns* turns)
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

  void fence() const {}
  void fence_memory() const {}
  template <typename F>
  void know(F) const {}

  template <bool transposed, typename SumsOf, typename FragmentOf>
  void multiply(bool onto, SumsOf sums, FragmentOf fragment, uint64_t tile) {
    std::vector<std::array<uint32_t, 4>> given;
    for (Thread& thread : threads_) {
      const Fragment words = fragment(thread);
      given.push_back({words[0], words[1], words[2], words[3]});
      if (!onto) for (float& sum : sums(thread)) sum = std::numeric_limits<float>::quiet_NaN();
    }
    group_.push_back([this, given, onto, sums, fragment, tile] {
      constexpr int size = std::extent_v<std::remove_reference_t<decltype(sums(threads_[0]))>>;
      double a[64][16], b[16][2 * size];
      for (int i = 0; i < TileLayout::threads; ++i) {
        const Fragment words = fragment(threads_[i]);
        for (int word = 0; word < 4; ++word) {
          if (words[word] != given[i][word]) throw std::logic_error("a fragment changed meanwhile");
          const int row = i / 32 * 16 + i % 32 / 4 + 8 * (word % 2), column = i % 4 * 2 + 8 * (word / 2);
          a[row][column] = number(words[word] & 0xffff);
          a[row][column + 1] = number(words[word] >> 16);
        }
      }
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 2 * size; ++n) b[k][n] = number(word_at(tile, transposed, k, n));
      for (int i = 0; i < TileLayout::threads; ++i)
        for (int d = 0; d < size; ++d) {
          const int row = i / 32 * 16 + i % 32 / 4 + 8 * (d / 2 % 2), column = d / 4 * 8 + i % 4 * 2 + d % 2;
          float& to = sums(threads_[i])[d];
          double sum = onto ? to : 0.0;
          for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
          to = static_cast<float>(sum);
          if (std::fabs(to) > std::fabs(sum)) to = std::nextafter(to, 0.0f);
        }
    });
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
  template <typename FragmentsOf>
  void keep(FragmentsOf) {
    if (!group_.empty() || !groups_.empty()) throw std::logic_error("something is still multiplied");
  }

 private:
  // Where the memory would lie on the device.
  static constexpr uint32_t first_address = 2048;

  static double number(uint32_t bfloat16) {
    const uint32_t word = bfloat16 << 16;
    float x;
    std::memcpy(&x, &word, sizeof(x));
    return x;
  }

  // Row k and column n of a tile, as the descriptions of shared memory have it: those of a swizzle of 128
  // bytes, in CUTLASS's words ((8, n), (8, k)):((1, LBO), (8, SBO)) and ((8, n), 2):((8, SBO), 1) pieces.
  uint32_t word_at(uint64_t tile, bool transposed, int k, int n) const {
    const auto field = [&](int from) { return static_cast<uint32_t>(tile >> from & 0x3fff) << 4; };
    if (tile >> 62 != 1) throw std::logic_error("not swizzled by 128 bytes");
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    const uint32_t at = transposed ? start + n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2
                                   : start + n / 8 * stride + n % 8 * 128 + k * 2;
    const uint32_t exchanged = at ^ (at >> 3 & 0x70);
    uint16_t word;
    if (exchanged < first_address || exchanged - first_address + 2 > TileLayout::share)
      throw std::logic_error("a tile lies outside of the weights");
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

template <int actions, int heads>
class HostCluster {
 public:
  HostCluster(const Job& job, int index, int count, uint32_t turn)
      : index_(index), count_(count), turns_{turn} {
    constexpr size_t bytes = TileLayout::bytes(actions);
    for (int e = 0; e < heads; ++e) {
      memory_.emplace_back(std::make_unique<char[]>(bytes));
      std::memset(memory_.back().get(), 0xff, bytes);  // NaN
    }
    for (int e = 0; e < heads; ++e)
      tiles_.push_back(std::make_unique<Tiles>(
          HostWarpgroup<actions>(memory_[e].get(), memory_[heads - 1 - e].get(), &turns_), job, e));
  }

  int index() const { return index_; }
  int count() const { return count_; }
  void meet() const {}

  template <typename F>
  void blocks(F f) {
    turns_.take(heads, [&](int e) { f(*tiles_[e]); });
  }

 private:
  using Tiles = DenseTiles<actions, heads, HostWarpgroup<actions>>;
  int index_, count_;
  Turns turns_;
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<std::unique_ptr<Tiles>> tiles_;
};

}  // namespace dtag::cuda
