// Refinement in readable C++, one starting point at a time: the specification of the faster
// kernels, and what runs where there is none. No result depends on the batch a row came in.
#include <algorithm>

#include "ascent.h"
#include "ensemble.h"
#include "head_scalar.h"
#include "refine.h"

namespace dtag {
namespace {

class FullNetwork {
 public:
  static WorkspaceSize memory(const Critic& critic) {
    WorkspaceSize size;
    const Options none;
    FullNetwork(critic, none, {}).lay_out(&size);
    return size;
  }

  FullNetwork(const Critic& critic, const Options& options, const Workspace& workspace)
      : critic_(critic), options_(options), workspace_(workspace) {
    lay_out(nullptr);
  }

  void observe(const float* observation) {
    for (int i = 0; i < critic_.observation_dim; ++i)
      observation_[i] = (observation[i] - critic_.mean[i]) / critic_.std[i];
    for (int e = 0; e < critic_.heads; ++e) head(e).observe(observation_);
  }

  void begin() {}
  void stopped() {}

  float value(const float* action) {
    for (int e = 0; e < critic_.heads; ++e) q_[e] = head(e).value(action);
    return combine(options_, q_, critic_.heads, factor_);
  }

  void gradient(float* gradient) {
    std::fill_n(gradient, critic_.action_dim, 0.0f);
    for (int e = 0; e < critic_.heads; ++e)
      if (factor_[e] != 0.0f || !critic_.finite) head(e).add_gradient(factor_[e], gradient);
  }

 private:
  Head head(int e) const {
    return {critic_, e, heads_ + e * Head::memory(critic_), workspace_.indices, d_, d_below_};
  }

  // The parts of the workspace, and their size if it is asked for.
  void lay_out(WorkspaceSize* size) {
    size_t used = 0;
    const auto take = [&](size_t count) {
      float* const taken = workspace_.floats == nullptr ? nullptr : workspace_.floats + used;
      used += count;
      return taken;
    };
    int widest = 0;
    for (int l = 0; l < critic_.hidden_layers; ++l)
      widest = std::max(widest, critic_.layers[l].outputs);
    observation_ = take(critic_.observation_dim);
    heads_ = take(critic_.heads * Head::memory(critic_));
    for (float** units : {&d_, &d_below_}) *units = take(widest);
    for (float** heads : {&q_, &factor_}) *heads = take(critic_.heads);
    if (size != nullptr)
      *size = {used, static_cast<size_t>(
                         std::max({widest, critic_.action_dim, critic_.observation_dim}))};
  }

  const Critic& critic_;
  const Options& options_;
  const Workspace workspace_;
  float* observation_;     // [S], standardised
  float* heads_;           // [E, Head::memory]
  float *d_, *d_below_;    // [widest hidden layer]
  float *q_, *factor_;     // [E]
};

}  // namespace

WorkspaceSize workspace_size_scalar(const Critic& critic) {
  WorkspaceSize size = FullNetwork::memory(critic);
  size.floats += Ascent<FullNetwork>::memory(critic);
  return size;
}

void refine_scalar(const Critic& critic, const Options& options, const Batch& batch,
                   const Result& result, const Workspace& workspace) {
  const size_t ascent_memory = Ascent<FullNetwork>::memory(critic);
  FullNetwork network(critic, options, {workspace.floats + ascent_memory, workspace.indices});
  Ascent<FullNetwork> ascent(network, critic, options, workspace.floats);
  for (int64_t row = 0; row < batch.rows; ++row) {
    ascent.refine_row(batch, result, row, critic.observation_dim);
    result.flips[row] = 0;
    result.dense_steps[row] = batch.starts * options.steps;
  }
}

}  // namespace dtag
