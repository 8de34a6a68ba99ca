// What training does to every element of a tensor: GELU with its slope, dropout, and LAMB's step.
#pragma once

#include <algorithm>

#include "../phases.h"
#include "../training.h"
#include "activations.h"
#include "product_tile.h"

namespace dtag {
inline namespace DTAG_TARGET {

constexpr int64_t block = 1 << 14;  // elements of an item of work

inline int blocks(int64_t count) { return static_cast<int>((count + block - 1) / block); }

// Calls body(first, count) for the blocks of so many elements.
template <typename Body>
struct Blocks {
  int64_t elements;
  Body body;

  int count(int) const { return blocks(elements); }
  void item(int, int i) const { body(i * block, std::min(block, elements - i * block)); }
};
template <typename Body>
void for_blocks(int64_t elements, int threads, const Body& body) {
  run_phases(threads, 1, Blocks<Body>{elements, body});
}

inline void gelu(const float* x, float* value, float* slope, int64_t elements, int threads) {
  for_blocks(elements, threads, [=](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; i += Vec::lanes) {
      const int64_t left = first + count - i;
      if (left >= Vec::lanes) {
        const VecValueAndSlope at = activate<Activation::gelu>(load(x + i), zero());
        store(value + i, at.value);
        store(slope + i, at.slope);
        continue;
      }
      float lane[Vec::lanes] = {};
      std::copy_n(x + i, left, lane);
      const VecValueAndSlope at = activate<Activation::gelu>(load(lane), zero());
      store(lane, at.value);
      std::copy_n(lane, left, value + i);
      store(lane, at.slope);
      std::copy_n(lane, left, slope + i);
    }
  });
}

// A hash of an element's number: two rounds of multiplication and shifts (Wellons's lowbias32), half
// of the seed before and half between.
inline uint32_t hashed(uint32_t x, uint64_t seed) {
  x += static_cast<uint32_t>(seed);
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x += static_cast<uint32_t>(seed >> 32);
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

inline void dropout(const float* x, float* out, int64_t elements, const Dropout& how, int threads) {
  for_blocks(elements, threads, [=](int64_t first, int64_t count) {
    const float* __restrict const from = x + first;
    float* __restrict const to = out + first;
    const uint32_t start = static_cast<uint32_t>(first), n = static_cast<uint32_t>(count);
    const uint64_t seed = how.seed;
    const uint32_t threshold = how.threshold;
    const float scale = how.scale;
    for (uint32_t i = 0; i < n; ++i)
      to[i] = from[i] * (hashed(start + i, seed) < threshold ? 0.0f : scale);
  });
}

// Phase 1: the averages of the gradient and its square; the squared norms of parameters and steps,
// of each block. Phase 2: the steps, scaled by the norms of their tensor.
class LambStep {
 public:
  LambStep(const LambTensor* tensors, int tensor_count, const Lamb& lamb, double* sums)
      : tensors_(tensors), lamb_(lamb), sums_(sums) {
    for (int t = 0; t < tensor_count; ++t) items_ += blocks(tensors[t].elements);
  }

  int count(int) const { return items_; }

  void item(int phase, int i) const {
    const LambTensor* tensor = tensors_;
    int own = i;  // the block's number in its tensor
    for (; own >= blocks(tensor->elements); ++tensor) own -= blocks(tensor->elements);
    const int64_t first = own * block, count = std::min(block, tensor->elements - first);
    float scale = 1.0f;
    if (phase == 1 && lamb_.weight_decay != 0.0f) {
      double norm = 0.0, of_step = 0.0;
      for (int b = i - own; b < i - own + blocks(tensor->elements); ++b)
        norm += sums_[2 * b], of_step += sums_[2 * b + 1];
      if (norm > 0.0 && of_step > 0.0) scale = root(norm / of_step);
    }
    Vec norm = zero(), of_step = zero();
    for (int64_t j = first; j < first + count; j += Vec::lanes) {
      const int64_t left = first + count - j;
      const LambTensor at{tensor->value + j, tensor->gradient + j, tensor->mean + j,
                          tensor->square + j, 0};
      if (left >= Vec::lanes) {
        vector(at, phase, scale, &norm, &of_step);
        continue;
      }
      float lane[4][Vec::lanes] = {};
      std::copy_n(at.value, left, lane[0]);
      std::copy_n(at.gradient, left, lane[1]);
      std::copy_n(at.mean, left, lane[2]);
      std::copy_n(at.square, left, lane[3]);
      vector({lane[0], lane[1], lane[2], lane[3], 0}, phase, scale, &norm, &of_step);
      std::copy_n(lane[0], left, at.value);
      std::copy_n(lane[2], left, at.mean);
      std::copy_n(lane[3], left, at.square);
    }
    if (phase == 0) sums_[2 * i] = sum(norm), sums_[2 * i + 1] = sum(of_step);
  }

 private:
  void vector(const LambTensor& at, int phase, float scale, Vec* norm, Vec* of_step) const {
    const Vec value = load(at.value);
    Vec mean = load(at.mean), square = load(at.square);
    if (phase == 0) {
      const Vec gradient = load(at.gradient) * broadcast(lamb_.gradient_factor);
      mean = fma(gradient - mean, narrow(1.0 - lamb_.beta1), mean);
      square = fma(gradient * gradient, narrow(1.0 - lamb_.beta2),
                   square * narrow(lamb_.beta2));
      store(at.mean, mean);
      store(at.square, square);
    }
    const Vec below = fma(square_root(square), broadcast(lamb_.root_factor), broadcast(lamb_.epsilon));
    const Vec step =
        fma(value, broadcast(lamb_.weight_decay), mean * broadcast(lamb_.mean_factor) / below);
    if (phase == 0) {
      *norm = fma(value, value, *norm);
      *of_step = fma(step, step, *of_step);
    } else {
      store(at.value, fma(step, broadcast(-lamb_.rate * scale), value));
    }
  }

  static float root(double x) {
    float lane[Vec::lanes];
    store(lane, square_root(broadcast(static_cast<float>(x))));
    return lane[0];
  }

  const LambTensor* const tensors_;
  const Lamb& lamb_;
  double* const sums_;
  int items_ = 0;
};

inline int64_t lamb_sums(const LambTensor* tensors, int count) {
  int64_t items = 0;
  for (int t = 0; t < count; ++t) items += blocks(tensors[t].elements);
  return 2 * items;
}

inline void lamb_step(const LambTensor* tensors, int count, const Lamb& lamb, double* sums,
                      int threads) {
  run_phases(threads, 2, LambStep(tensors, count, lamb, sums));
}

}  // namespace DTAG_TARGET
}  // namespace dtag
