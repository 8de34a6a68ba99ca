// The one product that everything heavy is made of: a few vectors at once against rows of weights.
//
//   out[c, :] += sum over i < count of coefficient(i, c) * rows[index[i], :],  c < columns
//
// Rows of weights are read once for all c. Each out[c, j] is summed in the order of i, whatever
// `columns` is and however the work is tiled; a row of zero coefficients adds nothing.
#pragma once

#include <cstddef>
#include <cstdint>

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

// Where the coefficients of a product lie: listed in the order of the index, [count, stride], ...
struct Listed {
  const float* data;
  size_t stride;

  const float* row(int i, int32_t) const { return data + i * stride; }
  static constexpr size_t step() { return 1; }  // from a column to the next
  Listed from(int column) const { return {data + column, stride}; }
};
// ... or in vectors as long as there are rows, [columns, stride], from which the index picks.
struct Picked {
  const float* data;
  size_t stride;

  const float* row(int, int32_t k) const { return data + k; }
  size_t step() const { return stride; }
  Picked from(int column) const { return {data + column * stride, stride}; }
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

template <int columns, int vectors, typename Weight, typename Coefficients>
inline void add_product_tile(const Weight* rows, size_t stride, const int32_t* index, int count,
                             const Coefficients& coefficients, float* out, size_t out_stride) {
  Vec sum[columns][vectors];
  DTAG_UNROLL
  for (int c = 0; c < columns; ++c) {
    DTAG_UNROLL
    for (int v = 0; v < vectors; ++v) sum[c][v] = load(out + c * out_stride + v * Vec::lanes);
  }
  for (int i = 0; i < count; ++i) {
    const Weight* const row = rows + index[i] * stride;
    const float* const x = coefficients.row(i, index[i]);
    Vec weight[vectors];
    DTAG_UNROLL
    for (int v = 0; v < vectors; ++v) weight[v] = load(row + v * Vec::lanes);
    DTAG_UNROLL
    for (int c = 0; c < columns; ++c) {
      const Vec factor = broadcast(x[c * coefficients.step()]);
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

template <int columns, typename Weight, typename Coefficients>
void add_product_columns(const Rows<Weight>& rows, const int32_t* index, int count,
                         const Coefficients& coefficients, float* out, size_t out_stride) {
  constexpr int vectors = tile_vectors<columns>();
  constexpr int tile = vectors * Vec::lanes;
  int j = 0;
  for (; j + tile <= rows.width; j += tile)
    add_product_tile<columns, vectors>(rows.data + j, rows.stride, index, count, coefficients,
                                       out + j, out_stride);
  for (; j < rows.width; j += Vec::lanes)
    add_product_tile<columns, 1>(rows.data + j, rows.stride, index, count, coefficients, out + j,
                                 out_stride);
}

// out [columns, out_stride]
template <typename Weight, typename Coefficients>
void add_product(const Rows<Weight>& rows, const int32_t* index, int count,
                 Coefficients coefficients, int columns, float* out, size_t out_stride) {
  using Function = void (*)(const Rows<Weight>&, const int32_t*, int, const Coefficients&, float*,
                            size_t);
  constexpr Function functions[] = {
      add_product_columns<1, Weight, Coefficients>,  add_product_columns<2, Weight, Coefficients>,
      add_product_columns<3, Weight, Coefficients>,  add_product_columns<4, Weight, Coefficients>,
      add_product_columns<5, Weight, Coefficients>,  add_product_columns<6, Weight, Coefficients>,
#if defined(__AVX512F__) || defined(__aarch64__)
      add_product_columns<7, Weight, Coefficients>,  add_product_columns<8, Weight, Coefficients>,
      add_product_columns<9, Weight, Coefficients>,  add_product_columns<10, Weight, Coefficients>,
      add_product_columns<11, Weight, Coefficients>, add_product_columns<12, Weight, Coefficients>,
      add_product_columns<13, Weight, Coefficients>, add_product_columns<14, Weight, Coefficients>,
#endif
  };
  static_assert(sizeof(functions) / sizeof(functions[0]) == most_columns);
  int passes = (columns + most_columns - 1) / most_columns;
  for (; columns > 0; --passes) {
    const int now = (columns + passes - 1) / passes;
    functions[now - 1](rows, index, count, coefficients, out, out_stride);
    coefficients = coefficients.from(now);
    out += now * out_stride;
    columns -= now;
  }
}

// coefficients [count, coefficient_stride], out [columns, out_stride]
template <typename Weight>
void add_product(const Rows<Weight>& rows, const int32_t* index, int count,
                 const float* coefficients, int coefficient_stride, int columns, float* out,
                 size_t out_stride) {
  add_product(rows, index, count,
              Listed{coefficients, static_cast<size_t>(coefficient_stride)}, columns, out,
              out_stride);
}

// Calls use(rows) with a head's weights of a layer, for each input to all outputs; or backward, for
// each output from all inputs.
template <typename Use>
void with_rows(const Layer& layer, bool backward, int head, const Use& use) {
  const int width = padded(backward ? layer.inputs : layer.outputs);
  const size_t stride = width;
  const size_t offset = head * stride * (backward ? layer.outputs : layer.inputs);
  if (layer.weight_bf16 != nullptr)
    use(Rows<bfloat16>{(backward ? layer.weight_bf16 : layer.transposed_bf16) + offset, stride,
                       width});
  else
    use(Rows<float>{(backward ? layer.weight : layer.transposed) + offset, stride, width});
}

// out [columns, padded(outputs)] += coefficients [count, columns] of indexed inputs of a layer
// times their weights; with `backward` of indexed outputs, and out has the inputs.
inline void add_layer_product(const Layer& layer, bool backward, int head, const int32_t* index,
                              int count, const float* coefficients, int columns, float* out) {
  with_rows(layer, backward, head, [&](const auto& rows) {
    add_product(rows, index, count, coefficients, columns, columns, out, rows.stride);
  });
}

inline float inner(const float* x, const float* y, int width) {
  Vec total = zero();
  for (int j = 0; j < width; j += Vec::lanes) total = fma(load(x + j), load(y + j), total);
  return sum(total);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
