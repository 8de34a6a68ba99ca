// One head for one starting point: its value, and its gradient with respect to the action.
//
//   z_1 = W_1s s + W_1a a + b_1             the observation's share, W_1s s + b_1, once a row
//   h_l = act(norm(z_l)),  z_{l+1} = W_{l+1} h_l + b_{l+1},  q = w h_L + b
//   d_L = w * act'(z_L),  d_{l-1} = (W_l^T d_l) * act'(z_{l-1}),  grad = W_1a^T d_1
// with norm's own backward pass after each act' where there is LayerNorm.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "activations.h"
#include "refine.h"
#include "vector_loops.h"

namespace dtag {

class Head {
 public:
  // Floats a head needs for its share of z_1 and to keep a forward pass for its backward pass.
  static size_t memory(const Critic& critic) {
    size_t count = critic.layers[0].outputs;
    for (int l = 0; l < critic.hidden_layers; ++l) count += trace_size(critic.layers[l]);
    return count;
  }

  // indices [widest input] and d, d_below [widest hidden layer] are scratch.
  Head(const Critic& critic, int head, float* memory, int32_t* indices, float* d, float* d_below)
      : critic_(critic), head_(head), share_(memory), indices_(indices), d_(d), d_below_(d_below) {}

  // Take the standardised observation [S].
  void observe(const float* observation) const {
    const Layer& layer = critic_.layers[0];
    std::copy_n(bias(layer), layer.outputs, share_);
    add_product(transposed(layer), layer.outputs, observation, critic_.observation_dim, share_);
  }

  // Q of the observed row and the action [A].
  float value(const float* action) const {
    const int depth = critic_.hidden_layers;
    if (depth == 0) return share_[0] + dot(linear_weights(), action, critic_.action_dim);
    for (int l = 0; l < depth; ++l) {
      const Layer& layer = critic_.layers[l];
      const Trace at = trace(l);
      std::copy_n(l == 0 ? share_ : bias(layer), layer.outputs, at.value);
      if (l == 0)
        add_product(action_weights(), layer.outputs, action, critic_.action_dim, at.value);
      else
        add_product(transposed(layer), layer.outputs, trace(l - 1).value, layer.inputs, at.value);
      if (layer.norm_weight != nullptr) normalise(layer, at);
      activate_all(critic_.activation, at.value, layer.outputs, critic_.negative_slope, at.value,
                   at.slope);
    }
    const Layer& last = critic_.layers[depth];
    return bias(last)[0] + dot(weight(last), trace(depth - 1).value, last.inputs);
  }

  // gradient [A] += factor * grad_a Q, where the last value() was taken.
  void add_gradient(float factor, float* gradient) const {
    const int depth = critic_.hidden_layers;
    if (depth == 0) {
      for (int k = 0; k < critic_.action_dim; ++k) gradient[k] += factor * linear_weights()[k];
      return;
    }
    float *d = d_, *d_below = d_below_;
    std::copy_n(weight(critic_.layers[depth]), critic_.layers[depth].inputs, d);
    for (int l = depth - 1;; --l) {
      const Layer& layer = critic_.layers[l];
      const Trace at = trace(l);
      for (int j = 0; j < layer.outputs; ++j) d[j] *= at.slope[j];
      if (layer.norm_weight != nullptr) normalise_backward(layer, at, d);
      if (l == 0) break;
      std::fill_n(d_below, layer.inputs, 0.0f);
      add_product(weight(layer), layer.inputs, d, layer.outputs, d_below);
      std::swap(d, d_below);
    }
    const int width = critic_.layers[0].outputs;
    for (int k = 0; k < critic_.action_dim; ++k)
      gradient[k] += factor * dot(action_weights() + static_cast<size_t>(k) * padded(width), d, width);
  }

 private:
  // What the forward pass of a hidden layer leaves behind.
  struct Trace {
    float* value;        // [outputs], h_l
    float* slope;        // [outputs], act'
    float* normalised;   // [outputs], (z - mean) / std; used with LayerNorm only
    float* inverse_std;  // [1]; used with LayerNorm only
  };
  static size_t trace_size(const Layer& layer) {
    return 3 * static_cast<size_t>(layer.outputs) + 1;
  }
  Trace trace(int l) const {
    float* at = share_ + critic_.layers[0].outputs;
    for (int below = 0; below < l; ++below) at += trace_size(critic_.layers[below]);
    const int n = critic_.layers[l].outputs;
    return {at, at + n, at + 2 * n, at + 3 * n};
  }

  // y [width] += x [n] times rows [n, padded(width)]
  void add_product(const float* rows, int width, const float* x, int n, float* y) const {
    add_rows(rows, width, x, indices_, visited(x, n, critic_.finite, indices_), y);
  }

  // This head's part of a layer's arrays.
  size_t vector(const Layer& layer) const {
    return static_cast<size_t>(head_) * padded(layer.outputs);
  }
  const float* weight(const Layer& layer) const {
    return layer.weight + static_cast<size_t>(head_) * layer.outputs * padded(layer.inputs);
  }
  const float* transposed(const Layer& layer) const { return layer.transposed + vector(layer) * layer.inputs; }
  const float* bias(const Layer& layer) const { return layer.bias + vector(layer); }
  const float* action_weights() const {  // W_1a^T [A, padded(H_1)]
    const Layer& first = critic_.layers[0];
    return transposed(first) + static_cast<size_t>(critic_.observation_dim) * padded(first.outputs);
  }
  const float* linear_weights() const {  // [A], of a critic without hidden layers
    return weight(critic_.layers[0]) + critic_.observation_dim;
  }

  // value = norm_weight * (z - mean) / std + norm_bias, in place; mean and std over the layer
  void normalise(const Layer& layer, const Trace& at) const {
    const int n = layer.outputs;
    const auto count = static_cast<float>(n);
    const float mean = total(at.value, n) / count;
    for (int j = 0; j < n; ++j) at.normalised[j] = at.value[j] - mean;
    const float variance = dot(at.normalised, at.normalised, n) / count;
    const float inverse_std = 1.0f / std::sqrt(variance + layer_norm_epsilon);
    const float* const scale = layer.norm_weight + vector(layer);
    const float* const shift = layer.norm_bias + vector(layer);
    for (int j = 0; j < n; ++j) {
      at.normalised[j] *= inverse_std;
      at.value[j] = at.normalised[j] * scale[j] + shift[j];
    }
    *at.inverse_std = inverse_std;
  }

  // d: from the gradient of norm's output to that of its input
  void normalise_backward(const Layer& layer, const Trace& at, float* d) const {
    const int n = layer.outputs;
    const auto count = static_cast<float>(n);
    const float* const scale = layer.norm_weight + vector(layer);
    for (int j = 0; j < n; ++j) d[j] *= scale[j];
    const float mean = total(d, n) / count;
    const float along = dot(d, at.normalised, n) / count;
    for (int j = 0; j < n; ++j) d[j] = *at.inverse_std * (d[j] - mean - at.normalised[j] * along);
  }

  const Critic& critic_;
  int head_;
  float* share_;  // [H_1] (one number for a linear critic), then the traces
  int32_t* indices_;
  float *d_, *d_below_;
};

}  // namespace dtag
