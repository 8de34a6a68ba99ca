// The one product that everything heavy is made of: a few vectors at once against rows of weights.
//
//   out[c, :] += sum over i < count of coefficients[i, c] * rows[index[i], :],  c < columns
//
// Rows of weights are read once for all c. Each out[c, j] is summed in the order of i, whatever
// `columns` is and however the work is tiled; a row of zero coefficients adds nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../refine.h"
#include "vec.h"

#if defined(__GNUC__)
#define DTAG_UNROLL _Pragma("GCC unroll 32")
#else
#define DTAG_UNROLL
#endif

namespace dtag {
inline namespace DTAG_TARGET {

template <typename Weight>
struct Rows {
  const Weight* data;  // [any, stride]
  size_t stride;
  int width;  // a multiple of 16, up to stride
};

// How many vectors of a row a tile takes: as many as the registers hold accumulators for.
template <int columns>
constexpr int tile_vectors() {
  constexpr int vectors[] = {8, 4, 3, 2};
  for (const int n : vectors)
    if (columns * n + n + 1 <= Vec::registers) return n;
  return 1;
}
// The most columns a single pass over the rows takes. With 16 registers seven columns would leave
// room for tiles of one vector, bound by the loading of coefficients; two passes are faster.
constexpr int most_columns = Vec::registers == 32 ? 14 : 6;

template <int columns, int vectors, typename Weight>
inline void add_product_tile(const Weight* rows, size_t stride, const int32_t* index, int count,
                             const float* coefficients, int coefficient_stride, float* out,
                             size_t out_stride) {
  Vec sum[columns][vectors];
  DTAG_UNROLL
  for (int c = 0; c < columns; ++c) {
    DTAG_UNROLL
    for (int v = 0; v < vectors; ++v) sum[c][v] = load(out + c * out_stride + v * Vec::lanes);
  }
  for (int i = 0; i < count; ++i) {
    const Weight* const row = rows + index[i] * stride;
    const float* const x = coefficients + static_cast<size_t>(i) * coefficient_stride;
    Vec weight[vectors];
    DTAG_UNROLL
    for (int v = 0; v < vectors; ++v) weight[v] = load(row + v * Vec::lanes);
    DTAG_UNROLL
    for (int c = 0; c < columns; ++c) {
      const Vec factor = broadcast(x[c]);
      DTAG_UNROLL
      for (int v = 0; v < vectors; ++v) sum[c][v] = fma(factor, weight[v], sum[c][v]);
    }
  }
  DTAG_UNROLL
  for (int c = 0; c < columns; ++c) {
    DTAG_UNROLL
    for (int v = 0; v < vectors; ++v) store(out + c * out_stride + v * Vec::lanes, sum[c][v]);
  }
}

template <int columns, typename Weight>
void add_product_columns(const Rows<Weight>& rows, const int32_t* index, int count,
                         const float* coefficients, int coefficient_stride, float* out,
                         size_t out_stride) {
  constexpr int vectors = tile_vectors<columns>();
  constexpr int tile = vectors * Vec::lanes;
  int j = 0;
  for (; j + tile <= rows.width; j += tile)
    add_product_tile<columns, vectors>(rows.data + j, rows.stride, index, count, coefficients,
                                       coefficient_stride, out + j, out_stride);
  for (; j < rows.width; j += Vec::lanes)
    add_product_tile<columns, 1>(rows.data + j, rows.stride, index, count, coefficients,
                                 coefficient_stride, out + j, out_stride);
}

// coefficients [count, coefficient_stride], out [columns, out_stride]
template <typename Weight>
void add_product(const Rows<Weight>& rows, const int32_t* index, int count,
                 const float* coefficients, int coefficient_stride, int columns, float* out,
                 size_t out_stride) {
  using Function = void (*)(const Rows<Weight>&, const int32_t*, int, const float*, int, float*,
                            size_t);
  constexpr Function functions[] = {
      add_product_columns<1, Weight>,  add_product_columns<2, Weight>,
      add_product_columns<3, Weight>,  add_product_columns<4, Weight>,
      add_product_columns<5, Weight>,  add_product_columns<6, Weight>,
#if defined(__AVX512F__) || defined(__aarch64__)
      add_product_columns<7, Weight>,  add_product_columns<8, Weight>,
      add_product_columns<9, Weight>,  add_product_columns<10, Weight>,
      add_product_columns<11, Weight>, add_product_columns<12, Weight>,
      add_product_columns<13, Weight>, add_product_columns<14, Weight>,
#endif
  };
  static_assert(sizeof(functions) / sizeof(functions[0]) == most_columns);
  int passes = (columns + most_columns - 1) / most_columns;
  for (; columns > 0; --passes) {
    const int now = (columns + passes - 1) / passes;
    functions[now - 1](rows, index, count, coefficients, coefficient_stride, out, out_stride);
    coefficients += now;
    out += now * out_stride;
    columns -= now;
  }
}

// out [columns, padded(outputs)] += coefficients [count, columns] of indexed inputs of a layer times
// their weights; with `backward` of indexed outputs, and out has the inputs.
inline void add_layer_product(const Layer& layer, bool backward, int head, const int32_t* index,
                              int count, const float* coefficients, int columns, float* out) {
  const int rows = backward ? layer.outputs : layer.inputs;
  const int width = padded(backward ? layer.inputs : layer.outputs);
  const size_t offset = static_cast<size_t>(head) * rows * width;
  const auto add = [&](auto* weights) {
    using Weight = std::decay_t<decltype(*weights)>;
    add_product(Rows<Weight>{weights + offset, static_cast<size_t>(width), width}, index, count,
                coefficients, columns, columns, out, static_cast<size_t>(width));
  };
  if (layer.weight_bf16 != nullptr)
    add(backward ? layer.weight_bf16 : layer.transposed_bf16);
  else
    add(backward ? layer.weight : layer.transposed);
}

inline float inner(const float* x, const float* y, int width) {
  Vec total = zero();
  for (int j = 0; j < width; j += Vec::lanes) total = fma(load(x + j), load(y + j), total);
  return sum(total);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
