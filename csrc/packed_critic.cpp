#include "packed_critic.h"

#include <algorithm>
#include <cmath>

namespace dtag {
namespace {

size_t packed_size(int observation_dim, int heads, const std::vector<LayerSource>& sources) {
  size_t count = 2 * AlignedFloats::padded(observation_dim);
  for (const LayerSource& source : sources) {
    const size_t weights = static_cast<size_t>(heads) * source.inputs * source.outputs;
    const size_t outputs = static_cast<size_t>(heads) * source.outputs;
    count += 2 * AlignedFloats::padded(weights) + 3 * AlignedFloats::padded(outputs);
  }
  return count;
}

bool all_finite(const float* x, size_t n) {
  return std::all_of(x, x + n, [](float value) { return std::isfinite(value); });
}

}  // namespace

PackedCritic::PackedCritic(int observation_dim, int action_dim, int heads, Activation activation,
                           float negative_slope, const float* mean, const float* std,
                           const std::vector<LayerSource>& sources)
    : floats_(packed_size(observation_dim, heads, sources)) {
  float* next = floats_.data();
  const auto take = [&next](size_t count) {
    float* const taken = next;
    next += AlignedFloats::padded(count);
    return taken;
  };
  const auto copy = [&take](const float* source, size_t count) -> const float* {
    return source == nullptr ? nullptr : std::copy_n(source, count, take(count)) - count;
  };

  view_.observation_dim = observation_dim;
  view_.action_dim = action_dim;
  view_.heads = heads;
  view_.activation = activation;
  view_.negative_slope = negative_slope;
  view_.mean = copy(mean, observation_dim);
  view_.std = copy(std, observation_dim);
  for (const LayerSource& source : sources) {
    const size_t matrix = static_cast<size_t>(source.inputs) * source.outputs;
    const size_t outputs = static_cast<size_t>(heads) * source.outputs;
    Layer layer;
    layer.inputs = source.inputs;
    layer.outputs = source.outputs;
    layer.weight = copy(source.weight, heads * matrix);
    layer.bias = copy(source.bias, outputs);
    layer.norm_weight = copy(source.norm_weight, outputs);
    layer.norm_bias = copy(source.norm_bias, outputs);
    float* const transposed = take(heads * matrix);
    for (int head = 0; head < heads; ++head)
      for (int in = 0; in < source.inputs; ++in)
        for (int out = 0; out < source.outputs; ++out)
          transposed[head * matrix + static_cast<size_t>(in) * source.outputs + out] =
              source.weight[head * matrix + static_cast<size_t>(out) * source.inputs + in];
    layer.transposed = transposed;
    view_.finite = view_.finite && all_finite(layer.weight, heads * matrix);
    layers_.push_back(layer);
  }
  view_.hidden_layers = static_cast<int>(layers_.size()) - 1;
  view_.layers = layers_.data();
}

}  // namespace dtag
