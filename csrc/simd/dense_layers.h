// The full network for a block of points, a head at a time. A point is an action of one of the
// block's rows; its numbers never meet another point's, so its results do not depend on the block.
//
//   z_1 = W_1s s + W_1a a + b_1             the observation's share, W_1s s + b_1, once a row
//   h_l = act(norm(z_l)),  z_{l+1} = W_{l+1} h_l + b_{l+1},  q = w h_L + b
//   d_L = w * act'(z_L),  d_{l-1} = (W_l^T d_l) * act'(z_{l-1}),  grad = W_1a^T d_1
// with norm's own backward pass after each act' where there is LayerNorm.
#pragma once

#include <algorithm>
#include <cmath>

#include "../refine.h"
#include "activations.h"
#include "product.h"

namespace dtag {
inline namespace DTAG_TARGET {

// The most points of a block: with fewer, weights are read more often; with more, less of what the
// forward pass leaves for the backward pass stays in the cache.
constexpr int block_points = 32;

// The sum of a * b, n a multiple of 16, in an order that depends on n alone.
inline float dot_padded(const float* a, const float* b, int n) {
  constexpr int sums = 16 / Vec::lanes < 4 ? 4 : 16 / Vec::lanes;
  Vec partial[sums];
  for (Vec& s : partial) s = zero();
  int next = 0;
  for (int j = 0; j < n; j += Vec::lanes) {
    partial[next] = fma(load(a + j), load(b + j), partial[next]);
    next = next + 1 == sums ? 0 : next + 1;
  }
  for (int half = sums / 2; half > 0; half /= 2)
    for (int s = 0; s < half; ++s) partial[s] = partial[s] + partial[s + half];
  return sum(partial[0]);
}

inline float total_padded(const float* a, int n) {
  Vec partial = zero();
  for (int j = 0; j < n; j += Vec::lanes) partial = partial + load(a + j);
  return sum(partial);
}

// a [n] *= b [n], n a multiple of 16
inline void scale_padded(float* a, const float* b, int n) {
  for (int j = 0; j < n; j += Vec::lanes) store(a + j, load(a + j) * load(b + j));
}

class DenseLayers {
 public:
  static WorkspaceSize memory(const Critic& critic) {
    WorkspaceSize size;
    DenseLayers(critic, {}).lay_out(&size);
    return size;
  }

  DenseLayers(const Critic& critic, const Workspace& workspace)
      : critic_(critic), workspace_(workspace) {
    lay_out(nullptr);
  }

  // Take the raw observations [rows, S] of the block's rows.
  void observe(const float* observations, int rows) const {
    const int n = critic_.observation_dim;
    for (int row = 0; row < rows; ++row)
      for (int i = 0; i < n; ++i)
        observation_[row * padded(n) + i] =
            (observations[static_cast<size_t>(row) * n + i] - critic_.mean[i]) / critic_.std[i];
    const Layer& first = critic_.layers[0];
    const int width = padded(first.outputs);
    for (int e = 0; e < critic_.heads; ++e) {
      for (int row = 0; row < rows; ++row) std::copy_n(bias(first, e), width, share(e, row));
      multiply(Rows<float>{transposed(first, e), static_cast<size_t>(width), width}, n,
               observation_, padded(n), rows, share(e, 0));
    }
  }

  // q [points, q_stride] of head e for the actions [points, stride] of the observed rows
  // row[points]. The forward pass is kept for add_gradients().
  void values(int e, const float* actions, size_t stride, const int32_t* row, int points, float* q,
              int q_stride) const {
    const int depth = critic_.hidden_layers;
    float *h = units_, *below = units_below_;
    for (int l = 0; l < depth; ++l) {
      const Layer& layer = critic_.layers[l];
      const int width = padded(layer.outputs);
      std::swap(h, below);
      for (int p = 0; p < points; ++p)
        std::copy_n(l == 0 ? share(e, row[p]) : bias(layer, e), width, h + p * width);
      if (l == 0)
        multiply(Rows<float>{action_weights(e), static_cast<size_t>(width), width},
                 critic_.action_dim, actions, stride, points, h);
      else
        multiply(layer, false, e, below, points, h);
      for (int p = 0; p < points; ++p) {
        float* const z = h + p * width;
        if (layer.norm_weight != nullptr) normalise(l, e, p, z);
        activate_(z, width, critic_.negative_slope, z, slope(l, e, p));
      }
    }
    const Layer& last = critic_.layers[depth];
    const int width = padded(last.inputs);
    for (int p = 0; p < points; ++p)
      q[p * q_stride] = depth == 0 ? linear_value(e, share(e, row[p])[0], actions + p * stride)
                                   : bias(last, e)[0] + dot_padded(weight(last, e), h + p * width,
                                                                   width);
  }

  // gradient [A] of point[i] += factor[i] * grad_a q, i < count, of head e and where its last
  // values() were taken. The gradients of two points are `stride` floats apart.
  void add_gradients(int e, const int32_t* point, const float* factor, int count, float* gradient,
                     size_t stride) const {
    const int depth = critic_.hidden_layers;
    float *d = units_, *below = units_below_;
    for (int l = depth - 1; l >= 0; --l) {
      const Layer& layer = critic_.layers[l];
      const int width = padded(layer.outputs);
      for (int i = 0; i < count; ++i) {
        float* const at = d + i * width;
        if (l == depth - 1) std::copy_n(weight(critic_.layers[depth], e), width, at);
        scale_padded(at, slope(l, e, point[i]), width);
        if (layer.norm_weight != nullptr) normalise_backward(l, e, point[i], at);
      }
      if (l == 0) break;
      std::fill_n(below, count * padded(layer.inputs), 0.0f);
      multiply(layer, true, e, d, count, below);
      std::swap(d, below);
    }
    const int width = padded(critic_.layers[0].outputs);
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < critic_.action_dim; ++k)
        gradient[point[i] * stride + k] +=
            factor[i] * (depth == 0 ? linear_weights(e)[k]
                                    : dot_padded(action_weights(e) + static_cast<size_t>(k) * width,
                                                 d + i * width, width));
  }

 private:
  // out [vectors, rows.width] += x [vectors, stride] times rows [n, ...]
  template <typename Weight>
  void multiply(const Rows<Weight>& rows, int n, const float* x, size_t stride, int vectors,
                float* out) const {
    const int most = columns_at_once(rows, n, x, stride, vectors);
    int passes = (vectors + most - 1) / most;
    for (; vectors > 0; --passes) {
      const int columns = (vectors + passes - 1) / passes;
      const int count = list_nonzero(x, stride, columns, n);
      add_product(rows, workspace_.indices, count, Picked{x, stride}, columns, out, rows.width);
      x += columns * stride;
      out += columns * rows.width;
      vectors -= columns;
    }
  }

  // The same with the weights of a layer above the first, for its inputs or backward its outputs.
  void multiply(const Layer& layer, bool backward, int e, const float* x, int vectors,
                float* out) const {
    const int n = backward ? layer.outputs : layer.inputs;
    with_rows(layer, backward, e,
              [&](const auto& rows) { multiply(rows, n, x, padded(n), vectors, out); });
  }

  // How many vectors to multiply in one pass over the rows. What is 0 in all of them is skipped:
  // where zeros are many, a few vectors at once do with so many fewer rows that reading the rows
  // more often pays, unless they have to come from beyond the second-level cache. Measured.
  template <typename Weight>
  int columns_at_once(const Rows<Weight>& rows, int n, const float* x, size_t stride,
                      int vectors) const {
    constexpr int few = Vec::lanes == 4 ? 1 : 2;
    constexpr double few_pay_below = 0.6;
    constexpr size_t cache = 512 * 1024;
    const int sample = std::min(vectors, 4);
    if (vectors <= few || n * rows.stride * sizeof(Weight) > cache) return most_columns;
    int nonzero = 0;
    for (int c = 0; c < sample; ++c)
      nonzero += list_nonzero(x + c * stride, stride, 1, n);
    return nonzero < few_pay_below * n * sample ? few : most_columns;
  }

  // The indices of the units that are not 0 in all of `columns` vectors x [columns, stride], to
  // workspace_.indices; returns how many.
  int list_nonzero(const float* x, size_t stride, int columns, int n) const {
    constexpr uint32_t all = (1u << Vec::lanes) - 1;
    int count = 0;
    for (int j = 0; j < n; j += Vec::lanes) {
      uint32_t nonzero = 0;
      for (int c = 0; c < columns; ++c) {
        const Vec at = load(x + c * stride + j);
        nonzero |= ~(bits(at <= zero()) & bits(zero() <= at));  // a NaN is not 0
      }
      const uint32_t units = n - j < Vec::lanes ? (1u << (n - j)) - 1 : all;  // not the padding
      count += list_lanes(nonzero & units, j, workspace_.indices + count);
    }
    return count;
  }

  float linear_value(int e, float share, const float* action) const {
    for (int k = 0; k < critic_.action_dim; ++k) share += linear_weights(e)[k] * action[k];
    return share;
  }

  // z = norm_weight * (z - mean) / std + norm_bias, in place; mean and std over the layer
  void normalise(int l, int e, int p, float* z) const {
    const Layer& layer = critic_.layers[l];
    const int n = layer.outputs, width = padded(n);
    const auto count = static_cast<float>(n);
    float* const normalised = this->normalised(l, e, p);
    const Vec mean = broadcast(total_padded(z, width) / count);
    for (int j = 0; j < width; j += Vec::lanes) store(normalised + j, load(z + j) - mean);
    std::fill(normalised + n, normalised + width, 0.0f);
    const float variance = dot_padded(normalised, normalised, width) / count;
    const float inverse_std = 1.0f / std::sqrt(variance + layer_norm_epsilon);
    const float* const scale = layer.norm_weight + static_cast<size_t>(e) * width;
    const float* const shift = layer.norm_bias + static_cast<size_t>(e) * width;
    for (int j = 0; j < width; j += Vec::lanes) {
      const Vec at = load(normalised + j) * broadcast(inverse_std);
      store(normalised + j, at);
      store(z + j, fma(at, load(scale + j), load(shift + j)));
    }
    normalised[width] = inverse_std;
  }

  // d: from the gradient of norm's output to that of its input
  void normalise_backward(int l, int e, int p, float* d) const {
    const Layer& layer = critic_.layers[l];
    const int width = padded(layer.outputs);
    const auto count = static_cast<float>(layer.outputs);
    const float* const normalised = this->normalised(l, e, p);
    scale_padded(d, layer.norm_weight + static_cast<size_t>(e) * width, width);
    const Vec mean = broadcast(total_padded(d, width) / count);
    const Vec along = broadcast(dot_padded(d, normalised, width) / count);
    const Vec inverse_std = broadcast(normalised[width]);
    for (int j = 0; j < width; j += Vec::lanes)
      store(d + j, inverse_std * (load(d + j) - fma(load(normalised + j), along, mean)));
  }

  // The part of head e in a layer's arrays.
  static const float* weight(const Layer& layer, int e) {
    return layer.weight + static_cast<size_t>(e) * layer.outputs * padded(layer.inputs);
  }
  static const float* transposed(const Layer& layer, int e) {
    return layer.transposed + static_cast<size_t>(e) * layer.inputs * padded(layer.outputs);
  }
  static const float* bias(const Layer& layer, int e) {
    return layer.bias + static_cast<size_t>(e) * padded(layer.outputs);
  }
  const float* action_weights(int e) const {  // W_1a^T [A, padded(H_1)]
    return transposed(critic_.layers[0], e) +
           static_cast<size_t>(critic_.observation_dim) * stride_of(0);
  }

  size_t stride_of(int l) const { return padded(critic_.layers[l].outputs); }
  float* share(int e, int row) const {  // [padded(H_1)]
    return share_ + (static_cast<size_t>(e) * block_points + row) * stride_of(0);
  }
  const float* linear_weights(int e) const {  // [A], of a critic without hidden layers
    return weight(critic_.layers[0], e) + critic_.observation_dim;
  }
  // What the forward pass of a point leaves behind: for each hidden layer act' [padded(H_l)], and
  // with LayerNorm (z - mean) / std [padded(H_l)] and 1 / std.
  size_t trace_size(int layers) const {
    size_t size = 0;
    for (int l = 0; l < layers; ++l)
      size += critic_.layers[l].norm_weight == nullptr ? stride_of(l) : 2 * stride_of(l) + padding;
    return size;
  }
  float* slope(int l, int e, int p) const {
    const size_t point = static_cast<size_t>(e) * block_points + p;
    return traces_ + point * trace_size(critic_.hidden_layers) + trace_size(l);
  }
  float* normalised(int l, int e, int p) const { return slope(l, e, p) + stride_of(l); }

  // The parts of the workspace, and their size if it is asked for.
  void lay_out(WorkspaceSize* size) {
    size_t used = 0;
    const auto take = [&](size_t count) {
      float* const taken = workspace_.floats == nullptr ? nullptr : workspace_.floats + used;
      used += (count + padding - 1) / padding * padding;
      return taken;
    };
    int widest = 1;
    for (int l = 0; l < critic_.hidden_layers; ++l)
      widest = std::max(widest, critic_.layers[l].outputs);
    const int inputs = std::max({widest, critic_.observation_dim, critic_.action_dim});
    const size_t points = static_cast<size_t>(critic_.heads) * block_points;
    observation_ = take(static_cast<size_t>(block_points) * padded(critic_.observation_dim));
    share_ = take(points * stride_of(0));
    traces_ = take(points * trace_size(critic_.hidden_layers));
    for (float** units : {&units_, &units_below_})
      *units = take(static_cast<size_t>(block_points) * padded(widest));
    if (size != nullptr) *size = {used, static_cast<size_t>(inputs + Vec::lanes)};
  }

  const Critic& critic_;
  const Workspace workspace_;
  const ActivateRow activate_ = activate_row_of(critic_.activation);
  float* observation_;            // [block_points, padded(S)], standardised
  float* share_;                  // [E, block_points, padded(H_1)]
  float* traces_;                 // [E, block_points, trace_size]
  float *units_, *units_below_;   // [block_points, padded(widest hidden layer)]
};

}  // namespace DTAG_TARGET
}  // namespace dtag
