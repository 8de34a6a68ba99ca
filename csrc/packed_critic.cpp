#include "packed_critic.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "arena.h"
#include "bfloat16.h"
#include "kernels.h"
#include "vector_loops.h"

namespace dtag {
namespace {

bool all_finite(const float* x, size_t n) {
  return x == nullptr || std::all_of(x, x + n, [](float value) { return std::isfinite(value); });
}

// Rounding to bfloat16 takes the largest floats to infinity.
bool all_finite(const LayerSource& source, int heads, bool bf16) {
  const size_t outputs = static_cast<size_t>(heads) * source.outputs;
  const float* const weight = source.weight;
  return std::all_of(weight, weight + outputs * source.inputs,
                     [=](float x) {
                       return std::isfinite(bf16 ? from_bfloat16(to_bfloat16(x)) : x);
                     }) &&
         all_finite(source.bias, outputs) && all_finite(source.norm_weight, outputs) &&
         all_finite(source.norm_bias, outputs);
}

// source [rows, columns] to [rows, padded(columns)]
float* pack_rows(Arena& arena, const float* source, int rows, int columns) {
  if (source == nullptr) return nullptr;
  float* const into = arena.take(static_cast<size_t>(rows) * padded(columns));
  for (int row = 0; into != nullptr && row < rows; ++row)
    std::copy_n(source + static_cast<size_t>(row) * columns, columns,
                into + static_cast<size_t>(row) * padded(columns));
  return into;
}

// [heads, rows, padded(columns)] to [heads, columns, padded(rows)]
const float* pack_transposed(Arena& arena, const float* from, int heads, int rows, int columns) {
  float* const into = arena.take(static_cast<size_t>(heads) * columns * padded(rows));
  if (into == nullptr) return nullptr;
  for (int head = 0; head < heads; ++head)
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column)
        into[(static_cast<size_t>(head) * columns + column) * padded(rows) + row] =
            from[(static_cast<size_t>(head) * rows + row) * padded(columns) + column];
  return into;
}

const uint16_t* pack_bf16(Arena& arena, const float* from, size_t count) {
  auto* const into = reinterpret_cast<uint16_t*>(arena.take((count + 1) / 2));
  if (into != nullptr) std::transform(from, from + count, into, to_bfloat16);
  return into;
}

// The layer in the arena's memory.
Layer pack_layer(Arena& arena, const LayerSource& source, int heads, bool bf16) {
  Layer layer;
  layer.inputs = source.inputs;
  layer.outputs = source.outputs;
  const size_t weights = static_cast<size_t>(heads) * source.outputs * padded(source.inputs);
  float* const weight = pack_rows(arena, source.weight, heads * source.outputs, source.inputs);
  if (bf16 && weight != nullptr)
    std::transform(weight, weight + weights, weight,
                   [](float x) { return from_bfloat16(to_bfloat16(x)); });
  layer.weight = weight;
  layer.transposed =
      pack_transposed(arena, layer.weight, heads, source.outputs, source.inputs);
  layer.bias = pack_rows(arena, source.bias, heads, source.outputs);
  layer.norm_weight = pack_rows(arena, source.norm_weight, heads, source.outputs);
  layer.norm_bias = pack_rows(arena, source.norm_bias, heads, source.outputs);
  if (bf16) {
    layer.weight_bf16 = pack_bf16(arena, layer.weight, weights);
    layer.transposed_bf16 =
        pack_bf16(arena, layer.transposed,
                  static_cast<size_t>(heads) * source.inputs * padded(source.outputs));
  }
  return layer;
}

const float* pack_inverse_norm(Arena& arena, const Layer& first, int heads, int observation_dim) {
  float* const into = arena.take(static_cast<size_t>(heads) * padded(first.outputs));
  if (into == nullptr) return nullptr;
  std::fill_n(into, static_cast<size_t>(heads) * padded(first.outputs),
              std::numeric_limits<float>::infinity());
  for (int head = 0; head < heads; ++head)
    for (int k = 0; k < first.outputs; ++k) {
      const float* const row = first.weight + (static_cast<size_t>(head) * first.outputs + k) *
                                                  padded(first.inputs);
      double square = 0.0;
      for (int i = observation_dim; i < first.inputs; ++i)
        square += static_cast<double>(row[i]) * row[i];
      into[static_cast<size_t>(head) * padded(first.outputs) + k] =
          static_cast<float>(1.0 / std::sqrt(square));
    }
  return into;
}

// `home` and `home_bias` of a critic.
void pack_home(Arena& arena, int heads, float negative_slope, const std::vector<Layer>& layers,
               const float** home, const float** home_bias) {
  const Layer &first = layers[0], &second = layers[1];
  const auto width = static_cast<size_t>(padded(second.outputs));
  float* map = arena.take(heads * first.inputs * width);
  float* bias = arena.take(heads * width);
  *home = map;
  *home_bias = bias;
  if (map == nullptr) return;
  std::vector<float> x(first.outputs);
  std::vector<int32_t> indices(first.outputs);
  for (int head = 0; head < heads; ++head, bias += width) {
    const size_t unit = static_cast<size_t>(head) * padded(first.outputs);
    const float* const rows = second.transposed + head * first.outputs * width;
    // into += W_2 D column, of which x is given the numbers
    const auto add = [&](const float* column, float* into) {
      for (int k = 0; k < first.outputs; ++k)
        x[k] = column[k] * (first.bias[unit + k] > 0.0f ? 1.0f : negative_slope);
      const int count = visited(x.data(), first.outputs, true, indices.data());
      add_rows(rows, second.outputs, x.data(), indices.data(), count, into);
    };
    std::copy_n(second.bias + head * width, width, bias);
    add(first.bias + unit, bias);
    for (int i = 0; i < first.inputs; ++i, map += width)
      add(first.transposed + unit * first.inputs + static_cast<size_t>(i) * padded(first.outputs),
          map);
  }
}

}  // namespace

PackedCritic::PackedCritic(int observation_dim, int action_dim, int heads, Activation activation,
                           float negative_slope, const float* mean, const float* std,
                           const std::vector<LayerSource>& sources, Precision precision)
    : floats_(0) {
  const auto in_bf16 = [&](size_t l) {
    return precision == Precision::bf16 && l > 0 && l + 1 < sources.size();
  };
  const auto pack = [&](float* block) {
    Arena arena(block);
    view_.mean = pack_rows(arena, mean, 1, observation_dim);
    view_.std = pack_rows(arena, std, 1, observation_dim);
    layers_.clear();
    for (size_t l = 0; l < sources.size(); ++l)
      layers_.push_back(pack_layer(arena, sources[l], heads, in_bf16(l)));
    view_.layers = layers_.data();
    view_.inverse_norm = pack_inverse_norm(arena, layers_[0], heads, observation_dim);
    if (layers_.size() > 2 && why_no_walk(view_) == nullptr)
      pack_home(arena, heads, activation == Activation::leaky_relu ? negative_slope : 0.0f,
                layers_, &view_.home, &view_.home_bias);
    return arena.used();
  };
  view_.hidden_layers = static_cast<int>(sources.size()) - 1;
  view_.activation = activation;
  view_.finite = true;
  for (size_t l = 0; l < sources.size(); ++l)
    view_.finite = view_.finite && all_finite(sources[l], heads, in_bf16(l));
  const size_t size = pack(nullptr);
  floats_ = AlignedFloats(size);
  std::fill_n(floats_.data(), size, 0.0f);
  pack(floats_.data());

  view_.observation_dim = observation_dim;
  view_.action_dim = action_dim;
  view_.heads = heads;
  view_.negative_slope = negative_slope;
}

}  // namespace dtag
