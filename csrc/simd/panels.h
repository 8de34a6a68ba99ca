// Products of a few rows with weights that are read once, in the order in which they lie.
//
//   out[r, j] = start(r, j) + sum over k < count of x[r, k] * weights[k, j]
//
// Each out[r, j] is summed in an order that depends on count alone, however the rows are tiled: what
// becomes of a row does not depend on those beside it.
#pragma once

#include <cstddef>
#include <type_traits>

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
static_assert(panel % tile_columns == 0 && (tile_columns % 16 == 0 || 16 % tile_columns == 0));

// What is multiplied: `depth` numbers of x by as many rows of weights at a time.
struct FloatTerms {
  using Number = float;
  static constexpr int depth = 1;
  using Weights = Vec;
  using Factor = Vec;
  static Weights weights(const float* p) { return load(p); }
  static Factor factor(const float* x) { return broadcast(*x); }
  static Vec add(Factor x, Weights w, Vec sum) { return fma(x, w, sum); }
};
// Two rows of weights in bfloat16, a lane holding one number of each.
struct PairTerms {
  using Number = bfloat16;
  static constexpr int depth = 2;
  struct Both {
    Vec low, high;
  };
  using Weights = Both;
  using Factor = Both;
  static Weights weights(const bfloat16* p) {
    const Vec both = load(reinterpret_cast<const float*>(p));
    return {low_halves(both), high_halves(both)};
  }
  static Factor factor(const bfloat16* x) { return {broadcast(widen(x[0])), broadcast(widen(x[1]))}; }
  static Vec add(Factor x, Weights w, Vec sum) { return fma(x.high, w.high, fma(x.low, w.low, sum)); }
};
#if defined(__AVX512F__) && defined(__GNUC__)
// The same by the instruction that processors with AVX512_BF16 have for it. It is written out, as
// this is compiled for all that have AVX-512.
struct DotTerms {
  using Number = bfloat16;
  static constexpr int depth = 2;
  using Weights = __m512i;
  using Factor = __m512i;
  static Weights weights(const bfloat16* p) { return _mm512_loadu_si512(p); }
  static Factor factor(const bfloat16* x) {
    int both;
    std::memcpy(&both, x, sizeof(both));
    return _mm512_set1_epi32(both);
  }
  static Vec add(Factor x, Weights w, Vec sum) {
    __asm__("vdpbf16ps %1, %2, %0" : "+v"(sum.v) : "v"(w), "v"(x));
    return sum;
  }
};
inline bool multiplies_bf16() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
#else
using DotTerms = PairTerms;
inline bool multiplies_bf16() { return false; }
#endif

// What the sums start from.
enum class Start { zero, bias, bias_and_out };

// So many products are summed by themselves before they are added to the rest: a sum of 1024 numbers
// one after another would lose four times as many digits, and a sum this long is still cheap to add.
constexpr int summed_together = 64;

// Where a tile of several panels has its column of vectors c.
template <int vectors>
constexpr size_t column(int c) {
  return (c / vectors) * panel + (c % vectors) * Vec::lanes;
}

// `group_stride` lies between two panels' weights, `stride` between two steps of `depth` rows, both
// in numbers; count is that of the rows.
template <typename Terms, int rows, int groups, int vectors, Start start>
inline void tile(const typename Terms::Number* weights, size_t group_stride, size_t stride,
                 int count, const typename Terms::Number* x, size_t x_stride, const float* bias,
                 float* out, size_t out_stride) {
  constexpr int columns = groups * vectors, depth = Terms::depth;
  for (int first = 0; first == 0 || first < count; first += summed_together) {
    Vec sum[rows][columns];
    DTAG_UNROLL
    for (int r = 0; r < rows; ++r) {
      DTAG_UNROLL
      for (int c = 0; c < columns; ++c) sum[r][c] = zero();
    }
    const int stop = count < first + summed_together ? count : first + summed_together;
    for (int k = first; k < stop; k += depth) {
      typename Terms::Weights weight[columns];
      DTAG_UNROLL
      for (int c = 0; c < columns; ++c)
        weight[c] = Terms::weights(weights + (c / vectors) * group_stride +
                                   (c % vectors) * Vec::lanes * depth);
      weights += stride;
      DTAG_UNROLL
      for (int r = 0; r < rows; ++r) {
        const typename Terms::Factor factor = Terms::factor(x + r * x_stride + k);
        DTAG_UNROLL
        for (int c = 0; c < columns; ++c) sum[r][c] = Terms::add(factor, weight[c], sum[r][c]);
      }
    }
    DTAG_UNROLL
    for (int r = 0; r < rows; ++r) {
      DTAG_UNROLL
      for (int c = 0; c < columns; ++c) {
        float* const at = out + r * out_stride + column<vectors>(c);
        if (first > 0) {
          store(at, load(at) + sum[r][c]);
        } else if constexpr (start == Start::zero) {
          store(at, sum[r][c]);
        } else if constexpr (start == Start::bias) {
          store(at, load(bias + column<vectors>(c)) + sum[r][c]);
        } else {
          store(at, load(at) + (load(bias + column<vectors>(c)) + sum[r][c]));
        }
      }
    }
  }
}

template <typename Number>
using Tile = void (*)(const Number*, size_t, size_t, int, const Number*, size_t, const float*,
                      float*, size_t);

// The tile of so many rows, 1 ... tile_rows.
template <typename Terms, int vectors, Start start>
Tile<typename Terms::Number> tile_of(int rows) {
  static constexpr Tile<typename Terms::Number> tiles[] = {
      tile<Terms, 1, 1, vectors, start>,  tile<Terms, 2, 1, vectors, start>,
      tile<Terms, 3, 1, vectors, start>,  tile<Terms, 4, 1, vectors, start>,
      tile<Terms, 5, 1, vectors, start>,  tile<Terms, 6, 1, vectors, start>,
#if defined(__AVX512F__)
      tile<Terms, 7, 1, vectors, start>,  tile<Terms, 8, 1, vectors, start>,
      tile<Terms, 9, 1, vectors, start>,  tile<Terms, 10, 1, vectors, start>,
      tile<Terms, 11, 1, vectors, start>, tile<Terms, 12, 1, vectors, start>,
      tile<Terms, 13, 1, vectors, start>, tile<Terms, 14, 1, vectors, start>,
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

// One row does with few sums, or two; so many panels at once keep the multipliers busy.
constexpr int panels_at_once = 4;
constexpr int most_rows_at_once = Vec::registers == 32 ? 2 : 1;

template <typename Terms, Start start>
void multiply_panels(const Linear& linear, const typename Terms::Number* all_weights,
                     const typename Terms::Number* x, size_t x_stride, int rows, int first_panel,
                     int panels, float* out, size_t out_stride) {
  constexpr int vectors = tile_vectors_of_panels;
  const size_t size = static_cast<size_t>(linear.inputs) * panel;
  for (int j = 0; j < panel; j += tile_columns) {
    const size_t at = static_cast<size_t>(first_panel) * panel + j;
    const auto function =
        panels == 1 ? tile_of<Terms, vectors, start>(rows)
        : rows == 1 ? &tile<Terms, 1, panels_at_once, vectors, start>
                    : &tile<Terms, most_rows_at_once, panels_at_once, vectors, start>;
    function(all_weights + first_panel * size + j * Terms::depth, size, panel * Terms::depth,
             linear.inputs, x, x_stride, linear.bias + at, out + at, out_stride);
  }
}

// out [rows, out_stride] from x [rows, x_stride]; then(first row, rows, first column, columns) is
// called for each part of it that is complete.
template <typename Terms, Start start, typename Then>
void multiply(const Linear& linear, const typename Terms::Number* x, size_t x_stride, int rows,
              float* out, size_t out_stride, const Then& then) {
  const typename Terms::Number* weights;
  if constexpr (std::is_same_v<Terms, FloatTerms>)
    weights = linear.weight;
  else
    weights = linear.weight_bf16;
  const int panels = linear.outputs / panel;
  for (int p = 0; p < panels;) {
    const int now = rows <= most_rows_at_once && p + panels_at_once <= panels ? panels_at_once : 1;
    for_row_tiles(rows, [&](int first, int count) {
      multiply_panels<Terms, start>(linear, weights, x + first * x_stride, x_stride, count, p, now,
                                    out + first * out_stride, out_stride);
      then(first, count, p * panel, now * panel);
    });
    p += now;
  }
}

struct NothingThen {
  void operator()(int, int, int, int) const {}
};

// out [rows, out_stride >= width] = x [rows, count] times weights [count, stride], width a multiple
// of 16.
inline void multiply_rows(const float* weights, size_t stride, int width, int count,
                          const float* x, size_t x_stride, int rows, float* out,
                          size_t out_stride) {
  int j = 0;
  const auto columns = [&](Tile<float> (*of)(int), int step) {
    for (; j + step <= width; j += step)
      for_row_tiles(rows, [&](int first, int now) {
        of(now)(weights + j, 0, stride, count, x + first * x_stride, x_stride, nullptr,
                out + first * out_stride + j, out_stride);
      });
  };
  columns(&tile_of<FloatTerms, tile_vectors_of_panels, Start::zero>, tile_columns);
  columns(&tile_of<FloatTerms, 1, Start::zero>, Vec::lanes);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
