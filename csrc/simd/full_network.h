// One head at one action by the full network, for a walk's steps whose corrections would cost more.
//
//   h_l = act(z_l),  z_{l+1} = W_{l+1} h_l + b_{l+1},  q = w . h_L + b
//   d_L = w * act'(z_L),  d_{l-1} = (W_l^T d_l) * act'(z_{l-1}),  grad = W_1a^T d_1
#pragma once

#include <algorithm>

#include "../refine.h"
#include "product.h"
#include "region.h"

namespace dtag {
inline namespace DTAG_TARGET {

class FullHead {
 public:
  static size_t floats(const RegionShape& shape) {
    size_t count = 0;
    for (int l = 0; l < shape.layers; ++l) count += shape.width[l];
    return count;
  }

  // slopes [floats(shape)] is kept from value() to add_gradient()
  FullHead(const Critic& critic, const RegionShape& shape, int head, float* slopes,
           const RegionScratch& scratch)
      : critic_(critic), shape_(shape), head_(head), slopes_(slopes), scratch_(scratch) {}

  // Q, where the observation's share of z_1 is share [width 1].
  float value(const float* share, const float* action) const {
    float* z = scratch_.units;
    std::copy_n(share, shape_.width[0], z);
    const auto width = static_cast<size_t>(shape_.width[0]);
    for (int k = 0; k < critic_.action_dim; ++k) scratch_.index[k] = k;
    add_product(Rows<float>{action_weights(), width, shape_.width[0]}, scratch_.index,
                critic_.action_dim, action, 1, 1, z, width);
    for (int l = 0;; ++l) {
      activate(l, z);
      if (l + 1 == shape_.layers) break;
      const int count = list(z, critic_.layers[l].outputs);
      const Layer& next = critic_.layers[l + 1];
      std::copy_n(next.bias + static_cast<size_t>(head_) * shape_.width[l + 1],
                  shape_.width[l + 1], z);
      add_layer_product(next, false, head_, scratch_.index, count, scratch_.coefficients, 1, z);
    }
    const Layer& last = critic_.layers[shape_.layers];
    return inner(output(), z, shape_.width[shape_.layers - 1]) +
           last.bias[static_cast<size_t>(head_) * padding];
  }

  // gradient [A] += factor * grad Q, where the last value() was taken
  void add_gradient(float factor, float* gradient) const {
    float* const d = scratch_.units;
    int l = shape_.layers - 1;
    std::copy_n(output(), shape_.width[l], d);
    for (;; --l) {
      const float* const slope = slopes(l);
      for (int j = 0; j < shape_.width[l]; j += Vec::lanes)
        store(d + j, load(d + j) * load(slope + j));
      if (l == 0) break;
      const int count = list(d, critic_.layers[l].outputs);
      std::fill_n(d, shape_.width[l - 1], 0.0f);
      add_layer_product(critic_.layers[l], true, head_, scratch_.index, count,
                        scratch_.coefficients, 1, d);
    }
    for (int k = 0; k < critic_.action_dim; ++k)
      gradient[k] += factor * inner(action_weights() + static_cast<size_t>(k) * shape_.width[0], d,
                                    shape_.width[0]);
  }

 private:
  const float* action_weights() const {  // [A, width 1]
    const Layer& first = critic_.layers[0];
    return first.transposed + (static_cast<size_t>(head_) * first.inputs +
                               critic_.observation_dim) * shape_.width[0];
  }
  const float* output() const {
    return critic_.layers[shape_.layers].weight +
           static_cast<size_t>(head_) * shape_.width[shape_.layers - 1];
  }
  float* slopes(int l) const {
    float* at = slopes_;
    for (int below = 0; below < l; ++below) at += shape_.width[below];
    return at;
  }

  // z to act(z), and act'(z) to the slopes of hidden layer l
  void activate(int l, float* z) const {
    const Vec one = broadcast(1.0f);
    const Vec negative = broadcast(
        critic_.activation == Activation::leaky_relu ? critic_.negative_slope : 0.0f);
    float* const slope = slopes(l);
    for (int j = 0; j < shape_.width[l]; j += Vec::lanes) {
      const Vec at = load(z + j);
      const Vec of_unit = select(at <= zero(), negative, one);
      store(slope + j, of_unit);
      store(z + j, of_unit * at);
    }
  }

  // The numbers of x that are not 0, and where, as coefficients and index. Returns how many.
  int list(const float* x, int n) const {
    int count = 0;
    for (int k = 0; k < n; ++k) {
      scratch_.index[count] = k;
      scratch_.coefficients[count] = x[k];
      count += x[k] != 0.0f ? 1 : 0;
    }
    return count;
  }

  const Critic& critic_;
  const RegionShape& shape_;
  int head_;
  float* slopes_;
  RegionScratch scratch_;
};

}  // namespace DTAG_TARGET
}  // namespace dtag
