// The walk: a critic with one or two hidden layers of ReLU or LeakyReLU, refined by following its
// linear regions (region.h) instead of recomputing the network at every candidate.
//
// A step whose corrections would cost more than the full network is evaluated by the full network
// and leaves the regions as they are. Once such steps have cost as much as building the regions
// anew, they are built where the action is now; each time this happens the patience doubles. So
// however wild a path is, the time lost to regions stays a fraction of that of the full network.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../ascent.h"
#include "../ensemble.h"
#include "../refine.h"
#include "region.h"

namespace dtag {
inline namespace DTAG_TARGET {

template <int actions>  // as in Region
class Walk {
 public:
  static WorkspaceSize memory(const Critic& critic) {
    const Options none;
    Walk walk(critic, none, {});
    return walk.lay_out({});
  }

  Walk(const Critic& critic, const Options& options, const Workspace& workspace)
      : critic_(critic), options_(options), shape_(critic) {
    lay_out(workspace);
  }

  void observe(const float* observation) {
    for (int i = 0; i < critic_.observation_dim; ++i)
      observation_[i] = (observation[i] - critic_.mean[i]) / critic_.std[i];
    for (int e = 0; e < critic_.heads; ++e) region(e).observe(observation_);
    placed_ = false;
    failed_ = false;
    flips_ = 0;
    full_steps_ = 0;
  }

  void begin() { entering_ = true; }

  float value(const float* action) {
    if (!placed_) {
      place(action);
    } else {
      for (int k = 0; k < critic_.action_dim; ++k) move_[k] = action[k] - base_[k];
      follow(action);
    }
    entering_ = false;
    for (int e = 0; e < critic_.heads; ++e) {
      q_[e] = full_ ? region(e).full_value(move_)
                    : region(e).value_and_gradient(move_, gradients_ + e * critic_.action_dim);
      if (!std::isfinite(q_[e])) return give_up();
    }
    return combine(options_, q_, critic_.heads, factor_);
  }

  void gradient(float* gradient) {
    const int n = critic_.action_dim;
    std::fill_n(gradient, n, 0.0f);
    for (int e = 0; e < critic_.heads; ++e) {
      if (factor_[e] == 0.0f) continue;
      if (full_) {
        region(e).add_full_gradient(move_, factor_[e], gradient);
      } else {
        for (int k = 0; k < n; ++k) gradient[k] += factor_[e] * gradients_[e * n + k];
      }
    }
    if (!all_finite(gradient, n)) give_up();
  }

  // A number was not finite: what was found for this row is not to be used.
  bool failed() const { return failed_; }
  int64_t flips() const { return flips_; }
  int64_t full_steps() const { return full_steps_; }

 private:
  Region<actions> region(int e) const {
    return {critic_, shape_, e, floats_ + e * shape_.floats(), words_ + e * shape_.words(),
            scratch_};
  }

  float give_up() {
    failed_ = true;
    return std::numeric_limits<float>::quiet_NaN();
  }

  // Build the regions around the action.
  void place(const float* action) {
    const int n = critic_.action_dim;
    std::copy_n(action, n, base_);
    std::fill_n(move_, n, 0.0f);
    int rows = 0, active = 0;
    reach_ = std::numeric_limits<float>::infinity();
    for (int e = 0; e < critic_.heads; ++e) {
      const auto built = region(e).place(observation_, base_);
      rows += built.rows;
      active += built.active;
      reach_ = std::min(reach_, built.reach);
    }
    std::copy_n(action, n, looked_);
    if (!placed_) {
      // In units of one row of weights added to one of several vectors.
      const double backward = options_.ensemble == Ensemble::min ? 1.0 : critic_.heads;
      build_cost_ = static_cast<double>(1 + n) * rows;
      full_cost_ = single_column_cost * (active + 0.5 * backward * shape_.width2);
      patience_ = build_cost_;
    }
    placed_ = true;
    full_ = false;
    corrections_ = 0;
    lost_ = 0.0;
  }

  // Bring the regions to base + move, the action, or decide to do without them there.
  void follow(const float* action) {
    full_ = false;
    if (within_reach(action)) return;
    int changes = 0;
    reach_ = std::numeric_limits<float>::infinity();
    for (int e = 0; e < critic_.heads; ++e) {
      float reach;
      changes += region(e).changes(move_, &reach);
      reach_ = std::min(reach_, reach);
    }
    std::copy_n(action, critic_.action_dim, looked_);
    if (changes == 0) return;
    const double cost = static_cast<double>(changes) * (1 + critic_.action_dim);
    if (entering_ ? cost < build_cost_ : cost < full_cost_) {
      flips_ += changes;
      corrections_ += changes;
      // Each correction rounds: after so many that building costs little beside them, build.
      if (corrections_ > critic_.heads * shape_.width1) return place(action);
      for (int e = 0; e < critic_.heads; ++e) region(e).correct();
      return;
    }
    if (entering_) return place(action);
    if (lost_ >= patience_) {
      patience_ *= 2.0;
      return place(action);
    }
    lost_ += full_cost_;
    full_ = true;
    reach_ = 0.0f;
    ++full_steps_;
  }

  // Whether no sign can have changed since they were last looked at, rounding allowed for.
  bool within_reach(const float* action) const {
    float square = 0.0f;
    for (int k = 0; k < critic_.action_dim; ++k)
      square += (action[k] - looked_[k]) * (action[k] - looked_[k]);
    return square * 1.001f < reach_ * reach_;
  }

  WorkspaceSize lay_out(const Workspace& workspace) {
    size_t used = 0;
    const auto take = [&](size_t count) {
      float* const taken = workspace.floats == nullptr ? nullptr : workspace.floats + used;
      used += (count + padding - 1) / padding * padding;
      return taken;
    };
    const int widest = std::max(shape_.width1, shape_.width2);
    const int n = critic_.action_dim;
    floats_ = take(critic_.heads * shape_.floats());
    scratch_.units = take(widest);
    scratch_.coefficients = take(static_cast<size_t>(widest) * (1 + n));
    observation_ = take(critic_.observation_dim);
    for (float** action : {&base_, &move_, &looked_}) *action = take(n);
    gradients_ = take(static_cast<size_t>(critic_.heads) * n);
    for (float** heads : {&q_, &factor_}) *heads = take(critic_.heads);
    words_ = workspace.indices;
    scratch_.index = words_ == nullptr ? nullptr : words_ + critic_.heads * shape_.words();
    return {used, critic_.heads * shape_.words() +
                      static_cast<size_t>(std::max(widest, critic_.observation_dim))};
  }

  const Critic& critic_;
  const Options& options_;
  const RegionShape shape_;
  float* floats_;    // [E, shape_.floats()]
  int32_t* words_;   // [E, shape_.words()]
  RegionScratch scratch_;
  float* observation_;         // [S], standardised
  float *base_, *move_;        // [A]; the action is base + move
  float* looked_;              // [A], where signs were last looked at
  float reach_ = 0.0f;         // how far from there they stay as they are at least
  float* gradients_;           // [E, A]
  float *q_, *factor_;         // [E]
  bool placed_ = false;        // there are regions
  bool entering_ = false;      // the next value is that of a starting point
  bool full_ = false;          // the last value was taken by the full network
  bool failed_ = false;
  double build_cost_ = 0.0, full_cost_ = 0.0, patience_ = 0.0, lost_ = 0.0;
  int corrections_ = 0;  // since the regions were built
  int64_t flips_ = 0;
  int64_t full_steps_ = 0;
};

template <int actions>
void walk_rows(const Critic& critic, const Options& options, const Batch& batch,
               const Result& result, const Workspace& workspace) {
  using Rows = Ascent<Walk<actions>>;
  const Workspace rest{workspace.floats + Rows::memory(critic), workspace.indices};
  Walk<actions> walk(critic, options, rest);
  Rows ascent(walk, critic, options, workspace.floats);
  for (int64_t row = 0; row < batch.rows; ++row) {
    ascent.refine_row(batch, result, row, critic.observation_dim);
    result.flips[row] = walk.flips();
    result.dense_steps[row] = walk.full_steps();
    if (walk.failed())
      refine_scalar(critic, options, batch.part(critic, row, 1), result.from(critic, row), rest);
  }
}

inline WorkspaceSize workspace_size_walk(const Critic& critic) {
  const WorkspaceSize walk = Walk<0>::memory(critic), scalar = workspace_size_scalar(critic);
  return {Ascent<Walk<0>>::memory(critic) + std::max(walk.floats, scalar.floats),
          std::max(walk.indices, scalar.indices)};
}

inline void refine_walk(const Critic& critic, const Options& options, const Batch& batch,
                        const Result& result, const Workspace& workspace) {
  constexpr decltype(&walk_rows<0>) by_actions[] = {
      walk_rows<0>, walk_rows<1>, walk_rows<2>, walk_rows<3>, walk_rows<4>,
      walk_rows<5>, walk_rows<6>, walk_rows<7>, walk_rows<8>};
  const int n = critic.action_dim;
  by_actions[n <= 8 ? n : 0](critic, options, batch, result, workspace);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
