// The shared memory of a row's threads, and the order in which a warp adds up.
#pragma once

#include <cstring>

#include "job.h"

namespace dtag::cuda {

class TeamMemory {
 public:
  explicit TeamMemory(float* shared) : shared_(shared) {}

  float* shared() const { return shared_; }
  int drawn() const {
    int number;
    std::memcpy(&number, shared_ + SharedLayout::drawn, sizeof(number));
    return number;
  }

 protected:
  template <typename Word>
  void put(int to, Word value) const {
    std::memcpy(shared_ + to, &value, sizeof(value));
  }

  // In the order of the device's exchanges between lanes.
  template <typename F>
  static float tree_sum(F f) {
    float x[warp_size];
    for (int lane = 0; lane < warp_size; ++lane) x[lane] = f(lane);
    for (int offset = 1; offset < warp_size; offset *= 2)
      for (int lane = 0; lane < warp_size; lane += 2 * offset) x[lane] += x[lane + offset];
    return x[0];
  }

 private:
  float* shared_;
};

}  // namespace dtag::cuda
