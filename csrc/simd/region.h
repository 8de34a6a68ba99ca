// One head's linear region around a base action: the affine maps from the action to the
// pre-activations, exact as long as the signs of the first layer's stay what they are here.
//
//   z_1 = p + W_1a d                          d = action - base, p = z_1 at the base
//   z_2 = c + M d                             c = b_2 + W_2 D (p), M = W_2 D W_1a
//   q   = w . act(z_2) + b,  grad = M^T (w * act'(z_2))
//
// D is diagonal: the slope, at its sign, of each first-layer unit. Where a unit k changes its sign,
// c and M change by a rank-one term, +- (1 - negative_slope) W_2[:, k] (p_k, W_1a[k, :]). With one
// hidden layer c and M are p and W_1a, and there is nothing to correct.
//
// The maps are built from nothing, row by row of W_2^T, or by such corrections from the critic's home
// region, which was computed when the critic was packed (Critic::home).
//
// Since c and M are anchored at the base and not moved along with the action, rounding does not
// accumulate over steps; it does, by one rounding, over corrections.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../refine.h"
#include "product.h"

namespace dtag {
inline namespace DTAG_TARGET {

// What adding a row of weights to one vector costs beside adding it to one of several: reading it
// from the second-level cache takes longer than the multiplication. Measured.
constexpr double single_column_cost = Vec::lanes == 16 ? 2.5 : Vec::lanes == 8 ? 2.0 : 1.0;

// What all heads of a critic have in common: its sizes, and where a head keeps what.
struct RegionShape {
  explicit RegionShape(const Critic& critic)
      : action_dim(critic.action_dim),
        layers(critic.hidden_layers),
        width1(padded(critic.layers[0].outputs)),
        width2(layers == 2 ? padded(critic.layers[1].outputs) : 0) {}

  // What a head keeps.
  size_t floats() const { return 2 * width1 + (2 + action_dim) * static_cast<size_t>(width2); }
  size_t words() const { return 2 * width1 / Vec::lanes; }

  int action_dim;
  int layers;
  int width1;  // padded
  int width2;  // padded; 0 with one hidden layer
};

// Scratch that the heads share.
struct RegionScratch {
  int32_t* index;       // [width1 or width2, the larger; and at least S]
  float* coefficients;  // [the same, padded(1 + A)]
  float* units;         // [the larger of width1 and width2]
};

// `actions` is the number of action dimensions, or 0 to take it from the shape: known when it is
// compiled, the loops over it are unrolled and their vectors stay in registers.
template <int actions>
class Region {
 public:
  // floats [shape.floats()], words [shape.words()]
  Region(const Critic& critic, const RegionShape& shape, int head, float* floats, int32_t* words,
         const RegionScratch& scratch)
      : critic_(critic), shape_(shape), head_(head), active_(words), scratch_(scratch) {
    share_ = floats;
    at_base_ = share_ + shape.width1;
    map_ = at_base_ + shape.width1;
    effective_ = map_ + (1 + shape.action_dim) * static_cast<size_t>(shape.width2);
    now_active_ = active_ + shape.width1 / Vec::lanes;
    const Layer& first = critic.layers[0];
    action_weights_ = head_of(first.transposed, first.inputs, shape.width1) +
                      static_cast<size_t>(critic.observation_dim) * shape.width1;
    inverse_norm_ = head_of(critic.inverse_norm, 1, shape.width1);
    const Layer& last = critic.layers[critic.hidden_layers];
    output_ = head_of(last.weight, 1, padded(last.inputs));
    output_bias_ = last.bias[static_cast<size_t>(head) * padding];
    negative_slope_ =
        critic.activation == Activation::leaky_relu ? critic.negative_slope : 0.0f;
  }

  // Take a standardised observation [S]: the part of z_1 that does not depend on the action.
  void observe(const float* observation) {
    const Layer& first = critic_.layers[0];
    std::copy_n(head_of(first.bias, 1, shape_.width1), shape_.width1, share_);
    for (int i = 0; i < critic_.observation_dim; ++i) scratch_.index[i] = i;
    add_product(Rows<float>{head_of(first.transposed, first.inputs, shape_.width1),
                            static_cast<size_t>(shape_.width1), shape_.width1},
                scratch_.index, critic_.observation_dim, observation, 1, 1, share_,
                shape_.width1);
  }

  struct Built {
    int rows;     // of W_2^T that were added
    int active;   // first-layer units
    float reach;  // how far from the base no first-layer unit changes its sign at least
  };

  // Make `base` [A] the base, and build the maps of the region it lies in, for the standardised
  // observation [S]: from nothing, or from the critic's home region where that is nearer.
  Built place(const float* observation, const float* base) {
    for (int j = 0; j < shape_.width1; j += Vec::lanes)
      store(at_base_ + j, affine(share_, action_weights_, shape_.width1, base, j));
    Built built{0, 0, std::numeric_limits<float>::infinity()};
    if (shape_.layers == 1) return built;

    const float* const bias = head_of(critic_.layers[0].bias, 1, shape_.width1);
    Vec distance = broadcast(built.reach);
    int away = 0;  // units whose sign differs from that in the home region
    for (int v = 0; v < shape_.width1 / Vec::lanes; ++v) {
      const Vec z1 = load(at_base_ + v * Vec::lanes);
      distance = lesser(distance_of(v, z1), distance);
      const uint32_t active = active_lanes(v, z1);
      const uint32_t at_home = active_lanes(v, load(bias + v * Vec::lanes));
      active_[v] = static_cast<int32_t>(active);
      now_active_[v] = static_cast<int32_t>(at_home);
      built.active += popcount(active);
      away += popcount(active ^ at_home);
    }
    built.reach = least(distance);

    const int from_nothing = negative_slope_ == 0.0f ? built.active : critic_.layers[0].outputs;
    const double columns = 1 + action_dim(), inputs = critic_.layers[0].inputs;
    if (away * columns + inputs * single_column_cost < from_nothing * columns) {
      copy_home(observation, base);
      built.rows = add_changes();
    } else {
      std::copy_n(head_of(critic_.layers[1].bias, 1, shape_.width2), shape_.width2, map_);
      std::fill_n(map_ + shape_.width2, static_cast<size_t>(action_dim()) * shape_.width2, 0.0f);
      int count = 0;
      for (int v = 0; v < shape_.width1 / Vec::lanes; ++v)
        count = list(negative_slope_ == 0.0f ? active_bits(v) : lanes_in_use(v), v, count);
      for (int i = 0; i < count; ++i) {
        const int k = scratch_.index[i];
        set_coefficients(i, k, is_active(k) ? 1.0f : negative_slope_);
      }
      add_units(count, 1 + action_dim(), map_);
      built.rows = count;
    }
    return built;
  }

  // How many first-layer units have another sign at base + d [A] than in this region; and how far
  // from there the signs stay as they are at least.
  int changes(const float* d, float* reach) const {
    int count = 0;
    Vec distance = broadcast(std::numeric_limits<float>::infinity());
    each_z1(d, [&](int v, Vec z1) {
      distance = lesser(distance_of(v, z1), distance);
      const uint32_t active = active_lanes(v, z1);
      now_active_[v] = static_cast<int32_t>(active);
      count += popcount(active ^ static_cast<uint32_t>(active_[v]));
    });
    *reach = least(distance);
    return count;
  }

  // Go on to the region in which changes() looked.
  void correct() {
    // The region's own signs take the place of those looked at, and the other way round.
    for (int v = 0; v < shape_.width1 / Vec::lanes; ++v) std::swap(active_[v], now_active_[v]);
    add_changes();
  }

  // q at base + d, in the region, and its gradient [A].
  float value_and_gradient(const float* d, float* gradient) const {
    if (shape_.layers == 2)
      return evaluate(map_, map_ + shape_.width2, shape_.width2, d, gradient);
    return evaluate(at_base_, action_weights_, shape_.width1, d, gradient);
  }

  // q at base + d by the full network, wherever that lies; the region stays as it is.
  float full_value(const float* d) const {
    float* const h1 = scratch_.units;
    int count = 0;
    each_z1(d, [&](int v, Vec z1) {
      count = list(negative_slope_ == 0.0f ? active_lanes(v, z1) : lanes_in_use(v), v, count);
      const Vec slope = select(z1 <= zero(), broadcast(negative_slope_), broadcast(1.0f));
      store(h1 + v * Vec::lanes, slope * z1);
    });
    for (int i = 0; i < count; ++i) scratch_.coefficients[i] = h1[scratch_.index[i]];
    float* const z2 = effective_;
    std::copy_n(head_of(critic_.layers[1].bias, 1, shape_.width2), shape_.width2, z2);
    add_units(count, 1, z2);
    Vec q = zero();
    for (int j = 0; j < shape_.width2; j += Vec::lanes) {
      const Vec z = load(z2 + j);
      const Vec of_unit = effective_weight(j, z);
      q = fma(of_unit, z, q);
      store(effective_ + j, of_unit);
    }
    return sum(q) + output_bias_;
  }

  // gradient [A] += factor times the gradient of q where full_value() was taken, at base + d.
  void add_full_gradient(const float* d, float factor, float* gradient) const {
    const Layer& second = critic_.layers[1];
    int count = 0;
    for (int j = 0; j < second.outputs; ++j) {
      scratch_.index[count] = j;
      scratch_.coefficients[count] = effective_[j];
      count += effective_[j] != 0.0f ? 1 : 0;
    }
    float* const d1 = scratch_.units;
    std::fill_n(d1, shape_.width1, 0.0f);
    const auto width = static_cast<size_t>(shape_.width1);
    const size_t offset = head_ * second.outputs * width;
    if (second.weight_bf16 != nullptr)
      add_product(Rows<bfloat16>{second.weight_bf16 + offset, width, shape_.width1},
                  scratch_.index, count, scratch_.coefficients, 1, 1, d1, width);
    else
      add_product(Rows<float>{second.weight + offset, width, shape_.width1}, scratch_.index, count,
                  scratch_.coefficients, 1, 1, d1, width);
    each_z1(d, [&](int v, Vec z1) {
      float* const of_vector = d1 + v * Vec::lanes;
      const Vec slope = select(z1 <= zero(), broadcast(negative_slope_), broadcast(1.0f));
      store(of_vector, slope * load(of_vector));
    });
    for (int k = 0; k < action_dim(); ++k)
      gradient[k] += factor * inner(action_weights_ + k * width, d1, shape_.width1);
  }

 private:
  int action_dim() const { return actions > 0 ? actions : shape_.action_dim; }

  static constexpr uint32_t all_lanes = (1u << Vec::lanes) - 1;

  static int popcount(uint32_t x) {
#if defined(__GNUC__)
    return __builtin_popcount(x);
#else
    int count = 0;
    for (; x != 0; x &= x - 1) ++count;
    return count;
#endif
  }

  const float* head_of(const float* array, int rows, int width) const {
    return array + static_cast<size_t>(head_) * rows * width;
  }

  bool is_active(int k) const {
    return static_cast<uint32_t>(active_[k / Vec::lanes]) >> k % Vec::lanes & 1;
  }

  uint32_t active_bits(int v) const { return static_cast<uint32_t>(active_[v]); }

  // Bring the maps from the region of now_active to that of active. Returns the number of units in
  // which they differ.
  int add_changes() const {
    int count = 0;
    for (int v = 0; v < shape_.width1 / Vec::lanes; ++v)
      count = list(active_bits(v) ^ static_cast<uint32_t>(now_active_[v]), v, count);
    for (int i = 0; i < count; ++i) {
      const int k = scratch_.index[i];
      set_coefficients(i, k, is_active(k) ? 1.0f - negative_slope_ : negative_slope_ - 1.0f);
    }
    add_units(count, 1 + action_dim(), map_);
    return count;
  }

  // The maps of the home region, at this observation and base.
  void copy_home(const float* observation, const float* base) const {
    const auto width = static_cast<size_t>(shape_.width2);
    const float* const home = head_of(critic_.home, critic_.layers[0].inputs, shape_.width2);
    const float* const slopes = home + critic_.observation_dim * width;
    std::copy_n(head_of(critic_.home_bias, 1, shape_.width2), width, map_);
    std::copy_n(slopes, action_dim() * width, map_ + width);
    for (int i = 0; i < critic_.observation_dim; ++i) scratch_.index[i] = i;
    add_product(Rows<float>{home, width, shape_.width2}, scratch_.index, critic_.observation_dim,
                observation, 1, 1, map_, width);
    for (int j = 0; j < shape_.width2; j += Vec::lanes)
      store(map_ + j, affine(map_, slopes, shape_.width2, base, j));
  }

  // Append the units of vector v whose bits are set to the index; returns its length.
  int list(uint32_t units, int v, int count) const {
    for (; units != 0; units &= units - 1)
      scratch_.index[count++] = v * Vec::lanes + lowest_bit(units);
    return count;
  }

  static int lowest_bit(uint32_t x) {
#if defined(__GNUC__)
    return __builtin_ctz(x);
#else
    int position = 0;
    while ((x >> position & 1) == 0) ++position;
    return position;
#endif
  }

  // The lanes of vector v of the first layer that hold a unit and no padding.
  uint32_t lanes_in_use(int v) const {
    const int left = critic_.layers[0].outputs - v * Vec::lanes;
    return left >= Vec::lanes ? all_lanes : left <= 0 ? 0 : (1u << left) - 1;
  }
  uint32_t active_lanes(int v, Vec z1) const { return ~bits(z1 <= zero()) & lanes_in_use(v); }

  // How far the action has to move at least before the units of vector v change their signs.
  Vec distance_of(int v, Vec z1) const {
    return magnitude(z1) * load(inverse_norm_ + v * Vec::lanes);
  }

  // w * act'(z) of the units j, j + 1, ... of the last hidden layer
  Vec effective_weight(int j, Vec z) const {
    const Vec weight = load(output_ + j);
    return select(z <= zero(), weight * broadcast(negative_slope_), weight);
  }

  // z_1 at base + d, vector by vector
  template <typename Take>
  void each_z1(const float* d, Take take) const {
    for (int v = 0; v < shape_.width1 / Vec::lanes; ++v)
      take(v, affine(at_base_, action_weights_, shape_.width1, d, v * Vec::lanes));
  }

  // Units j, j + 1, ... of start [width] + weights^T x, weights [A, width]
  Vec affine(const float* start, const float* weights, int width, const float* x, int j) const {
    Vec sum = load(start + j);
    for (int k = 0; k < action_dim(); ++k)
      sum = fma(broadcast(x[k]), load(weights + static_cast<size_t>(k) * width + j), sum);
    return sum;
  }

  // coefficients[i] = factor * (p_k, W_1a[k, :])
  void set_coefficients(int i, int k, float factor) const {
    float* const to = scratch_.coefficients + i * (1 + action_dim());
    const Layer& first = critic_.layers[0];
    const float* const weights = head_of(first.weight, first.outputs, padded(first.inputs)) +
                                 static_cast<size_t>(k) * padded(first.inputs) +
                                 critic_.observation_dim;
    to[0] = factor * at_base_[k];
    for (int a = 0; a < action_dim(); ++a) to[1 + a] = factor * weights[a];
  }

  // out [columns, width2] += coefficients [count, columns] of the `count` indexed units times their rows of W_2^T
  void add_units(int count, int columns, float* out) const {
    const Layer& second = critic_.layers[1];
    const auto width = static_cast<size_t>(shape_.width2);
    const size_t offset = head_ * second.inputs * width;
    if (second.transposed_bf16 != nullptr)
      add_product(Rows<bfloat16>{second.transposed_bf16 + offset, width, shape_.width2},
                  scratch_.index, count, scratch_.coefficients, columns, columns, out, width);
    else
      add_product(Rows<float>{second.transposed + offset, width, shape_.width2}, scratch_.index,
                  count, scratch_.coefficients, columns, columns, out, width);
  }

  // map [width], slopes [A, width]
  float evaluate(const float* map, const float* slopes, int width, const float* d,
                 float* gradient) const {
    Vec q = zero();
    if constexpr (actions > 0) {
      Vec move[actions], along[actions];
      DTAG_UNROLL
      for (int k = 0; k < actions; ++k) {
        move[k] = broadcast(d[k]);
        along[k] = zero();
      }
      for (int j = 0; j < width; j += Vec::lanes) {
        Vec column[actions], z = load(map + j);
        DTAG_UNROLL
        for (int k = 0; k < actions; ++k) {
          column[k] = load(slopes + static_cast<size_t>(k) * width + j);
          z = fma(move[k], column[k], z);
        }
        const Vec effective = effective_weight(j, z);
        q = fma(effective, z, q);  // w * act(z), since act(z) = act'(z) z
        DTAG_UNROLL
        for (int k = 0; k < actions; ++k) along[k] = fma(effective, column[k], along[k]);
      }
      DTAG_UNROLL
      for (int k = 0; k < actions; ++k) gradient[k] = sum(along[k]);
    } else {
      float* const effective = scratch_.units;
      for (int j = 0; j < width; j += Vec::lanes) {
        const Vec z = affine(map, slopes, width, d, j);
        const Vec of_unit = effective_weight(j, z);
        q = fma(of_unit, z, q);
        store(effective + j, of_unit);
      }
      for (int k = 0; k < action_dim(); ++k)
        gradient[k] = inner(slopes + static_cast<size_t>(k) * width, effective, width);
    }
    return sum(q) + output_bias_;
  }

  static float inner(const float* x, const float* y, int width) {
    Vec total = zero();
    for (int j = 0; j < width; j += Vec::lanes) total = fma(load(x + j), load(y + j), total);
    return sum(total);
  }

  const Critic& critic_;
  const RegionShape& shape_;
  int head_;
  float* share_;       // [width1], W_1s s + b_1
  float* at_base_;     // [width1], p
  float* map_;         // [1 + A, width2], c and then M^T
  float* effective_;   // [width2], w * act'(z_2) where full_value() was taken
  int32_t* active_;    // [width1 / lanes], bit i of word v: unit v * lanes + i is active
  int32_t* now_active_;  // the same where changes() looked, and of the home region in place()
  RegionScratch scratch_;
  const float* action_weights_;  // [A, width1], W_1a^T
  const float* inverse_norm_;    // [width1]
  const float* output_;          // [width1 or width2], w
  float output_bias_;            // b
  float negative_slope_;         // 0 for ReLU
};

}  // namespace DTAG_TARGET
}  // namespace dtag
