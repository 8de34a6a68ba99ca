// One head's linear region around a base action: the affine maps from the action to the
// pre-activations, exact as long as the hidden units below the last layer keep their signs.
//
//   z_1 = p + W_1a d,              d = action - base, p = z_1 at the base
//   z_l = c_l + M_l d,  l = 2, 3,  c_l = W_l D c_{l-1} + b_l, M_l = W_l D M_{l-1}; c_1 = p, M_1 = W_1a
//   q   = w . act(z_L) + b,  grad = M_L^T (w * act'(z_L))
//
// D is diagonal: the slope, at its sign, of each unit of the layer below. Where a unit k changes its
// sign the map above gets a rank-one term, +- (1 - negative_slope) W_l[:, k] (c_k, M[k, :]). With one
// hidden layer there is nothing to correct. With three, a change in the first layer also reaches
// the third, through the weights between: one more product, of few columns.
//
// The second layer's map is built from nothing, row by row of W_2^T, or by corrections from the
// critic's home region, which was computed when the critic was packed (Critic::home).
//
// Since maps are anchored at the base and not moved along with the action, rounding does not
// accumulate over steps; it does, by one rounding, over corrections.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "../refine.h"
#include "bits.h"
#include "product.h"

namespace dtag {
inline namespace DTAG_TARGET {

constexpr int most_walked_layers = 3;

// What adding a row of weights to one vector costs beside adding it to one of several: reading it
// from the second-level cache takes longer than the multiplication. Measured.
constexpr double single_column_cost = Vec::lanes == 16 ? 2.5 : Vec::lanes == 8 ? 2.0 : 1.0;

// What all heads of a critic have in common: its sizes, and how much memory a head takes.
struct RegionShape {
  explicit RegionShape(const Critic& critic)
      : action_dim(critic.action_dim), layers(critic.hidden_layers) {
    for (int l = 0; l < layers; ++l) {
      width[l] = padded(critic.layers[l].outputs);
      widest = std::max(widest, width[l]);
      floats += l == 0 ? 2 * width[0] : (1 + action_dim) * static_cast<size_t>(width[l]);
      if (l + 1 == layers) floats += width[l];
      words += l + 1 < layers ? 2 * width[l] / Vec::lanes : 0;
    }
  }

  int action_dim;
  int layers;
  int width[most_walked_layers] = {};  // padded
  int widest = 0;
  size_t floats = 0;
  size_t words = 0;
};

// Scratch that the heads share. A change that reaches the third layer has up to A columns.
struct RegionScratch {
  int32_t* index;        // [2, widest] and a vector more, and at least S
  float* coefficients;   // [widest, 1 + A]
  float* through;        // [widest, A], with three layers
  float* units;          // [A, widest], or [1, widest] with fewer than three
};

// `actions` is the number of action dimensions, or 0 to take it from the shape: known when it is
// compiled, the loops over it are unrolled and their vectors stay in registers.
template <int actions>
class Region {
 public:
  // floats [shape.floats], words [shape.words]
  Region(const Critic& critic, const RegionShape& shape, int head, float* floats, int32_t* words,
         const RegionScratch& scratch)
      : critic_(critic), shape_(shape), head_(head), share_(floats), scratch_(scratch) {
    floats += shape.width[0];
    for (int l = 0; l < shape.layers; ++l) {
      map_[l] = floats;
      floats += (l == 0 ? 1 : 1 + action_dim()) * static_cast<size_t>(shape.width[l]);
      active_[l] = words;
      other_[l] = words + shape.width[l] / Vec::lanes;
      words += 2 * shape.width[l] / Vec::lanes;
    }
    effective_ = floats;
    const Layer& first = critic.layers[0];
    action_weights_ = head_of(first.transposed, first.inputs, shape.width[0]) +
                      static_cast<size_t>(critic.observation_dim) * shape.width[0];
    inverse_norm_ = head_of(critic.inverse_norm, 1, shape.width[0]);
    const Layer& last = critic.layers[critic.hidden_layers];
    output_ = head_of(last.weight, 1, padded(last.inputs));
    output_bias_ = last.bias[static_cast<size_t>(head) * padding];
    negative_slope_ = critic.activation == Activation::leaky_relu ? critic.negative_slope : 0.0f;
  }

  // Take a standardised observation [S]: the part of z_1 that does not depend on the action.
  void observe(const float* observation) const {
    const Layer& first = critic_.layers[0];
    const auto width = static_cast<size_t>(shape_.width[0]);
    std::copy_n(head_of(first.bias, 1, shape_.width[0]), width, share_);
    for (int i = 0; i < critic_.observation_dim; ++i) scratch_.index[i] = i;
    add_product(Rows<float>{head_of(first.transposed, first.inputs, shape_.width[0]), width,
                            shape_.width[0]},
                scratch_.index, critic_.observation_dim, observation, 1, 1, share_, width);
  }

  struct Built {
    int rows;      // of weights that were added, each to 1 + A vectors
    int top_rows;  // those among them that were added to the third layer's map
    int active;    // units below the last hidden layer
    float reach;   // how far from the base no first-layer unit changes its sign at least
  };

  // Make `base` [A] the base, and build the maps of the region it lies in, for the standardised
  // observation [S].
  Built place(const float* observation, const float* base) const {
    for (int j = 0; j < shape_.width[0]; j += Vec::lanes)
      store(map_[0] + j, affine(share_, action_weights_, shape_.width[0], base, j));
    Built built{0, 0, 0, std::numeric_limits<float>::infinity()};
    if (shape_.layers == 1) return built;
    place_second(observation, base, &built);
    if (shape_.layers == 3) {
      for (int v = 0; v < shape_.width[1] / Vec::lanes; ++v) {
        active_[1][v] = word(active_lanes(1, v, load(map_[1] + v * Vec::lanes)));
        built.active += popcount(bits_of(active_[1][v]));
      }
      built.top_rows = build(2);
      built.rows += built.top_rows;
    }
    return built;
  }

  // How many first-layer units have another sign at base + d [A] than in this region; and how far
  // from there the signs stay as they are at least.
  int changes(const float* d, float* reach) const {
    int count = 0;
    Vec distance = broadcast(std::numeric_limits<float>::infinity());
    for (int v = 0; v < shape_.width[0] / Vec::lanes; ++v) {
      const Vec z1 = affine(map_[0], action_weights_, shape_.width[0], d, v * Vec::lanes);
      distance = lesser(distance_of(v, z1), distance);
      other_[0][v] = word(active_lanes(0, v, z1));
      count += popcount(bits_of(other_[0][v] ^ active_[0][v]));
    }
    *reach = least(distance);
    return count;
  }

  // Go on to the region in which changes() looked.
  void correct() const {
    swap_signs(0);
    const int count = add_changes(1);
    if (shape_.layers == 3) pass_through(count);
  }

  // With three layers: bring the third layer's map to the second's signs at base + d. Returns how
  // many changed.
  int correct_top(const float* d) const {
    int count = 0;
    for (int v = 0; v < shape_.width[1] / Vec::lanes; ++v) {
      const Vec z2 = affine(map_[1], map_[1] + shape_.width[1], shape_.width[1], d, v * Vec::lanes);
      other_[1][v] = word(active_lanes(1, v, z2));
      count += popcount(bits_of(other_[1][v] ^ active_[1][v]));
    }
    if (count == 0) return 0;
    swap_signs(1);
    if (2 * count > critic_.layers[1].outputs)
      build(2);
    else
      add_changes(2);
    return count;
  }

  // q at base + d, in the region.
  float value(const float* d) const {
    const int top = shape_.layers - 1, width = shape_.width[top];
    Vec q = zero();
    for (int j = 0; j < width; j += Vec::lanes) {
      const Vec z = affine(map_[top], top_slopes(), width, d, j);
      const Vec effective = effective_weight(j, z);
      q = fma(effective, z, q);  // w * act(z), since act(z) = act'(z) z
      store(effective_ + j, effective);
    }
    return sum(q) + output_bias_;
  }

  // gradient [A] += factor times the gradient of q, where the last value() was taken.
  void add_gradient(float factor, float* gradient) const {
    const int width = shape_.width[shape_.layers - 1];
    const float* const slopes = top_slopes();
    if constexpr (actions > 0) {
      Vec along[actions];
      DTAG_UNROLL
      for (int k = 0; k < actions; ++k) along[k] = zero();
      for (int j = 0; j < width; j += Vec::lanes) {
        const Vec effective = load(effective_ + j);
        DTAG_UNROLL
        for (int k = 0; k < actions; ++k)
          along[k] =
              fma(effective, load(slopes + static_cast<size_t>(k) * width + j), along[k]);
      }
      DTAG_UNROLL
      for (int k = 0; k < actions; ++k) gradient[k] += factor * sum(along[k]);
    } else {
      for (int k = 0; k < action_dim(); ++k)
        gradient[k] +=
            factor * inner(slopes + static_cast<size_t>(k) * width, effective_, width);
    }
  }

 private:
  int action_dim() const { return actions > 0 ? actions : shape_.action_dim; }

  const float* head_of(const float* array, int rows, int width) const {
    return array + static_cast<size_t>(head_) * rows * width;
  }

  // [A, width], M_L^T
  const float* top_slopes() const {
    const int top = shape_.layers - 1;
    return top == 0 ? action_weights_ : map_[top] + shape_.width[top];
  }

  // Units j, j + 1, ... of start [width] + weights^T x, weights [A, width]
  Vec affine(const float* start, const float* weights, int width, const float* x, int j) const {
    Vec sum = load(start + j);
    for (int k = 0; k < action_dim(); ++k)
      sum = fma(broadcast(x[k]), load(weights + static_cast<size_t>(k) * width + j), sum);
    return sum;
  }

  // The lanes of vector v of hidden layer l that hold a unit and no padding.
  uint32_t lanes_in_use(int l, int v) const {
    return first_bits(critic_.layers[l].outputs - v * Vec::lanes, Vec::lanes);
  }
  uint32_t active_lanes(int l, int v, Vec z) const { return ~bits(z <= zero()) & lanes_in_use(l, v); }

  bool is_active(int l, int k) const {
    return bits_of(active_[l][k / Vec::lanes]) >> k % Vec::lanes & 1;
  }

  void swap_signs(int l) const {
    for (int v = 0; v < shape_.width[l] / Vec::lanes; ++v) std::swap(active_[l][v], other_[l][v]);
  }

  // How far the action has to move at least before the units of vector v change their signs.
  Vec distance_of(int v, Vec z1) const {
    return magnitude(z1) * load(inverse_norm_ + v * Vec::lanes);
  }

  // w * act'(z) of the units j, j + 1, ... of the last hidden layer
  Vec effective_weight(int j, Vec z) const {
    const Vec weight = load(output_ + j);
    return select(z <= zero(), weight * broadcast(negative_slope_), weight);
  }

  // The signs of the first layer, and the map of the second: from nothing, or from home.
  void place_second(const float* observation, const float* base, Built* built) const {
    const float* const bias = head_of(critic_.layers[0].bias, 1, shape_.width[0]);
    Vec distance = broadcast(built->reach);
    int away = 0;  // units whose sign differs from that in the home region
    for (int v = 0; v < shape_.width[0] / Vec::lanes; ++v) {
      const Vec z1 = load(map_[0] + v * Vec::lanes);
      distance = lesser(distance_of(v, z1), distance);
      active_[0][v] = word(active_lanes(0, v, z1));
      other_[0][v] = word(active_lanes(0, v, load(bias + v * Vec::lanes)));
      built->active += popcount(bits_of(active_[0][v]));
      away += popcount(bits_of(active_[0][v] ^ other_[0][v]));
    }
    built->reach = least(distance);
    const int from_nothing = negative_slope_ == 0.0f ? built->active : critic_.layers[0].outputs;
    const double columns = 1 + action_dim(), inputs = critic_.layers[0].inputs;
    if (away * columns + inputs * single_column_cost < from_nothing * columns) {
      copy_home(observation, base);
      built->rows = add_changes(1);
    } else {
      built->rows = build(1);
    }
  }

  // The second layer's map in the home region, at this observation and base.
  void copy_home(const float* observation, const float* base) const {
    const auto width = static_cast<size_t>(shape_.width[1]);
    const float* const home = head_of(critic_.home, critic_.layers[0].inputs, shape_.width[1]);
    const float* const slopes = home + critic_.observation_dim * width;
    std::copy_n(head_of(critic_.home_bias, 1, shape_.width[1]), width, map_[1]);
    std::copy_n(slopes, action_dim() * width, map_[1] + width);
    for (int i = 0; i < critic_.observation_dim; ++i) scratch_.index[i] = i;
    add_product(Rows<float>{home, width, shape_.width[1]}, scratch_.index,
                critic_.observation_dim, observation, 1, 1, map_[1], width);
    for (int j = 0; j < shape_.width[1]; j += Vec::lanes)
      store(map_[1] + j, affine(map_[1], slopes, shape_.width[1], base, j));
  }

  // The units of hidden layer l whose slope is not 0, to `index`. Returns how many.
  int list_passing(int l, int32_t* index) const {
    int count = 0;
    for (int v = 0; v < shape_.width[l] / Vec::lanes; ++v)
      count += list_lanes(negative_slope_ == 0.0f ? bits_of(active_[l][v]) : lanes_in_use(l, v),
                          v * Vec::lanes, index + count);
    return count;
  }
  float slope(int l, int k) const { return is_active(l, k) ? 1.0f : negative_slope_; }

  // The map of hidden layer l from nothing. Returns the number of rows of weights this took.
  int build(int l) const {
    const auto width = static_cast<size_t>(shape_.width[l]);
    std::copy_n(head_of(critic_.layers[l].bias, 1, shape_.width[l]), width, map_[l]);
    std::fill_n(map_[l] + width, action_dim() * width, 0.0f);
    const int count = list_passing(l - 1, scratch_.index);
    for (int i = 0; i < count; ++i)
      set_coefficients(l - 1, i, slope(l - 1, scratch_.index[i]));
    add_units(l, scratch_.index, count, scratch_.coefficients, 1 + action_dim(), map_[l]);
    return count;
  }

  // The map of hidden layer l from the other signs of the layer below to the active ones. Returns
  // how many differ; the index and the coefficients hold these units and what was added of them.
  int add_changes(int l) const {
    int count = 0;
    for (int v = 0; v < shape_.width[l - 1] / Vec::lanes; ++v)
      count += list_lanes(bits_of(active_[l - 1][v] ^ other_[l - 1][v]), v * Vec::lanes,
                          scratch_.index + count);
    // Signs come in no order: picked by index, not by a branch that is mispredicted half the time.
    const float change[] = {negative_slope_ - 1.0f, 1.0f - negative_slope_};
    for (int i = 0; i < count; ++i)
      set_coefficients(l - 1, i, change[is_active(l - 1, scratch_.index[i])]);
    add_units(l, scratch_.index, count, scratch_.coefficients, 1 + action_dim(), map_[l]);
    return count;
  }

  // What add_changes(1) has just done to `count` units' share of z_2, to the map of z_3:
  // W_3 D W_2[:, k] for each of them, times what was added of it.
  void pass_through(int count) const {
    if (count > action_dim()) {
      build(2);
      return;
    }
    const auto width = static_cast<size_t>(shape_.width[2]);
    const Layer& second = critic_.layers[1];
    const float* const rows = head_of(second.transposed, second.inputs, shape_.width[1]);
    int32_t* const passing = scratch_.index + shape_.widest;
    const int passed = list_passing(1, passing);
    for (int i = 0; i < passed; ++i)
      for (int f = 0; f < count; ++f)
        scratch_.through[i * count + f] =
            slope(1, passing[i]) *
            rows[static_cast<size_t>(scratch_.index[f]) * shape_.width[1] + passing[i]];
    std::fill_n(scratch_.units, count * width, 0.0f);
    add_units(2, passing, passed, scratch_.through, count, scratch_.units);
    for (int f = 0; f < count; ++f) scratch_.index[f] = f;
    add_product(Rows<float>{scratch_.units, width, shape_.width[2]}, scratch_.index, count,
                scratch_.coefficients, 1 + action_dim(), 1 + action_dim(), map_[2], width);
  }

  // coefficients[i] = factor * (c_k, M[k, :]) of hidden layer l, k = index[i]
  void set_coefficients(int l, int i, float factor) const {
    const int k = scratch_.index[i];
    float* const to = scratch_.coefficients + i * (1 + action_dim());
    to[0] = factor * map_[l][k];
    if (l == 0) {
      const Layer& first = critic_.layers[0];
      const float* const weights = head_of(first.weight, first.outputs, padded(first.inputs)) +
                                   static_cast<size_t>(k) * padded(first.inputs) +
                                   critic_.observation_dim;
      for (int a = 0; a < action_dim(); ++a) to[1 + a] = factor * weights[a];
    } else {
      const float* const slopes = map_[l] + shape_.width[l] + k;
      for (int a = 0; a < action_dim(); ++a)
        to[1 + a] = factor * slopes[static_cast<size_t>(a) * shape_.width[l]];
    }
  }

  // out [columns, width] += coefficients [count, columns] of indexed units of the layer below
  // hidden layer l, times their rows of W_l^T
  void add_units(int l, const int32_t* index, int count, const float* coefficients, int columns,
                 float* out) const {
    add_layer_product(critic_.layers[l], false, head_, index, count, coefficients, columns, out);
  }

  const Critic& critic_;
  const RegionShape& shape_;
  int head_;
  float* share_;                         // [width 1], W_1s s + b_1
  float* map_[most_walked_layers];       // p [width 1]; c and then M^T [1 + A, width l]
  float* effective_;                     // [width of the last layer], w * act'(z_L) at value()
  int32_t* active_[most_walked_layers];  // bit i of word v: unit v * lanes + i is active
  int32_t* other_[most_walked_layers];   // the same elsewhere: where changes() looked, or at home
  RegionScratch scratch_;
  const float* action_weights_;          // [A, width 1], W_1a^T
  const float* inverse_norm_;            // [width 1]
  const float* output_;                  // [width of the last layer], w
  float output_bias_;                    // b
  float negative_slope_;                 // 0 for ReLU
};

}  // namespace DTAG_TARGET
}  // namespace dtag
