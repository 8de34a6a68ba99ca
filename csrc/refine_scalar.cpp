// Refinement in readable C++, one starting point at a time: the specification of the faster
// kernels, and what runs where there is none. No result depends on the batch a row came in.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ensemble.h"
#include "head_scalar.h"
#include "optimizer.h"
#include "projection.h"
#include "refine.h"
#include "vector_loops.h"

namespace dtag {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

bool all_finite(const float* x, int n) {
  return std::all_of(x, x + n, [](float value) { return std::isfinite(value); });
}

float or_minus_infinity(float q) { return std::isfinite(q) ? q : minus_infinity; }

// The scratch memory by name.
struct Scratch {
  float* observation;  // [S], standardised
  float* heads;        // [E, Head::memory]
  float *d, *d_below;  // [widest hidden layer]
  float *q, *factor;   // [E]
  float *initial, *action, *proposal, *best, *move, *gradient, *first, *second;  // [A]
  int32_t* indices;    // [widest input of a layer]
};

// The parts of a workspace, or with an empty one only their size.
Scratch lay_out(const Critic& critic, const Workspace& workspace, WorkspaceSize* size) {
  WorkspaceSize used;
  const auto take = [&](size_t count) {
    float* const taken = workspace.floats == nullptr ? nullptr : workspace.floats + used.floats;
    used.floats += count;
    return taken;
  };
  int widest = 0;
  for (int l = 0; l < critic.hidden_layers; ++l)
    widest = std::max(widest, critic.layers[l].outputs);

  Scratch scratch{};
  scratch.observation = take(critic.observation_dim);
  scratch.heads = take(critic.heads * Head::memory(critic));
  for (float** units : {&scratch.d, &scratch.d_below}) *units = take(widest);
  for (float** heads : {&scratch.q, &scratch.factor}) *heads = take(critic.heads);
  for (float** action :
       {&scratch.initial, &scratch.action, &scratch.proposal, &scratch.best, &scratch.move,
        &scratch.gradient, &scratch.first, &scratch.second})
    *action = take(critic.action_dim);
  scratch.indices = workspace.indices;
  used.indices = std::max({widest, critic.action_dim, critic.observation_dim});
  if (size != nullptr) *size = used;
  return scratch;
}

struct Outcome {
  float q;
  float q_initial;
  int step;
};

class Refinement {
 public:
  Refinement(const Critic& critic, const Options& options, const Workspace& workspace)
      : critic_(critic), options_(options), at_(lay_out(critic, workspace, nullptr)) {}

  void observe(const float* observation) {
    for (int i = 0; i < critic_.observation_dim; ++i)
      at_.observation[i] = (observation[i] - critic_.mean[i]) / critic_.std[i];
    for (int e = 0; e < critic_.heads; ++e) head(e).observe(at_.observation);
  }

  // The whole loop from one starting point [A] of the observed row; chosen() is the result.
  Outcome refine(const float* start) {
    const int n = critic_.action_dim;
    std::copy_n(start, n, at_.initial);
    into_box(options_, n, at_.initial);
    std::copy_n(at_.initial, n, at_.action);
    std::copy_n(at_.initial, n, at_.best);
    std::fill_n(at_.first, n, 0.0f);
    std::fill_n(at_.second, n, 0.0f);

    const float q_initial = value();
    Outcome last{q_initial, q_initial, 0};
    Outcome best{or_minus_infinity(q_initial), q_initial, 0};
    for (int step = 1; step <= options_.steps; ++step) {
      gradient();
      std::copy_n(at_.action, n, at_.proposal);
      add_update(options_, step, at_.gradient, n, at_.first, at_.second, at_.proposal);
      project(options_, at_.initial, n, at_.move, at_.proposal);
      if (!all_finite(at_.gradient, n) || !all_finite(at_.proposal, n)) break;
      std::copy_n(at_.proposal, n, at_.action);
      last.q = value();
      last.step = step;
      if (std::isfinite(last.q) && last.q > best.q) {
        best.q = last.q;
        best.step = step;
        std::copy_n(at_.action, n, at_.best);
      }
    }
    if (best.q == minus_infinity) {  // no candidate had a finite Q
      chosen_ = at_.initial;
      return {q_initial, q_initial, 0};
    }
    chosen_ = options_.select == Select::best ? at_.best : at_.action;
    return options_.select == Select::best ? best : last;
  }

  const float* chosen() const { return chosen_; }  // [A]

  float distance() {  // from the projected starting point to chosen()
    const int n = critic_.action_dim;
    for (int k = 0; k < n; ++k) at_.move[k] = chosen_[k] - at_.initial[k];
    return std::sqrt(dot(at_.move, at_.move, n));
  }

 private:
  Head head(int e) const {
    return {critic_, e, at_.heads + e * Head::memory(critic_), at_.indices, at_.d, at_.d_below};
  }

  // The ensemble's Q of at_.action, and by it the factors of the heads' gradients.
  float value() {
    for (int e = 0; e < critic_.heads; ++e) at_.q[e] = head(e).value(at_.action);
    return combine(options_, at_.q, critic_.heads, at_.factor);
  }

  // grad_a of the ensemble's Q where the last value() was taken.
  void gradient() {
    const int n = critic_.action_dim;
    std::fill_n(at_.gradient, n, 0.0f);
    for (int e = 0; e < critic_.heads; ++e)
      if (at_.factor[e] != 0.0f || !critic_.finite)
        head(e).add_gradient(at_.factor[e], at_.gradient);
    if (options_.gradient == Gradient::unit) {
      const float length = std::sqrt(dot(at_.gradient, at_.gradient, n));
      if (length != 0.0f)
        for (int k = 0; k < n; ++k) at_.gradient[k] /= length;
    }
  }

  const Critic& critic_;
  const Options& options_;
  const Scratch at_;
  const float* chosen_ = nullptr;
};

}  // namespace

WorkspaceSize workspace_size_scalar(const Critic& critic) {
  WorkspaceSize size;
  lay_out(critic, {}, &size);
  return size;
}

void refine_scalar(const Critic& critic, const Options& options, const Batch& batch,
                   const Result& result, const Workspace& workspace) {
  const int action_dim = critic.action_dim;
  Refinement refinement(critic, options, workspace);
  for (int64_t row = 0; row < batch.rows; ++row) {
    refinement.observe(batch.observations + row * critic.observation_dim);
    // The starting points compete: the highest finite Q, the first one on a tie.
    for (int64_t start = 0; start < batch.starts; ++start) {
      const Outcome outcome =
          refinement.refine(batch.actions + (row * batch.starts + start) * action_dim);
      if (start == 0 ||
          or_minus_infinity(outcome.q) > or_minus_infinity(result.q[row])) {
        std::copy_n(refinement.chosen(), action_dim, result.actions + row * action_dim);
        result.q[row] = outcome.q;
        result.best_step[row] = outcome.step;
        result.start[row] = start;
        result.distance[row] = refinement.distance();
      }
      if (start == 0 ||
          or_minus_infinity(outcome.q_initial) > or_minus_infinity(result.q_initial[row]))
        result.q_initial[row] = outcome.q_initial;
    }
    result.flips[row] = 0;
    result.dense_steps[row] = batch.starts * options.steps;
  }
}

}  // namespace dtag
