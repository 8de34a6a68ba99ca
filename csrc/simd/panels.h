// Products of a few rows with weights that are read once, in the order in which they lie.
//
//   out[r, j] = start(r, j) + sum over k < count of x[r, k] * weights[k, j]
//
// Each out[r, j] is summed in an order that depends on count alone, however the rows are tiled: what
// becomes of a row does not depend on those beside it.
#pragma once

#include <cstddef>

#include "../transformer.h"
#include "product.h"
#include "vec.h"

namespace dtag {
inline namespace DTAG_TARGET {

// A tile is at most so many rows by so many vectors, as the registers hold sums for: of AVX-512
// 14 x 2, of NEON 6 x 4, of the others, which have 16 registers, 6 x 2.
constexpr int tile_vectors_of_panels = Vec::registers == 32 && Vec::lanes == 4 ? 4 : 2;
constexpr int tile_columns = tile_vectors_of_panels * Vec::lanes;
constexpr int tile_rows = Vec::registers == 32 && Vec::lanes == 16 ? 14 : 6;
static_assert(panel % tile_columns == 0 && padding % (tile_columns > 16 ? 16 : tile_columns) == 0);

// What the sums start from.
enum class Start { zero, bias, bias_and_out };

// So many products are summed by themselves before they are added to the rest: a sum of 1024 numbers
// one after another would lose four times as many digits, and a sum this long is still cheap to add.
constexpr int summed_together = 64;

template <int rows, int groups, int vectors, Start start>
inline void tile(const float* weights, size_t group_stride, size_t stride, int count,
                 const float* x, size_t x_stride, const float* bias, float* out,
                 size_t out_stride) {
  constexpr int columns = groups * vectors;
  const auto column = [](int c) { return (c / vectors) * panel + (c % vectors) * Vec::lanes; };
  for (int first = 0; first == 0 || first < count; first += summed_together) {
    Vec sum[rows][columns];
    DTAG_UNROLL
    for (int r = 0; r < rows; ++r) {
      DTAG_UNROLL
      for (int c = 0; c < columns; ++c) sum[r][c] = zero();
    }
    const int stop = count < first + summed_together ? count : first + summed_together;
    for (int k = first; k < stop; ++k) {
      Vec weight[columns];
      DTAG_UNROLL
      for (int c = 0; c < columns; ++c)
        weight[c] = load(weights + (c / vectors) * group_stride + (c % vectors) * Vec::lanes);
      weights += stride;
      DTAG_UNROLL
      for (int r = 0; r < rows; ++r) {
        const Vec factor = broadcast(x[r * x_stride + k]);
        DTAG_UNROLL
        for (int c = 0; c < columns; ++c) sum[r][c] = fma(factor, weight[c], sum[r][c]);
      }
    }
    DTAG_UNROLL
    for (int r = 0; r < rows; ++r) {
      DTAG_UNROLL
      for (int c = 0; c < columns; ++c) {
        float* const at = out + r * out_stride + column(c);
        if (first > 0) {
          store(at, load(at) + sum[r][c]);
        } else if constexpr (start == Start::zero) {
          store(at, sum[r][c]);
        } else if constexpr (start == Start::bias) {
          store(at, load(bias + column(c)) + sum[r][c]);
        } else {
          store(at, load(at) + (load(bias + column(c)) + sum[r][c]));
        }
      }
    }
  }
}

using Tile = void (*)(const float*, size_t, size_t, int, const float*, size_t, const float*,
                      float*, size_t);

// The tile of so many rows, 1 ... tile_rows.
template <int groups, int vectors, Start start>
Tile tile_of(int rows) {
  static constexpr Tile tiles[] = {
      tile<1, groups, vectors, start>,  tile<2, groups, vectors, start>,
      tile<3, groups, vectors, start>,  tile<4, groups, vectors, start>,
      tile<5, groups, vectors, start>,  tile<6, groups, vectors, start>,
#if defined(__AVX512F__)
      tile<7, groups, vectors, start>,  tile<8, groups, vectors, start>,
      tile<9, groups, vectors, start>,  tile<10, groups, vectors, start>,
      tile<11, groups, vectors, start>, tile<12, groups, vectors, start>,
      tile<13, groups, vectors, start>, tile<14, groups, vectors, start>,
#endif
  };
  static_assert(sizeof(tiles) / sizeof(tiles[0]) == tile_rows);
  return tiles[rows - 1];
}

// Calls use(first row, rows) for tiles of about the same number of rows.
template <typename Use>
void for_row_tiles(int rows, const Use& use) {
  int tiles = (rows + tile_rows - 1) / tile_rows;
  for (int first = 0; first < rows; --tiles) {
    const int now = (rows - first + tiles - 1) / tiles;
    use(first, now);
    first += now;
  }
}

// One row does with few sums; so many panels at once keep the multipliers busy.
constexpr int panels_of_a_row = 4;

template <Start start>
void multiply_panels(const Linear& linear, const float* x, size_t x_stride, int first, int rows,
                     int panel_index, int panels, float* out, size_t out_stride) {
  constexpr int vectors = tile_vectors_of_panels;
  const size_t size = static_cast<size_t>(linear.inputs) * panel;
  for (int column = 0; column < panel; column += tile_columns) {
    const float* const weights = linear.weight + panel_index * size + column;
    const size_t at = static_cast<size_t>(panel_index) * panel + column;
    const auto run = [&](Tile function) {
      function(weights, size, panel, linear.inputs, x + first * x_stride, x_stride,
               linear.bias + at, out + first * out_stride + at, out_stride);
    };
    if (panels == panels_of_a_row)
      run(rows == 1 ? &tile<1, panels_of_a_row, vectors, start>
                    : &tile<2, panels_of_a_row, vectors, start>);
    else
      run(tile_of<1, vectors, start>(rows));
  }
}

// out [rows, out_stride] from x [rows, x_stride]; then(first row, rows, first column, columns) is
// called for each part of it that is complete.
template <Start start, typename Then>
void multiply(const Linear& linear, const float* x, size_t x_stride, int rows, float* out,
              size_t out_stride, const Then& then) {
  const int panels = linear.outputs / panel;
  for (int p = 0; p < panels;) {
    constexpr int two = Vec::registers == 32 ? 2 : 1;
    const int now = rows <= two && p + panels_of_a_row <= panels ? panels_of_a_row : 1;
    for_row_tiles(rows, [&](int first, int count) {
      multiply_panels<start>(linear, x, x_stride, first, count, p, now, out, out_stride);
      then(first, count, p * panel, now * panel);
    });
    p += now;
  }
}

template <Start start>
void multiply(const Linear& linear, const float* x, size_t x_stride, int rows, float* out,
              size_t out_stride) {
  multiply<start>(linear, x, x_stride, rows, out, out_stride, [](int, int, int, int) {});
}

// out [rows, out_stride >= width] = x [rows, count] times weights [count, stride], width a multiple
// of 16.
inline void multiply_rows(const float* weights, size_t stride, int width, int count,
                          const float* x, size_t x_stride, int rows, float* out,
                          size_t out_stride) {
  constexpr int wide = tile_vectors_of_panels;
  int j = 0;
  const auto columns = [&](Tile (*of)(int), int step) {
    for (; j + step <= width; j += step)
      for_row_tiles(rows, [&](int first, int now) {
        of(now)(weights + j, 0, stride, count, x + first * x_stride, x_stride, nullptr,
                out + first * out_stride + j, out_stride);
      });
  };
  columns(&tile_of<1, wide, Start::zero>, tile_columns);
  columns(&tile_of<1, 1, Start::zero>, Vec::lanes);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
