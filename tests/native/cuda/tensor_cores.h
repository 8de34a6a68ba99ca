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

// mma.sync of a warp's factors: to a sum, of a row and a column.
template <int numbers>
float add_halves(const HalfFactors<numbers>* lanes, int row, int column, float sum) {
  double to = sum;
  for (int k = 0; k < numbers; ++k)
    to += half_of(lanes[row % 8 * 4 + k % 8 / 2].left[k / 8 * 2 + row / 8], k % 2) *
          half_of(lanes[column * 4 + k % 8 / 2].right[k / 8], k % 2);
  return toward_zero(to);
}

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
