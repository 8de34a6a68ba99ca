// Acting, in every instruction set that runs here, against the model written out in float64: the
// whole window, or with sliding attention the whole episode, anew for every prediction.
//
//   test_acting [how many of the models, spread over all = all]
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "acting.h"
#include "kernels.h"
#include "packed_transformer.h"
#include "problem.h"

namespace dtag::test {
namespace {

using Vector = std::vector<double>;

struct Model {
  Transformer sizes;
  int blocks = 1;
  std::map<std::string, std::vector<float>> tensors;

  // Made when first asked for.
  const std::vector<float>& tensor(const std::string& name, const std::vector<int>& shape) {
    const auto found = tensors.find(name);
    if (found != tensors.end()) return found->second;
    size_t count = 1;
    for (const int n : shape) count *= static_cast<size_t>(n);
    Random random(std::hash<std::string>{}(name) + 17 * static_cast<uint64_t>(sizes.width));
    const bool norm = name.find("norm") != std::string::npos && name.back() == 't';
    const bool positive = name == "action_high" || name == "normalizer.std";
    const float scale = shape.size() == 2 ? 1.5f / std::sqrt(static_cast<float>(shape[1])) : 0.3f;
    std::vector<float> made(count);
    for (float& each : made) {
      each = scale * random.uniform(-1.0f, 1.0f);
      if (norm || positive) each += 1.0f;
      if (name == "action_low") each -= 1.0f;
    }
    return tensors[name] = made;
  }

  std::shared_ptr<PackedTransformer> pack(Precision precision) {
    return std::make_shared<PackedTransformer>(
        sizes, blocks,
        [this](const std::string& name, const std::vector<int>& shape) {
          return tensor(name, shape).data();
        },
        precision);
  }

  Vector linear(const std::string& name, const Vector& x) const {
    const std::vector<float>&weight = tensors.at(name + ".weight"), &bias = tensors.at(name + ".bias");
    Vector out(bias.begin(), bias.end());
    for (size_t j = 0; j < out.size(); ++j)
      for (size_t i = 0; i < x.size(); ++i) out[j] += x[i] * weight[j * x.size() + i];
    return out;
  }

  Vector norm(const std::string& name, const Vector& x) const {
    const std::vector<float>&weight = tensors.at(name + ".weight"), &bias = tensors.at(name + ".bias");
    double mean = 0.0, variance = 0.0;
    for (const double each : x) mean += each / static_cast<double>(x.size());
    for (const double each : x)
      variance += (each - mean) * (each - mean) / static_cast<double>(x.size());
    Vector out(x.size());
    for (size_t i = 0; i < x.size(); ++i)
      out[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
    return out;
  }

  // Hidden states of tokens [T, D] of which token i sees those from first[i] to itself.
  std::vector<Vector> transform(std::vector<Vector> x, const std::vector<size_t>& first) const {
    const size_t head = static_cast<size_t>(sizes.head_width());
    for (int b = 0; b < blocks; ++b) {
      const std::string name = "blocks." + std::to_string(b) + ".";
      std::vector<Vector> q, k, v;
      for (const Vector& each : x) {
        const Vector in = sizes.pre_norm ? norm(name + "attention_norm", each) : each;
        q.push_back(linear(name + "attention.query", in));
        k.push_back(linear(name + "attention.key", in));
        v.push_back(linear(name + "attention.value", in));
      }
      for (size_t i = 0; i < x.size(); ++i) {
        Vector seen(static_cast<size_t>(sizes.width), 0.0);
        for (size_t h = 0; h < seen.size(); h += head) {
          Vector weight;
          double total = 0.0;
          for (size_t j = first[i]; j <= i; ++j) {
            double score = 0.0;
            for (size_t d = h; d < h + head; ++d) score += q[i][d] * k[j][d];
            weight.push_back(std::exp(score / std::sqrt(static_cast<double>(head))));
            total += weight.back();
          }
          for (size_t j = first[i]; j <= i; ++j)
            for (size_t d = h; d < h + head; ++d) seen[d] += weight[j - first[i]] / total * v[j][d];
        }
        add(x[i], linear(name + "attention.projection", seen));
        if (!sizes.pre_norm) x[i] = norm(name + "attention_norm", x[i]);
        Vector hidden = linear(name + "expand", sizes.pre_norm ? norm(name + "mlp_norm", x[i]) : x[i]);
        for (double& z : hidden)
          z = sizes.relu ? std::max(z, 0.0) : 0.5 * z * (1.0 + std::erf(z / std::sqrt(2.0)));
        add(x[i], linear(name + "contract", hidden));
        if (!sizes.pre_norm) x[i] = norm(name + "mlp_norm", x[i]);
      }
    }
    for (Vector& each : x)
      if (sizes.pre_norm) each = norm("final_norm", each);
    return x;
  }

  static void add(Vector& x, const Vector& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
};

struct Step {
  std::vector<float> observation, action;
  float token = 0.0f;
};

// The hidden state of token `last` of the latest step of an episode.
Vector hidden_of(const Model& model, const std::vector<Step>& episode, int last) {
  const Transformer& m = model.sizes;
  const size_t steps = episode.size(), window = static_cast<size_t>(m.window);
  const size_t begin = m.sliding || steps <= window ? 0 : steps - window;
  const std::vector<float>&mean = model.tensors.at("normalizer.mean"),
        &std = model.tensors.at("normalizer.std"), &low = model.tensors.at("action_low"),
        &high = model.tensors.at("action_high"), &time = model.tensors.at("embed_timestep.weight");
  std::vector<Vector> x;
  std::vector<size_t> first;
  for (size_t t = begin; t < steps; ++t)
    for (int o = 0; o < (t + 1 == steps ? last + 1 : tokens_per_step); ++o) {
      const Step& step = episode[t];
      Vector in;
      std::string layer = "embed_return";
      switch (m.kind(o)) {
        case TokenKind::observation:
          layer = "embed_observation";
          for (size_t i = 0; i < step.observation.size(); ++i)
            in.push_back((static_cast<double>(step.observation[i]) - mean[i]) / std[i]);
          break;
        case TokenKind::action:
          layer = "embed_action";
          for (size_t i = 0; i < step.action.size(); ++i)
            in.push_back((2.0 * step.action[i] - low[i] - high[i]) / (high[i] - low[i]));
          break;
        case TokenKind::token:
          in.push_back(static_cast<double>(step.token) / m.rtg_scale);
      }
      Vector embedded = model.linear(layer, in);
      for (size_t i = 0; i < embedded.size(); ++i) embedded[i] += time[t * embedded.size() + i];
      x.push_back(model.norm("embed_norm", embedded));
      const size_t oldest = t + 1 > window ? t + 1 - window : 0;
      first.push_back(m.sliding ? oldest * tokens_per_step : 0);
    }
  return model.transform(x, first).back();
}

std::vector<float> numbers(Random& random, size_t count) {
  std::vector<float> made(count);
  for (float& each : made) each = random.uniform(-1.5f, 1.5f);
  return made;
}

// The largest difference of a prediction along ragged episodes, in units of its size and 1.
double worst_difference(Model& model, Precision precision, int envs, uint64_t seed) {
  const Transformer& m = model.sizes;
  auto acting = std::make_unique<Acting>(model.pack(precision), envs);
  std::vector<std::vector<Step>> episodes(static_cast<size_t>(envs));
  Random random(seed);
  double worst = 0.0;
  const auto compare = [&](double expected, float got) {
    worst = std::max(worst, std::isfinite(got) ? std::abs(expected - got) / (1 + std::abs(expected))
                                               : 1e9);
  };
  for (int t = 0; t < 2 * m.window + 3; ++t) {
    if (t % 3 == 2) {
      const int env = random.below(envs);
      acting->reset(env);
      episodes[static_cast<size_t>(env)].clear();
    }
    if (t == m.window + 1 && envs > 1) {  // some go on, in another order
      std::vector<int> rows;
      for (int env = envs - 1; env >= 0; env -= 2) rows.push_back(env);
      acting = acting->select(rows);
      std::vector<std::vector<Step>> chosen;
      for (const int row : rows) chosen.push_back(episodes[static_cast<size_t>(row)]);
      episodes = chosen;
      envs = static_cast<int>(rows.size());
    }
    std::vector<float> observations, actions(static_cast<size_t>(envs * m.action_dim)),
        returns(static_cast<size_t>(envs));
    for (std::vector<Step>& episode : episodes) {
      episode.push_back({numbers(random, static_cast<size_t>(m.observation_dim)),
                         std::vector<float>(static_cast<size_t>(m.action_dim)), 0.0f});
      const std::vector<float>& seen = episode.back().observation;
      observations.insert(observations.end(), seen.begin(), seen.end());
    }
    acting->begin_step(observations.data());
    if (m.predicts_returns && t % 4 != 3) {
      acting->predict_returns(returns.data());
      for (size_t i = 0; i < episodes.size(); ++i)
        compare(model.linear("predict_return", hidden_of(model, episodes[i], 0))[0] * m.rtg_scale,
                returns[i]);
    }
    for (int tries = 0; tries < 2; ++tries) {
      const std::vector<float> tokens = numbers(random, episodes.size());
      acting->write_tokens(tokens.data());
      for (size_t i = 0; i < episodes.size(); ++i) episodes[i].back().token = tokens[i];
      if (t % 5 == 4) continue;  // a step of which no action is asked
      acting->predict_actions(actions.data());
      for (size_t i = 0; i < episodes.size(); ++i) {
        const Vector mean = model.linear("predict_action", hidden_of(model, episodes[i], 1));
        for (size_t j = 0; j < mean.size(); ++j) {
          const double low = model.tensors["action_low"][j], high = model.tensors["action_high"][j];
          compare((high + low) / 2 + (high - low) / 2 * std::tanh(mean[j]),
                  actions[i * mean.size() + j]);
        }
      }
    }
    for (size_t i = 0; i < actions.size(); ++i) actions[i] = random.uniform(-1.0f, 1.0f);
    acting->write_actions(actions.data());
    for (size_t i = 0; i < episodes.size(); ++i)
      std::copy_n(actions.data() + i * m.action_dim, m.action_dim,
                  episodes[i].back().action.begin());
  }
  return worst;
}

std::vector<Model> models() {
  std::vector<Model> all;
  const std::vector<std::pair<int, int>> widths = {{12, 3}, {33, 1}, {25, 25}, {64, 4}, {40, 5}};
  for (int i = 0; i < 40; ++i) {
    Model model;
    Transformer& m = model.sizes;
    m.width = widths[static_cast<size_t>(i) % widths.size()].first;
    m.heads = widths[static_cast<size_t>(i) % widths.size()].second;
    m.observation_dim = 1 + i % 7;
    m.action_dim = 1 + i % 4;
    m.window = 1 + i % 6;
    m.max_timestep = 32;
    m.predicts_returns = i % 2 == 0;
    m.sliding = i / 2 % 2 == 0;
    m.pre_norm = i / 4 % 2 == 0;
    m.relu = i / 8 % 2 == 0;
    m.rtg_scale = 3.0f;
    model.blocks = 1 + i % 3;
    all.push_back(model);
  }
  return all;
}

int run(size_t count) {
  std::vector<Model> all = models();
  count = std::min(count, all.size());
  int failures = 0;
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    if (kernels().transformer.advance == nullptr) continue;
    double worst[2] = {0.0, 0.0};
    for (size_t i = 0; i < count; ++i) {
      Model& model = all[i * all.size() / count];
      for (const Precision precision : {Precision::fp32, Precision::bf16}) {
        const bool rounded = precision == Precision::bf16;
        const double found = worst_difference(model, precision, 1 + static_cast<int>(i) % 19, i);
        worst[rounded] = std::max(worst[rounded], found);
        if (found < (rounded ? 0.3 : 2e-5)) continue;
        ++failures;
        std::cout << "FAILED " << isa << (rounded ? " bf16" : " fp32") << " model " << i
                  << ": off by " << found << '\n';
      }
    }
    std::cout << isa << ": " << count << " models, off by " << worst[0] << ", in bf16 by "
              << worst[1] << '\n';
    if (worst[1] < 1e-4) {
      ++failures;
      std::cout << "FAILED " << isa << ": bf16 did not round\n";
    }
  }
  return failures;
}

}  // namespace
}  // namespace dtag::test

int main(int argc, char** argv) {
  return dtag::test::run(argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 1000) == 0 ? 0 : 1;
}
