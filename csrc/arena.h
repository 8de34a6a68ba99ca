// The parts of one block of floats, handed out one after another.
#pragma once

#include <cstddef>

#include "refine.h"

namespace dtag {

// Of a block of zeros; with a null block it only adds up the sizes. Parts start on multiples of 64
// bytes if the block does.
class Arena {
 public:
  explicit Arena(float* block) : block_(block) {}

  float* take(size_t floats) {
    float* const taken = block_ == nullptr ? nullptr : block_ + used_;
    used_ += (floats + padding - 1) / padding * padding;
    return taken;
  }
  size_t used() const { return used_; }

 private:
  float* block_;
  size_t used_ = 0;
};

}  // namespace dtag
