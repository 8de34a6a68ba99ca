// The loops over contiguous floats that everything else is made of. They are written so
// that a compiler may vectorise them without reordering any sum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refine.h"
#include "target.h"

namespace dtag {
inline namespace DTAG_TARGET {

// The indices of the numbers in x [n] that a product has to visit; returns how many. A zero is
// left out only if the weights it would meet are finite, because 0 * inf is NaN.
inline int visited(const float* x, int n, bool skip_zeros, int32_t* indices) {
  int count = 0;
  for (int i = 0; i < n; ++i) {
    indices[count] = i;
    count += (!skip_zeros || x[i] != 0.0f) ? 1 : 0;
  }
  return count;
}

// y [width] += sum over i in indices [count] of x[i] * rows[i, :width], rows [any, padded(width)]
inline void add_rows(const float* __restrict rows, int width, const float* __restrict x,
                     const int32_t* __restrict indices, int count, float* __restrict y) {
  const auto row = [&](int k) { return rows + static_cast<size_t>(indices[k]) * padded(width); };
  int k = 0;
  for (; k + 4 <= count; k += 4) {
    const float *r0 = row(k), *r1 = row(k + 1), *r2 = row(k + 2), *r3 = row(k + 3);
    const float x0 = x[indices[k]], x1 = x[indices[k + 1]];
    const float x2 = x[indices[k + 2]], x3 = x[indices[k + 3]];
    for (int j = 0; j < width; ++j) y[j] += (x0 * r0[j] + x1 * r1[j]) + (x2 * r2[j] + x3 * r3[j]);
  }
  for (; k < count; ++k) {
    const float* r0 = row(k);
    const float x0 = x[indices[k]];
    for (int j = 0; j < width; ++j) y[j] += x0 * r0[j];
  }
}

// sum of term(i), i < n, in eight interleaved partial sums: fixed order, yet vectorisable, and
// with a smaller rounding error than one running sum.
template <typename Term>
inline float interleaved_sum(int n, Term term) {
  constexpr int lanes = 8;
  float sum[lanes] = {};
  int i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) sum[lane] += term(i + lane);
  for (int lane = 0; i < n; ++i, ++lane) sum[lane] += term(i);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
  return sum[0];
}

inline float dot(const float* a, const float* b, int n) {
  return interleaved_sum(n, [=](int i) { return a[i] * b[i]; });
}

inline float total(const float* a, int n) {
  return interleaved_sum(n, [=](int i) { return a[i]; });
}

}  // namespace DTAG_TARGET
}  // namespace dtag
