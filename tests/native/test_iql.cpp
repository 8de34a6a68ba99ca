// The update of an IQL critic, in every instruction set that runs here, against the algorithm written
// out in float64: losses, parameters, Adam's averages and targets, after some updates. Batches that
// fill no panel, layers of one unit, one head and several. Results are the same bits for any number
// of threads.
//
//   test_iql
#include <cstdint>
#include <string>
#include <vector>

#include "training_checks.h"

namespace dtag::test {
namespace {

struct Case {
  int observation_dim, action_dim, batch;
  std::vector<int> hidden;
  int heads;
  float negative_slope;
  bool joint, mean_over_heads;
};

// What is trained of a layer, [E, outputs, inputs] and [E, outputs], as the kernel takes it or in
// float64.
template <typename Number>
struct Tensor {
  std::vector<Number> value, mean, square, target;
};

template <typename Number>
struct Layer {
  int inputs, outputs;
  Tensor<Number> weight, bias;
};

template <typename Number>
struct Network {
  int heads;
  bool follows;  // has targets
  std::vector<Layer<Number>> layers;
};

Network<float> made(Random& random, int inputs, const std::vector<int>& hidden, int heads,
                    bool follows) {
  Network<float> network{heads, follows, {}};
  std::vector<int> widths = hidden;
  widths.push_back(1);
  for (const int outputs : widths) {
    const auto tensor = [&](size_t count, float scale) {
      Tensor<float> found{drawn(random, count, scale), drawn(random, count, 0.01f), Floats(count),
                          {}};
      for (float& each : found.square) each = random.uniform(0.0f, 0.01f);
      if (follows) found.target = drawn(random, count, scale);
      return found;
    };
    const float scale = 1.7f / std::sqrt(static_cast<float>(inputs));
    const size_t units = static_cast<size_t>(heads) * outputs;
    network.layers.push_back({inputs, outputs, tensor(units * inputs, scale), tensor(units, 0.3f)});
    inputs = outputs;
  }
  return network;
}

Network<double> widened(const Network<float>& network) {
  Network<double> wide{network.heads, network.follows, {}};
  const auto tensor = [](const Tensor<float>& t) {
    return Tensor<double>{{t.value.begin(), t.value.end()},
                          {t.mean.begin(), t.mean.end()},
                          {t.square.begin(), t.square.end()},
                          {t.target.begin(), t.target.end()}};
  };
  for (const Layer<float>& layer : network.layers)
    wide.layers.push_back({layer.inputs, layer.outputs, tensor(layer.weight), tensor(layer.bias)});
  return wide;
}

// The kernel's view of a network; `layers` is where its layers go.
TrainedNetwork view(Network<float>& network, std::vector<TrainedLayer>& layers) {
  const auto tensor = [&](Tensor<float>& t) {
    return TrainedTensor{t.value.data(), t.mean.data(), t.square.data(),
                         network.follows ? t.target.data() : nullptr};
  };
  for (Layer<float>& layer : network.layers)
    layers.push_back({layer.inputs, layer.outputs, tensor(layer.weight), tensor(layer.bias)});
  return {network.heads, static_cast<int>(layers.size()), layers.data()};
}

// --- in float64 ---

// Values of every layer for one input; the first is the input.
std::vector<Doubles> forward(const Network<double>& network, int head, const Doubles& input,
                             bool target, double slope) {
  std::vector<Doubles> values{input};
  for (size_t l = 0; l < network.layers.size(); ++l) {
    const Layer<double>& layer = network.layers[l];
    const Doubles& weight = target ? layer.weight.target : layer.weight.value;
    const Doubles& bias = target ? layer.bias.target : layer.bias.value;
    Doubles out(static_cast<size_t>(layer.outputs));
    for (size_t i = 0; i < out.size(); ++i) {
      const size_t unit = static_cast<size_t>(head) * layer.outputs + i;
      out[i] = bias[unit];
      for (size_t k = 0; k < values[l].size(); ++k)
        out[i] += weight[unit * layer.inputs + k] * values[l][k];
      if (l + 1 < network.layers.size() && !(out[i] > 0.0)) out[i] *= slope;
    }
    values.push_back(out);
  }
  return values;
}

// Gradients of all tensors, in the order weight, bias, weight, bias, ...
std::vector<Doubles> no_gradients(const Network<double>& network) {
  std::vector<Doubles> found;
  for (const Layer<double>& layer : network.layers) {
    found.emplace_back(layer.weight.value.size());
    found.emplace_back(layer.bias.value.size());
  }
  return found;
}

void add_gradients(const Network<double>& network, int head, const std::vector<Doubles>& values,
                   double by_out, double slope, std::vector<Doubles>& gradients) {
  Doubles by{by_out};
  for (size_t l = network.layers.size(); l-- > 0;) {
    const Layer<double>& layer = network.layers[l];
    Doubles below(values[l].size());
    for (size_t i = 0; i < by.size(); ++i) {
      const size_t unit = static_cast<size_t>(head) * layer.outputs + i;
      gradients[2 * l + 1][unit] += by[i];
      for (size_t k = 0; k < below.size(); ++k) {
        gradients[2 * l][unit * layer.inputs + k] += by[i] * values[l][k];
        below[k] += by[i] * layer.weight.value[unit * layer.inputs + k];
      }
    }
    if (l > 0)
      for (size_t k = 0; k < below.size(); ++k)
        if (!(values[l][k] > 0.0)) below[k] *= slope;
    by = below;
  }
}

void step(Network<double>& network, const std::vector<Doubles>& gradients, const Adam& adam,
          double polyak) {
  size_t number = 0;
  for (Layer<double>& layer : network.layers)
    for (Tensor<double>* t : {&layer.weight, &layer.bias}) {
      const Doubles& gradient = gradients[number++];
      for (size_t i = 0; i < gradient.size(); ++i) {
        t->mean[i] += (1.0 - adam.beta1) * (gradient[i] - t->mean[i]);
        t->square[i] = adam.beta2 * t->square[i] + (1.0 - adam.beta2) * gradient[i] * gradient[i];
        t->value[i] -=
            adam.rate * t->mean[i] / (std::sqrt(t->square[i]) * adam.root_factor + adam.epsilon);
        if (network.follows) t->target[i] += polyak * (t->value[i] - t->target[i]);
      }
    }
}

// One update; losses as in IqlBatch.
Doubles update(const Iql& iql, const Adam& adam, const Floats& rows,
               const std::vector<int64_t>& index, Network<double>& q, Network<double>& value) {
  const size_t n = static_cast<size_t>(iql.observation_dim), a = static_cast<size_t>(iql.action_dim);
  const double slope = iql.negative_slope, batch = iql.batch;
  struct Transition {
    Doubles observation, both, next;
    double reward, continues;
  };
  std::vector<Transition> transitions;
  for (const int64_t i : index) {
    const float* const row = rows.data() + i * static_cast<int64_t>(2 * n + a + 2);
    Transition t{{}, {}, {}, row[2 * n + a], row[2 * n + a + 1]};
    for (size_t k = 0; k < n; ++k) {
      t.observation.push_back((row[k] - iql.mean[k]) / iql.std[k]);
      t.next.push_back((row[n + a + k] - iql.mean[k]) / iql.std[k]);
    }
    t.both = t.observation;
    t.both.insert(t.both.end(), row + n, row + n + a);
    transitions.push_back(t);
  }
  Doubles losses(4), next_values;
  const auto find_next = [&] {
    for (const Transition& t : transitions)
      next_values.push_back(forward(value, 0, t.next, false, slope).back()[0]);
  };
  if (iql.joint) find_next();
  std::vector<Doubles> gradients = no_gradients(value);
  for (const Transition& t : transitions) {
    double least = std::numeric_limits<double>::infinity();
    for (int e = 0; e < q.heads; ++e)
      least = std::min(least, forward(q, e, t.both, true, slope).back()[0]);
    const std::vector<Doubles> values = forward(value, 0, t.observation, false, slope);
    const double v = values.back()[0], u = least - v;
    const double weight = u < 0.0 ? 1.0 - iql.expectile : iql.expectile;
    losses[1] += weight * u * u / batch, losses[3] += v / batch;
    add_gradients(value, 0, values, -2.0 * weight * u / batch, slope, gradients);
  }
  step(value, gradients, adam, 0.0);
  if (!iql.joint) find_next();
  gradients = no_gradients(q);
  for (size_t i = 0; i < transitions.size(); ++i) {
    const Transition& t = transitions[i];
    const double y = t.reward + iql.discount * t.continues * next_values[i];
    for (int e = 0; e < q.heads; ++e) {
      const std::vector<Doubles> values = forward(q, e, t.both, false, slope);
      const double found = values.back()[0], error = found - y;
      losses[0] += iql.q_loss_factor * error * error / batch;
      losses[2] += found / (batch * q.heads);
      add_gradients(q, e, values, 2.0 * iql.q_loss_factor * error / batch, slope, gradients);
    }
  }
  step(q, gradients, adam, iql.polyak);
  return losses;
}

// --- both, side by side ---

void compare(Difference& difference, const Network<float>& found, const Network<double>& expected) {
  for (size_t l = 0; l < found.layers.size(); ++l) {
    const auto tensor = [&](const Tensor<float>& f, const Tensor<double>& e) {
      difference.add(f.value, e.value);
      difference.add(f.mean, e.mean);
      difference.add(f.square, e.square);
      difference.add(f.target, e.target);
    };
    tensor(found.layers[l].weight, expected.layers[l].weight);
    tensor(found.layers[l].bias, expected.layers[l].bias);
  }
}

std::vector<Floats> contents(const Network<float>& network) {
  std::vector<Floats> all;
  for (const Layer<float>& layer : network.layers)
    for (const Tensor<float>* t : {&layer.weight, &layer.bias})
      all.insert(all.end(), {t->value, t->mean, t->square, t->target});
  return all;
}

void check(Report& report, const TrainingKernels& with, const Case& c, uint64_t seed) {
  Random random(seed);
  constexpr int64_t available = 50;
  const size_t n = static_cast<size_t>(c.observation_dim);
  const size_t width = 2 * n + static_cast<size_t>(c.action_dim) + 2;
  Floats rows = drawn(random, static_cast<size_t>(available) * width);
  for (int64_t i = 0; i < available; ++i)
    rows[static_cast<size_t>(i + 1) * width - 1] = static_cast<float>(random.below(2));
  const Floats mean = drawn(random, n);
  Floats std = drawn(random, n, 0.5f);
  for (float& each : std) each += 1.0f;
  const Network<float> q0 =
      made(random, c.observation_dim + c.action_dim, c.hidden, c.heads, true);
  const Network<float> value0 = made(random, c.observation_dim, c.hidden, 1, false);
  std::vector<std::vector<int64_t>> batches(3);
  for (std::vector<int64_t>& index : batches)
    for (int i = 0; i < c.batch; ++i) index.push_back(random.below(static_cast<int>(available)));

  const std::string name = "iql of seed " + std::to_string(seed);
  std::vector<Floats> first;
  for (const int threads : {1, 3}) {
    Network<float> q = q0, value = value0;
    Network<double> wide_q = widened(q0), wide_value = widened(value0);
    std::vector<TrainedLayer> q_layers, value_layers;
    const Iql iql{c.observation_dim,
                  c.action_dim,
                  c.batch,
                  c.negative_slope,
                  0.9f,
                  0.7f,
                  0.1f,
                  c.joint,
                  c.mean_over_heads ? 1.0f / static_cast<float>(c.heads) : 1.0f,
                  mean.data(),
                  std.data(),
                  view(q, q_layers),
                  view(value, value_layers)};
    Difference difference;
    int number = 0;
    for (const std::vector<int64_t>& index : batches) {
      ++number;
      // An epsilon that hides the sign of gradients which are all rounding.
      const Adam adam{static_cast<float>(1e-2 / (1.0 - std::pow(0.9, number))),
                      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(0.999, number))), 1e-2f, 0.9,
                      0.999};
      Floats losses(4, std::numeric_limits<float>::quiet_NaN());
      const Workspace workspace(with.iql_workspace(iql));
      with.iql_step(iql, {rows.data(), index.data(), adam, losses.data()}, workspace.get(), threads);
      if (threads == 1) difference.add(losses, update(iql, adam, rows, index, wide_q, wide_value));
    }
    std::vector<Floats> all = contents(q);
    for (const Floats& each : contents(value)) all.push_back(each);
    if (threads == 1) {
      compare(difference, q, wide_q);
      compare(difference, value, wide_value);
      report.check(name, difference.worst(), 2e-5);
      first = all;
    } else {
      report.check(name + " by threads", all == first);
    }
  }
}

void check_all(Report& report, const TrainingKernels& with) {
  const std::vector<Case> cases = {
      {1, 1, 1, {1}, 1, 0.0f, false, false},       {3, 2, 31, {17}, 2, 0.0f, false, false},
      {17, 6, 33, {17, 5}, 2, 0.01f, true, true},  {5, 3, 64, {33, 40, 9}, 3, 0.0f, false, true},
      {30, 4, 37, {64, 33}, 1, 0.2f, true, false}, {2, 1, 100, {7, 65}, 4, 0.0f, true, false},
      {33, 31, 5, {32, 32}, 2, 0.0f, false, false}};
  for (size_t i = 0; i < cases.size(); ++i) check(report, with, cases[i], i + 1);
}

}  // namespace
}  // namespace dtag::test

int main() { return dtag::test::Report::over_all_isas(dtag::test::check_all); }
