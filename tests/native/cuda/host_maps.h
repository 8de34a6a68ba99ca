// Blocks of csrc/cuda/maps.h as loops on the host. What tensor cores and copies do is done at the wait for
// it, so that what was not waited for is seen as a wrong result.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "job.h"
#include "maps_block.h"
#include "tensor_cores.h"

namespace dtag::cuda {

template <typename Lane>
struct HostMapWarp {
  Lane* lanes;
  int index;

  template <typename F>
  void each(F f) {
    for (int lane = 0; lane < warp_size; ++lane) f(lanes[lane], lane);
  }
  void sync() const {}
  template <typename F>
  float largest(F f) const {
    float found = 0.0f;
    for (int lane = 0; lane < warp_size; ++lane) found = std::fmax(found, f(lanes[lane]));
    return found;
  }
};

template <int columns, int units>
class HostGroup {
 public:
  using Lane = MapLane<columns, units>;

  HostGroup(int index, unsigned char* shared)
      : index_(index), shared_(shared), lanes_(warps_of_group * warp_size) {
    std::memset(static_cast<void*>(lanes_.data()), 0xff, lanes_.size() * sizeof(lanes_[0]));  // NaN
  }

  unsigned char* shared() const { return shared_; }
  int index() const { return index_; }

  template <typename F>
  void warps(F f) {
    for (int warp = warps_of_group - 1; warp >= 0; --warp) {
      HostMapWarp<Lane> of{lanes_.data() + warp * warp_size, warp};
      f(of);
    }
  }

  template <typename A>
  void multiply(A a_of, int byte) {
    multiplications_.begin([this, a_of, byte] { product(a_of, byte); });
  }
  void fence() const {}
  void take_turn() const {}
  void pass_turn(bool) const {}
  void commit() { multiplications_.commit(); }
  template <int pending>
  void wait() {
    multiplications_.wait(pending);
  }

 private:
  template <typename A>
  void product(A a_of, int byte) {
    double of[16 * warps_of_group][depth], times[columns][depth];
    for (int k = 0; k < depth; ++k) {
      for (int row = 0; row < 16 * warps_of_group; ++row)
        of[row][k] = half_of(a_of(lanes_[row / 16 * warp_size + fragment_lane(row, k)])[fragment_word(row, k)], k % 2);
      for (int column = 0; column < columns; ++column) {
        uint16_t weight;
        // Relative to a multiple of 1024, as the device's exchange is.
        std::memcpy(&weight, shared_ + swizzled(static_cast<uint32_t>(byte + column * 128 + k * 2)), sizeof(weight));
        times[column][k] = from_half(weight);
      }
    }
    for (int row = 0; row < 16 * warps_of_group; ++row)
      for (int column = 0; column < columns; ++column) {
        float& d = lanes_[row / 16 * warp_size + fragment_lane(row, column)].d[column / 8 * 4 + row % 16 / 8 * 2 + column % 2];
        double sum = d;
        for (int k = 0; k < depth; ++k) sum += of[row][k] * times[column][k];
        d = toward_zero(sum);
      }
  }

  int index_;
  unsigned char* shared_;
  std::vector<Lane> lanes_;
  Multiplications multiplications_;
};

template <int columns, int units>
class HostMapBlock {
 public:
  struct Place {
    int kind, index, count, groups;
  };

  HostMapBlock(const Job& job, const MapsLayout& at, const Place& place)
      : place_(place), memory_(static_cast<size_t>(at.bytes), 0xff) {
    for (int group = 0; group < place.groups; ++group)
      builders_.emplace_back(HostGroup<columns, units>(group, memory_.data()), job, at, place.kind);
  }

  int kind() const { return place_.kind; }
  int index() const { return place_.index; }
  int count() const { return place_.count; }
  int groups_of() const { return place_.groups; }

  // As many bytes as are sent.
  void expect(int first, int second) { expected_[0] = first, expected_[1] = second; }
  void copy(int batch, int byte, const void* from, int bytes) {
    expected_[batch] -= bytes;
    if (byte % 16 != 0 || bytes % 16 != 0) throw std::logic_error("16 bytes are copied at a time");
    copies_[batch].push_back([this, byte, from, bytes] { std::memcpy(memory_.data() + byte, from, bytes); });
  }
  void wait(int batch) {
    if (expected_[batch] != 0) throw std::logic_error("waits for other bytes than were sent");
    for (const auto& copy : copies_[batch]) copy();
  }
  template <typename F>
  void groups(F f) {
    for (int group = place_.groups - 1; group >= 0; --group) f(builders_[static_cast<size_t>(group)], group);
  }

 private:
  Place place_;
  int expected_[2] = {};
  std::vector<unsigned char> memory_;
  std::vector<std::function<void()>> copies_[2];
  std::vector<MapBuilder<columns, units, HostGroup<columns, units>>> builders_;
};

}  // namespace dtag::cuda
