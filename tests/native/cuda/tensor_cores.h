// What tensor cores do, for the host.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "dense_input.h"
#include "half.h"

namespace dtag::cuda {

// They cut digits off where they add: the sum exactly, cut to float32, is the least that they are seen to do.
inline float toward_zero(double sum) {
  const float nearest = static_cast<float>(sum);
  return std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}
inline double half_of(uint32_t word, int which) { return from_half(static_cast<uint16_t>(word >> 16 * which)); }
inline double number_of_bfloat16(uint32_t word) { return float_of_bits(word << 16); }

// Where number k of a row lies in a warp's fragments of A: the lane, and its word, of which it is half k % 2. Sums of
// eight columns lie in the same lanes.
constexpr int fragment_lane(int row, int k) { return row % 8 * 4 + k % 8 / 2; }
constexpr int fragment_word(int row, int k) { return row % 16 / 8 + k / 8 * 2; }

// mma.sync of a warp's factors, those of its lanes.
template <int numbers>
class ProductOfHalves {
 public:
  explicit ProductOfHalves(const HalfFactors<numbers>* lanes) {
    for (int lane = 0; lane < warp_size; ++lane)
      for (int k = lane % 4 * 2; k < numbers; k += k % 2 == 0 ? 1 : 7) {
        for (int row : {0, 1}) left_[lane / 4 + 8 * row][k] = half_of(lanes[lane].left[k / 8 * 2 + row], k % 2);
        right_[lane / 4][k] = half_of(lanes[lane].right[k / 8], k % 2);
      }
  }

  // To a sum, which is number n of a lane's.
  float add(int lane, int n, float sum) const {
    const double* const row = left_[lane / 4 + n / 2 * 8];
    const double* const column = right_[lane % 4 * 2 + n % 2];
    double to = sum;
    for (int k = 0; k < numbers; ++k) to += row[k] * column[k];
    return toward_zero(to);
  }

 private:
  double left_[16][numbers], right_[8][numbers];
};

// Multiplications that were begun, by groups: done when it is waited for them, which is as late as may be.
class Multiplications {
 public:
  void begin(std::function<void()> multiplication) { last_.push_back(std::move(multiplication)); }
  void commit() {
    groups_.push_back(std::move(last_));
    last_.clear();
  }
  // All groups but the last few.
  void wait(size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front())
      for (const auto& multiplication : groups_.front()) multiplication();
  }

 private:
  std::vector<std::function<void()>> last_;
  std::deque<std::vector<std::function<void()>>> groups_;
};

}  // namespace dtag::cuda
