// The walk: a critic with one, two or three hidden layers of ReLU or LeakyReLU, refined by following
// its linear regions (region.h) instead of recomputing the network at every candidate.
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
#include "full_network.h"
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
      q_[e] = full_ ? full_head(e).value(region_floats(e), action)
                    : region(e).value(move_);
      if (!std::isfinite(q_[e])) return give_up();
    }
    return combine(options_, q_, critic_.heads, factor_);
  }

  void gradient(float* gradient) {
    for (int k = 0; k < critic_.action_dim; ++k) gradient[k] = 0.0f;
    for (int e = 0; e < critic_.heads; ++e) {
      if (factor_[e] == 0.0f) continue;
      if (full_)
        full_head(e).add_gradient(factor_[e], gradient);
      else
        region(e).add_gradient(factor_[e], gradient);
    }
  }

  void stopped() { give_up(); }

  // A number was not finite: what was found for this row is not to be used.
  bool failed() const { return failed_; }
  int64_t flips() const { return flips_; }
  int64_t full_steps() const { return full_steps_; }

 private:
  Region<actions> region(int e) const {
    return {critic_, shape_, e, region_floats(e), words_ + e * shape_.words, scratch_};
  }
  float* region_floats(int e) const { return floats_ + e * shape_.floats; }
  FullHead full_head(int e) const {
    return {critic_, shape_, e, slopes_ + e * FullHead::floats(shape_), scratch_};
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
    top_rows_ = 0;
    reach_ = std::numeric_limits<float>::infinity();
    for (int e = 0; e < critic_.heads; ++e) {
      const auto built = region(e).place(observation_, base_);
      rows += built.rows;
      top_rows_ += built.top_rows;
      active += built.active;
      reach_ = std::min(reach_, built.reach);
    }
    std::copy_n(action, n, looked_);
    if (!placed_) {
      // In units of one row of weights added to one of several vectors.
      const double backward = options_.ensemble == Ensemble::min ? 1.0 : critic_.heads;
      double above_first = 0.0;
      for (int l = 1; l < shape_.layers; ++l) above_first += shape_.width[l];
      build_cost_ = static_cast<double>(1 + n) * rows;
      full_cost_ = single_column_cost * (active + 0.5 * backward * above_first);
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
    const int changes = within_reach(action) ? 0 : look(action);
    if (changes > 0) {
      // With three layers a change also passes through the second, up to 1 + A at a time.
      const int columns = 1 + critic_.action_dim;
      const double cost = static_cast<double>(changes) * columns +
                          static_cast<double>(std::min(changes, columns)) * top_rows_;
      if (cost >= (entering_ ? build_cost_ : full_cost_)) return give_way(action);
      // Each correction rounds. With four times as many before regions are built anew, long walks
      // erred by thrice as much as the reference.
      corrections_ += changes;
      if (4 * corrections_ > critic_.heads * shape_.width[0]) return place(action);
      flips_ += changes;
      for (int e = 0; e < critic_.heads; ++e) region(e).correct();
    }
    if (shape_.layers == 3)
      for (int e = 0; e < critic_.heads; ++e) flips_ += region(e).correct_top(move_);
  }

  // The number of first-layer units of all heads that have another sign at the action.
  int look(const float* action) {
    int changes = 0;
    reach_ = std::numeric_limits<float>::infinity();
    for (int e = 0; e < critic_.heads; ++e) {
      float reach;
      changes += region(e).changes(move_, &reach);
      reach_ = std::min(reach_, reach);
    }
    std::copy_n(action, critic_.action_dim, looked_);
    return changes;
  }

  // Where corrections cost too much: the full network, or new regions.
  void give_way(const float* action) {
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
    const auto widest = static_cast<size_t>(shape_.widest);
    const int n = critic_.action_dim;
    floats_ = take(critic_.heads * shape_.floats);
    slopes_ = take(critic_.heads * FullHead::floats(shape_));
    scratch_.coefficients = take(widest * (1 + n));
    scratch_.through = take(shape_.layers == 3 ? widest * n : 0);
    scratch_.units = take(shape_.layers == 3 ? widest * n : widest);
    observation_ = take(critic_.observation_dim);
    for (float** action : {&base_, &move_, &looked_}) *action = take(n);
    for (float** heads : {&q_, &factor_}) *heads = take(critic_.heads);
    const size_t words = critic_.heads * shape_.words;
    words_ = workspace.indices;
    scratch_.index = words_ == nullptr ? nullptr : words_ + words;
    return {used, words + std::max({2 * widest + padding, static_cast<size_t>(critic_.observation_dim),
                                    static_cast<size_t>(n)})};
  }

  const Critic& critic_;
  const Options& options_;
  const RegionShape shape_;
  float* floats_;    // [E, shape_.floats], the regions
  int32_t* words_;   // [E, shape_.words], their signs
  float* slopes_;    // [E, FullHead::floats], the full network's
  RegionScratch scratch_;
  float* observation_;         // [S], standardised
  float *base_, *move_;        // [A]; the action is base + move
  float* looked_;              // [A], where signs were last looked at
  float reach_ = 0.0f;         // how far from there they stay as they are at least
  float *q_, *factor_;         // [E]
  bool placed_ = false;        // there are regions
  bool entering_ = false;      // the next value is that of a starting point
  bool full_ = false;          // the last value was taken by the full network
  bool failed_ = false;
  double build_cost_ = 0.0, full_cost_ = 0.0, patience_ = 0.0, lost_ = 0.0;
  int top_rows_ = 0;     // of all heads: rows of weights in the third layer's maps when built
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
