#include "cost_model.h"

#include <algorithm>

namespace dtag {
namespace {

// Of a fresh critic's ReLUs; a trained one has some more, but then lies nearer to its home region.
constexpr double passing = 0.5;
constexpr int points_of_a_block = 16;

double product_weights(const Critic& critic) {  // between hidden layers, of one head
  double weights = 0.0;
  for (int l = 1; l < critic.hidden_layers; ++l)
    weights += static_cast<double>(critic.layers[l].inputs) * critic.layers[l].outputs;
  return weights;
}

double share(const CostRates& rates, const Critic& critic) {
  return rates.share_weight * critic.heads * critic.observation_dim * critic.layers[0].outputs;
}

double build(const CostRates& rates, const Critic& critic) {
  return rates.build_weight * critic.heads * passing * product_weights(critic) *
         (1 + critic.action_dim);
}

double walk_steps(const CostRates& rates, const Critic& critic, const Options& options) {
  double maps = 0.0;
  for (int l = 0; l < critic.hidden_layers; ++l)
    maps += static_cast<double>(critic.action_dim) * critic.layers[l].outputs;
  maps += static_cast<double>(critic.action_dim) *
          critic.layers[critic.hidden_layers - 1].outputs;  // value, and gradient
  return (options.steps + 1.0) * critic.heads * (rates.step_weight * maps + rates.step);
}

double dense(const CostRates& rates, const Critic& critic, const Options& options,
             double points) {
  const double lone = std::min(1.0, std::max(0.0, (points_of_a_block - points) /
                                                      (points_of_a_block - 1.0)));
  const bool sparse = critic.activation == Activation::relu;
  const double weight = lone * rates.single_weight * (sparse ? passing : 1.0) +
                        (1.0 - lone) * rates.block_weight;
  double units = 0.0;
  for (int l = 0; l < critic.hidden_layers; ++l) units += critic.layers[l].outputs;
  const double actions = critic.hidden_layers == 0
                             ? 0.0
                             : static_cast<double>(critic.action_dim) * critic.layers[0].outputs;
  const double pass = weight * (product_weights(critic) + actions);
  const double backward = options.ensemble == Ensemble::min ? 1.0 : critic.heads;
  return (options.steps + 1.0) *
             (critic.heads * (pass + rates.unit * units) + rates.candidate) +
         options.steps * backward * pass;
}

}  // namespace

double estimated_microseconds(const CostRates& rates, const Critic& critic,
                              const Options& options, const Batch& batch, Algorithm algorithm) {
  const double points = static_cast<double>(batch.rows) * batch.starts;
  const double point = algorithm == Algorithm::walk
                           ? build(rates, critic) + walk_steps(rates, critic, options)
                           : dense(rates, critic, options, points);
  return 1e-3 * (points * point + static_cast<double>(batch.rows) * share(rates, critic));
}

Algorithm quicker(const CostRates& rates, const Critic& critic, const Options& options) {
  const double full = dense(rates, critic, options, 0.5 * points_of_a_block);
  const double regions = build(rates, critic);
  const double walk = regions + walk_steps(rates, critic, options);
  // The worst of paths builds the regions and then takes every step by the full network.
  return walk < full && regions < 0.45 * full ? Algorithm::walk : Algorithm::dense;
}

}  // namespace dtag
