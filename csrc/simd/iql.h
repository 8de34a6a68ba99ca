// An update of an IQL critic in four phases, parallel over parts of the batch or of the weights:
//
//   1. per part of the batch: targets' min Q(s, a), V(s), V's loss, its derivatives backward
//   2. per part of V's weights: their gradient over the whole batch, and Adam's step at once
//   3. per part: V(s') (in phase 1 where it comes from the old V), Q(s, a), its loss, backward
//   4. per part of Q's weights: gradient, Adam, and the target's step
//
// A part of the batch is a panel: [features, 32], transitions side by side, so that every layer is a
// product of weights as they are with a panel. Gradients of weights are products of panels of
// derivatives with the transposed inputs, which the forward pass leaves in panels of their own,
// [features / 32, batch, 32]. Columns beyond the batch have zero derivatives and add nothing.
#pragma once

#include "../phases.h"
#include "product_tile.h"

namespace dtag {
inline namespace DTAG_TARGET {

// One head's memory of a forward pass: of each hidden layer values and derivatives in panels
// [parts, width, 32], and the transposed values.
class Passes {
 public:
  Passes(const TrainedNetwork& network, int parts, float* memory)
      : network_(network), parts_(parts), memory_(memory) {}

  static size_t size(const TrainedNetwork& network, int parts) {
    size_t floats = 0;
    for (int l = 0; l + 1 < network.layers; ++l) floats += layer_size(network.layer[l], parts);
    return floats * network.heads;
  }

  // Of hidden layer l: outputs of network.layer[l].
  float* values(int head, int l) const {
    float* found = memory_ + head * (size(network_, parts_) / network_.heads);
    for (int below = 0; below < l; ++below) found += layer_size(network_.layer[below], parts_);
    return found;
  }
  float* derivatives(int head, int l) const {
    return values(head, l) + panel_size(network_.layer[l]) * parts_;
  }
  float* transposed(int head, int l) const {
    return values(head, l) + 2 * panel_size(network_.layer[l]) * parts_;
  }
  static size_t panel_size(const TrainedLayer& layer) {
    return static_cast<size_t>(layer.outputs) * panel;
  }

 private:
  static size_t layer_size(const TrainedLayer& layer, int parts) {
    const size_t padded_width = static_cast<size_t>(panels(layer.outputs)) * panel;
    return (2 * layer.outputs + padded_width) * panel * parts;
  }

  const TrainedNetwork& network_;
  const int parts_;
  float* const memory_;
};

// [width, 32] to row `part` of panels [width / 32, parts, 32, 32].
inline void transpose_panel(const float* values, int width, int part, int parts, float* to) {
  for (int p = 0; p < panels(width); ++p) {
    float* const square = to + (static_cast<size_t>(p) * parts + part) * panel * panel;
    const float* const from = values + static_cast<size_t>(p) * panel * panel;
    const int rows = width - p * panel;
    if (rows >= panel) {
      transpose_square(from, panel, square);
      continue;
    }
    for (int c = 0; c < panel; ++c)
      for (int r = 0; r < panel; ++r) square[c * panel + r] = r < rows ? from[r * panel + c] : 0.0f;
  }
}

class IqlUpdate {
 public:
  static size_t workspace(const Iql& iql) {
    const int parts = panels(iql.batch), columns = parts * panel;
    const int inputs = iql.observation_dim + iql.action_dim;
    return Passes::size(iql.q, parts) + Passes::size(iql.value, parts) +
           static_cast<size_t>(columns) *
               (inputs + panels(inputs) * panel + iql.observation_dim + 4 + iql.q.heads) +
           static_cast<size_t>(parts) * panel * sums;
  }

  IqlUpdate(const Iql& iql, const IqlBatch& batch, float* memory)
      : iql_(iql),
        batch_(batch),
        parts_(panels(iql.batch)),
        inputs_(iql.observation_dim + iql.action_dim),
        q_(iql.q, parts_, memory),
        value_(iql.value, parts_, memory + Passes::size(iql.q, parts_)) {
    const size_t columns = static_cast<size_t>(parts_) * panel;
    input_ = memory + Passes::size(iql.q, parts_) + Passes::size(iql.value, parts_);
    transposed_ = input_ + columns * inputs_;
    next_ = transposed_ + columns * panels(inputs_) * panel;
    next_value_ = next_ + columns * iql.observation_dim;
    reward_ = next_value_ + columns;
    continues_ = reward_ + columns;
    value_derivative_ = continues_ + columns;
    q_derivative_ = value_derivative_ + columns;
    sums_ = q_derivative_ + columns * iql.q.heads;
  }

  static constexpr int phases = 4;

  int count(int phase) const {
    return phase % 2 == 0 ? parts_ : items(phase == 1 ? iql_.value : iql_.q);
  }
  void item(int phase, int i) const {
    if (phase == 0) train_value(i);
    if (phase == 1) step(iql_.value, value_, value_derivative_, i);
    if (phase == 2) train_q(i);
    if (phase == 3) step(iql_.q, q_, q_derivative_, i);
  }

  void write_losses() const {
    double total[sums] = {};
    for (int part = 0; part < parts_; ++part)
      for (int s = 0; s < sums; ++s) total[s] += sums_[part * panel + s];
    const double batch = iql_.batch;
    batch_.losses[0] = static_cast<float>(total[0] * iql_.q_loss_factor / batch);
    batch_.losses[1] = static_cast<float>(total[1] / batch);
    batch_.losses[2] = static_cast<float>(total[2] / (batch * iql_.q.heads));
    batch_.losses[3] = static_cast<float>(total[3] / batch);
  }

 private:
  static constexpr int sums = 4;  // of a part: Q loss, V loss, Q, V

  int columns(int part) const {
    return iql_.batch - part * panel < panel ? iql_.batch - part * panel : panel;
  }

  // --- phases 1 and 3 ---

  void train_value(int part) const {
    gather(part);
    float* const loss = sums_ + part * panel;
    if (iql_.joint) next_values(part);
    alignas(64) float least[panel], q[panel], value[panel];
    for (int e = 0; e < iql_.q.heads; ++e) {
      // Q's own pass comes later: until then its memory is the targets'.
      forward(iql_.q, q_, e, input(part), part, true, false, q);
      for (int j = 0; j < panel; ++j) least[j] = e == 0 || q[j] < least[j] || q[j] != q[j] ? q[j] : least[j];
    }
    forward(iql_.value, value_, 0, input(part), part, false, true, value);
    float* const derivative = value_derivative_ + part * panel;
    loss[1] = loss[3] = 0.0f;
    for (int j = 0; j < panel; ++j) {
      const bool real = j < columns(part);
      const float u = least[j] - value[j];
      const float weight = u < 0 ? 1.0f - iql_.expectile : iql_.expectile;
      derivative[j] = real ? -2.0f * weight * u / static_cast<float>(iql_.batch) : 0.0f;
      if (real) loss[1] += weight * u * u, loss[3] += value[j];
    }
    backward(iql_.value, value_, 0, derivative, part);
  }

  void train_q(int part) const {
    if (!iql_.joint) next_values(part);
    float* const loss = sums_ + part * panel;
    alignas(64) float q[panel];
    loss[0] = loss[2] = 0.0f;
    const float factor = 2.0f * iql_.q_loss_factor / static_cast<float>(iql_.batch);
    for (int e = 0; e < iql_.q.heads; ++e) {
      forward(iql_.q, q_, e, input(part), part, false, true, q);
      float* const derivative = q_derivative_ + (static_cast<size_t>(e) * parts_ + part) * panel;
      for (int j = 0; j < panel; ++j) {
        const int column = part * panel + j;
        const bool real = j < columns(part);
        const float y = reward_[column] + iql_.discount * continues_[column] * next_value_[column];
        const float error = q[j] - y;
        derivative[j] = real ? factor * error : 0.0f;
        if (real) loss[0] += error * error, loss[2] += q[j];
      }
      backward(iql_.q, q_, e, derivative, part);
    }
  }

  void next_values(int part) const {
    const float* const next = next_ + static_cast<size_t>(part) * panel * iql_.observation_dim;
    forward(iql_.value, value_, 0, next, part, false, false, next_value_ + part * panel);
  }

  float* input(int part) const { return input_ + static_cast<size_t>(part) * panel * inputs_; }

  // A part of the batch from the dataset's rows, observations standardised.
  void gather(int part) const {
    const int n = iql_.observation_dim, a = iql_.action_dim;
    float* const x = input(part);
    float* const next = next_ + static_cast<size_t>(part) * panel * n;
    for (int j = 0; j < panel; ++j) {
      // Columns beyond the batch repeat its first row; their derivatives are zero.
      const int64_t index = batch_.index[j < columns(part) ? part * panel + j : 0];
      const float* const row = batch_.rows + index * (2 * n + a + 2);
      for (int i = 0; i < n; ++i) {
        x[i * panel + j] = (row[i] - iql_.mean[i]) / iql_.std[i];
        next[i * panel + j] = (row[n + a + i] - iql_.mean[i]) / iql_.std[i];
      }
      for (int i = 0; i < a; ++i) x[(n + i) * panel + j] = row[n + i];
      reward_[part * panel + j] = row[2 * n + a];
      continues_[part * panel + j] = row[2 * n + a + 1];
    }
    transpose_panel(x, inputs_, part, parts_, transposed_);
  }

  // out [32] of a panel; `keep` leaves transposed values for the weights' gradients.
  void forward(const TrainedNetwork& network, const Passes& passes, int head, const float* x,
               int part, bool target, bool keep, float* out) const {
    const int last = network.layers - 1;
    for (int l = 0; l < last; ++l) {
      const TrainedLayer& layer = network.layer[l];
      const float* const weight = target ? layer.weight.target : layer.weight.value;
      const float* const bias =
          (target ? layer.bias.target : layer.bias.value) + static_cast<size_t>(head) * layer.outputs;
      float* const h = passes.values(head, l) + part * Passes::panel_size(layer);
      const Vec slope = broadcast(iql_.negative_slope);
      const size_t offset = static_cast<size_t>(head) * layer.outputs * layer.inputs;
      product_panel(Matrix{weight + offset, layer.inputs, 1}, layer.outputs, x, layer.inputs,
                    [&](int i, int j, Vec sum) {
                      const Vec z = sum + broadcast(bias[i]);
                      store(h + i * panel + j, select(zero() < z, z, slope * z));
                    });
      if (keep) transpose_panel(h, layer.outputs, part, parts_, passes.transposed(head, l));
      x = h;
    }
    const TrainedLayer& layer = network.layer[last];
    const float* const weight = (target ? layer.weight.target : layer.weight.value) +
                                static_cast<size_t>(head) * layer.inputs;
    const float bias = (target ? layer.bias.target : layer.bias.value)[head];
    for (int j = 0; j < panel; j += Vec::lanes) {
      Vec sum[4] = {zero(), zero(), zero(), zero()};
      for (int i = 0; i < layer.inputs; ++i)
        sum[i % 4] = fma(broadcast(weight[i]), load(x + i * panel + j), sum[i % 4]);
      store(out + j, (sum[0] + sum[1]) + (sum[2] + sum[3]) + broadcast(bias));
    }
  }

  // The loss's derivatives by the inputs of every activation, from those by the output, [32].
  void backward(const TrainedNetwork& network, const Passes& passes, int head, const float* by_out,
                int part) const {
    const Vec slope = broadcast(iql_.negative_slope);
    const int last = network.layers - 1;
    const auto place = [&](float* panels_of, int l) {
      return panels_of + part * Passes::panel_size(network.layer[l]);
    };
    {
      const TrainedLayer& layer = network.layer[last];
      const float* const weight = layer.weight.value + static_cast<size_t>(head) * layer.inputs;
      const float* const h = place(passes.values(head, last - 1), last - 1);
      float* const d = place(passes.derivatives(head, last - 1), last - 1);
      for (int i = 0; i < layer.inputs; ++i)
        for (int j = 0; j < panel; j += Vec::lanes) {
          const Vec by_h = broadcast(weight[i]) * load(by_out + j);
          store(d + i * panel + j,
                select(zero() < load(h + i * panel + j), by_h, slope * by_h));
        }
    }
    for (int l = last - 1; l > 0; --l) {
      const TrainedLayer& layer = network.layer[l];
      const float* const weight =
          layer.weight.value + static_cast<size_t>(head) * layer.outputs * layer.inputs;
      const float* const h = place(passes.values(head, l - 1), l - 1);
      float* const d = place(passes.derivatives(head, l - 1), l - 1);
      product_panel(Matrix{weight, 1, layer.inputs}, layer.inputs,
                    place(passes.derivatives(head, l), l), layer.outputs,
                    [&](int i, int j, Vec by_h) {
                      store(d + i * panel + j,
                            select(zero() < load(h + i * panel + j), by_h, slope * by_h));
                    });
    }
  }

  // --- phases 2 and 4 ---

  // For each head: a panel of the inputs of each hidden layer, and all that is left.
  static int items(const TrainedNetwork& network) {
    int count = 1;
    for (int l = 0; l + 1 < network.layers; ++l) count += panels(network.layer[l].inputs);
    return count * network.heads;
  }

  void step(const TrainedNetwork& network, const Passes& passes, const float* by_out, int i) const {
    const int head = i % network.heads;
    int left = i / network.heads;
    for (int l = network.layers - 2; l >= 0; --l) {  // the small ones last
      const int here = panels(network.layer[l].inputs);
      if (left < here) return step_panel(network.layer[l], passes, head, l, left);
      left -= here;
    }
    step_rest(network, passes, by_out, head);
  }

  void step_panel(const TrainedLayer& layer, const Passes& passes, int head, int l, int p) const {
    const float* const inputs = l == 0 ? transposed_ : passes.transposed(head, l - 1);
    const float* const square = inputs + static_cast<size_t>(p) * parts_ * panel * panel;
    const Segments segments{parts_, panel, static_cast<ptrdiff_t>(Passes::panel_size(layer)),
                            panel * panel};
    const size_t offset = static_cast<size_t>(head) * layer.outputs * layer.inputs;
    product_panel(Matrix{passes.derivatives(head, l), panel, 1}, layer.outputs, square, segments,
                  [&](int i, int j, Vec gradient) {
                    const int column = p * panel + j;
                    if (column < layer.inputs)
                      adam(layer.weight, offset + static_cast<size_t>(i) * layer.inputs + column,
                           layer.inputs - column, gradient);
                  });
  }

  // The last layer, and the biases of all.
  void step_rest(const TrainedNetwork& network, const Passes& passes, const float* by_out,
                 int head) const {
    const int last = network.layers - 1;
    const float* const own = by_out + static_cast<size_t>(head) * parts_ * panel;
    float total = 0.0f;
    for (int part = 0; part < parts_; ++part) total += row_sum(own + part * panel);
    for (int l = 0; l < last; ++l) {
      const TrainedLayer& layer = network.layer[l];
      const float* const d = passes.derivatives(head, l);
      adam_each(layer.bias, head, layer.outputs, [&](int i) {
        float sum = 0.0f;
        for (int part = 0; part < parts_; ++part)
          sum += row_sum(d + part * Passes::panel_size(layer) + i * panel);
        return sum;
      });
    }
    const TrainedLayer& layer = network.layer[last];
    const TrainedLayer& below = network.layer[last - 1];
    const float* const h = passes.values(head, last - 1);
    adam_each(layer.weight, head, layer.inputs, [&](int i) {
      Vec sum = zero();
      for (int part = 0; part < parts_; ++part)
        for (int j = 0; j < panel; j += Vec::lanes)
          sum = fma(load(h + part * Passes::panel_size(below) + i * panel + j),
                    load(own + part * panel + j), sum);
      return dtag::sum(sum);
    });
    adam_each(layer.bias, head, 1, [&](int) { return total; });
  }

  static float row_sum(const float* row) {
    Vec total = zero();
    for (int j = 0; j < panel; j += Vec::lanes) total = total + load(row + j);
    return sum(total);
  }

  // Adam's step for a head's vector of a tensor [E, width].
  template <typename Gradient>
  void adam_each(const TrainedTensor& tensor, int head, int width, const Gradient& gradient) const {
    float lane[Vec::lanes] = {};
    for (int i = 0; i < width; i += Vec::lanes) {
      for (int k = 0; k < Vec::lanes && i + k < width; ++k) lane[k] = gradient(i + k);
      adam(tensor, static_cast<size_t>(head) * width + i, width - i, load(lane));
    }
  }

  // Adam's step for up to a vector of elements, and the target's step after it.
  void adam(const TrainedTensor& tensor, size_t offset, int count, Vec gradient) const {
    float* at[] = {tensor.value + offset, tensor.mean + offset, tensor.square + offset,
                   tensor.target == nullptr ? nullptr : tensor.target + offset};
    if (count >= Vec::lanes) return adam_vector(at, gradient);
    float lane[4][Vec::lanes] = {};
    float* lanes[4] = {lane[0], lane[1], lane[2], at[3] == nullptr ? nullptr : lane[3]};
    for (int t = 0; t < 4 && at[t] != nullptr; ++t)
      for (int k = 0; k < count; ++k) lane[t][k] = at[t][k];
    adam_vector(lanes, gradient);
    for (int t = 0; t < 4 && at[t] != nullptr; ++t)
      for (int k = 0; k < count; ++k) at[t][k] = lane[t][k];
  }

  void adam_vector(float* const (&at)[4], Vec gradient) const {
    const Adam& a = batch_.adam;
    const Vec mean = fma(gradient - load(at[1]), narrow(1.0 - a.beta1), load(at[1]));
    const Vec square =
        fma(gradient * gradient, narrow(1.0 - a.beta2), load(at[2]) * narrow(a.beta2));
    store(at[1], mean);
    store(at[2], square);
    const Vec root = fma(square_root(square), broadcast(a.root_factor), broadcast(a.epsilon));
    const Vec value = load(at[0]) - broadcast(a.rate) * (mean / root);
    store(at[0], value);
    if (at[3] != nullptr)
      store(at[3], fma(value - load(at[3]), broadcast(iql_.polyak), load(at[3])));
  }

  const Iql& iql_;
  const IqlBatch& batch_;
  const int parts_, inputs_;
  const Passes q_, value_;
  float *input_, *transposed_, *next_;  // panels [S + A, 32]; [(S + A) / 32, batch, 32]; [S, 32]
  float *next_value_, *reward_, *continues_, *value_derivative_;  // [batch]
  float* q_derivative_;                                           // [E, batch]
  float* sums_;                                                   // [parts, 32], of which 4 used
};

inline size_t iql_workspace(const Iql& iql) { return IqlUpdate::workspace(iql); }

inline void iql_step(const Iql& iql, const IqlBatch& batch, float* workspace, int threads) {
  const IqlUpdate update(iql, batch, workspace);
  run_phases(threads, IqlUpdate::phases, update);
  update.write_losses();
}

}  // namespace DTAG_TARGET
}  // namespace dtag
