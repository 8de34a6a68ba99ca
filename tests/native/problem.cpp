#include "problem.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace dtag::test {

std::string to_string(const Settings& settings) {
  constexpr const char* activations[] = {"relu", "leaky_relu", "tanh", "gelu",
                                         "silu", "mish",       "elu"};
  constexpr const char* optimizers[] = {"sgd", "momentum", "rmsprop", "adam"};
  constexpr const char* ensembles[] = {"min", "mean", "lcb"};
  const Options& options = settings.options;
  std::ostringstream text;
  text << "S " << settings.observation_dim << ", A " << settings.action_dim << ", "
       << settings.heads << " heads of";
  for (const int width : settings.hidden) text << ' ' << width;
  text << ' ' << activations[static_cast<int>(settings.activation)] << ' '
       << settings.negative_slope << (settings.layer_norm ? ", layer norm" : "")
       << (settings.precision == Precision::bf16 ? ", bf16" : "") << ", gain " << settings.gain
       << ", seed " << settings.seed << "; " << settings.rows << " rows, " << settings.starts
       << " starts" << (settings.boxed ? ", boxed" : "") << "; " << options.steps << " steps of "
       << options.step_size << ' ' << optimizers[static_cast<int>(options.optimizer)] << ", "
       << ensembles[static_cast<int>(options.ensemble)] << ' ' << options.lcb_k << ", select "
       << (options.select == Select::best ? "best" : "last") << ", max_distance "
       << options.max_distance << (options.gradient == Gradient::unit ? ", unit gradient" : "");
  return text.str();
}

bool amplifies_rounding(const Settings& settings) {
  const Options& options = settings.options;
  return (options.gradient == Gradient::unit || options.optimizer == Optimizer::rmsprop ||
          options.optimizer == Optimizer::adam) &&
         std::any_of(settings.hidden.begin(), settings.hidden.end(),
                     [](int width) { return width < 16; });
}

Problem::Problem(const Settings& given) : settings(given) {
  Random random(settings.seed);
  const auto numbers = [&](int64_t count, float low, float high) {
    std::vector<float> made(static_cast<size_t>(count));
    for (float& x : made) x = random.uniform(low, high);
    return made;
  };
  mean = numbers(settings.observation_dim, -0.5f, 0.5f);
  std = numbers(settings.observation_dim, 0.5f, 1.5f);
  int inputs = settings.observation_dim + settings.action_dim;
  std::vector<int> widths = settings.hidden;
  widths.push_back(1);
  for (size_t l = 0; l < widths.size(); ++l) {
    const int outputs = widths[l];
    const int64_t units = static_cast<int64_t>(settings.heads) * outputs;
    const float bound = settings.gain / std::sqrt(static_cast<float>(inputs));
    LayerNumbers layer{inputs, outputs, numbers(units * inputs, -bound, bound),
                       numbers(units, -bound, bound), {}, {}};
    if (settings.layer_norm && l + 1 < widths.size()) {
      layer.norm_weight = numbers(units, 0.5f, 1.5f);
      layer.norm_bias = numbers(units, -0.5f, 0.5f);
    }
    layers.push_back(std::move(layer));
    inputs = outputs;
  }
  const int64_t points = settings.rows * settings.starts;
  observations = numbers(settings.rows * settings.observation_dim, -2.0f, 2.0f);
  actions = numbers(points * settings.action_dim, -1.2f, 1.2f);
  if (settings.boxed) {
    low.assign(static_cast<size_t>(settings.action_dim), -1.0f);
    high.assign(static_cast<size_t>(settings.action_dim), 1.0f);
    low.back() = -0.75f;
    high.back() = 0.25f;
  }
}

PackedCritic Problem::pack() const {
  const auto data = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
  std::vector<LayerSource> sources;
  for (const LayerNumbers& layer : layers)
    sources.push_back({layer.inputs, layer.outputs, data(layer.weight), data(layer.bias),
                       data(layer.norm_weight), data(layer.norm_bias)});
  return PackedCritic(settings.observation_dim, settings.action_dim, settings.heads,
                      settings.activation, settings.negative_slope, mean.data(), std.data(),
                      sources, settings.precision);
}

Options Problem::options() const {
  Options options = settings.options;
  options.low = low.empty() ? nullptr : low.data();
  options.high = high.empty() ? nullptr : high.data();
  return options;
}

Problem Problem::as_packed() const {
  Problem copy = *this;
  copy.settings.precision = Precision::fp32;
  const PackedCritic packed = pack();
  for (size_t l = 0; l < layers.size(); ++l) {
    const auto inputs = static_cast<size_t>(layers[l].inputs);
    std::vector<float>& weight = copy.layers[l].weight;
    for (size_t row = 0; row * inputs < weight.size(); ++row)
      std::copy_n(packed.view().layers[l].weight + row * padded(layers[l].inputs), inputs,
                  weight.data() + row * inputs);
  }
  return copy;
}

Problem Problem::shaken(uint64_t seed) const {
  Problem copy = *this;
  Random random(seed);
  for (std::vector<float>* array : copy.numbers())
    for (float& x : *array) x *= 1.0f + random.uniform(-1e-6f, 1e-6f);
  copy.settings.negative_slope += random.uniform(-1e-6f, 1e-6f);
  return copy;
}

std::vector<std::vector<float>*> Problem::numbers() {
  std::vector<std::vector<float>*> all = {&mean, &std, &observations, &actions};
  for (LayerNumbers& layer : layers)
    for (std::vector<float>* array :
         {&layer.weight, &layer.bias, &layer.norm_weight, &layer.norm_bias})
      all.push_back(array);
  return all;
}

}  // namespace dtag::test
