// Dense products in registers: rows of a matrix anywhere against a panel, which is a matrix of 32
// columns without gaps between its rows.
#pragma once

#include "../training.h"
#include "product.h"

namespace dtag {
inline namespace DTAG_TARGET {

inline Vec narrow(double x) { return broadcast(static_cast<float>(x)); }

constexpr int panel = 32;  // columns
constexpr int chunk = 2 * Vec::lanes;  // of them, in registers at once
constexpr int tile_rows = Vec::registers == 32 ? 8 : 6;
static_assert(panel % chunk == 0);

inline int panels(int columns) { return (columns + panel - 1) / panel; }

// A sum over segments of a long inner dimension: segment s of a and of b starts so far on.
struct Segments {
  int count, inner;
  ptrdiff_t a_step, b_step;
};

template <int rows, typename Finish>
inline void product_block(const Matrix& a, int row, const float* b, const Segments& segments,
                          const Finish& finish) {
  Vec sum[rows][2];
  DTAG_UNROLL
  for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = zero();
  for (int s = 0; s < segments.count; ++s) {
    const float* x = a.data + row * a.row + s * segments.a_step;
    const float* y = b + s * segments.b_step;
    for (int k = 0; k < segments.inner; ++k, x += a.column, y += panel) {
      const Vec y0 = load(y), y1 = load(y + Vec::lanes);
      DTAG_UNROLL
      for (int r = 0; r < rows; ++r) {
        const Vec factor = broadcast(x[r * a.row]);
        sum[r][0] = fma(factor, y0, sum[r][0]);
        sum[r][1] = fma(factor, y1, sum[r][1]);
      }
    }
  }
  DTAG_UNROLL
  for (int r = 0; r < rows; ++r) {
    finish(row + r, 0, sum[r][0]);
    finish(row + r, Vec::lanes, sum[r][1]);
  }
}

template <int rows, typename Finish>
inline void product_rest(const Matrix& a, int row, int rest, const float* b,
                         const Segments& segments, const Finish& finish) {
  if constexpr (rows > 0) {
    if (rest == rows)
      product_block<rows>(a, row, b, segments, finish);
    else
      product_rest<rows - 1>(a, row, rest, b, segments, finish);
  }
}

// Calls finish(i, j, sums) with sum over k of a(i, k) * b[k, j ...] for i < rows and every vector of
// the panel b.
template <typename Finish>
inline void product_panel(const Matrix& a, int rows, const float* b, const Segments& segments,
                          const Finish& finish) {
  for (int c = 0; c < panel; c += chunk) {
    const auto finish_chunk = [&](int i, int j, Vec sum) { finish(i, c + j, sum); };
    int row = 0;
    for (; row + tile_rows <= rows; row += tile_rows)
      product_block<tile_rows>(a, row, b + c, segments, finish_chunk);
    product_rest<tile_rows - 1>(a, row, rows - row, b + c, segments, finish_chunk);
  }
}

template <typename Finish>
inline void product_panel(const Matrix& a, int rows, const float* b, int inner,
                          const Finish& finish) {
  product_panel(a, rows, b, Segments{1, inner, 0, 0}, finish);
}

// to[c, r] = from[r, c] of a square of 32; rows of `to` without gaps.
inline void transpose_square(const float* from, ptrdiff_t stride, float* to) {
  constexpr int part = 8;
  for (int c = 0; c < panel; c += part)
    for (int r = 0; r < panel; r += part)
      DTAG_UNROLL
      for (int j = 0; j < part; ++j) {
        DTAG_UNROLL
        for (int i = 0; i < part; ++i) to[(c + j) * panel + r + i] = from[(r + i) * stride + c + j];
      }
}

}  // namespace DTAG_TARGET
}  // namespace dtag
