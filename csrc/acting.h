// Acting in B environments, each at a timestep of its own: the episodes' memory and the steps of it.
// Nothing here knows Python.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "execution.h"
#include "packed_transformer.h"
#include "transformer.h"

namespace dtag {

// A whole action: how the return token is chosen, and what improves the action.
struct ActOptions {
  std::optional<float> target_return;  // R_0, less the rewards; none: the model predicts each
  const Critic* critic = nullptr;      // null: no refinement
  const Options* options = nullptr;
  Execution execution;
  bool keep_refined = true;  // what later steps see: the action executed, or the model's own
};

class Acting {
 public:
  // At the beginning of an episode in each environment. Throws std::invalid_argument where the
  // instruction set in use has no kernel for it.
  Acting(std::shared_ptr<const PackedTransformer> model, int envs);

  int envs() const { return static_cast<int>(episodes_.size()); }
  const Transformer& model() const { return model_->view(); }
  int64_t step(int env) const { return episodes_[env].step; }
  float token(int env) const { return episodes_[env].token; }

  // Begin a new episode.
  void reset(int env);
  // Another one of the environments `rows`, in that order, their episodes going on.
  std::unique_ptr<Acting> select(const std::vector<int>& rows) const;
  // Go on with other weights of the same sizes. What sliding attention has kept stays.
  void replace_model(std::shared_ptr<const PackedTransformer> model);

  // One step: observations [B, S], then tokens [B] and predictions as often as wanted, then the
  // actions [B, A] that later steps see.
  void begin_step(const float* observations);
  void write_tokens(const float* tokens);
  void predict_returns(float* returns);  // [B], of a model that does
  void predict_actions(float* actions);  // [B, A]
  void write_actions(const float* actions);

  // All of it: actions [B, A] inside the box. rewards [B] are not looked at where an episode begins
  // or without target_return. `refined` gets what refinement says of the rows.
  void act(const ActOptions& options, const float* observations, const float* rewards,
           float* actions);

  // Of the last act(): seconds, and of refinement its result, [B].
  struct Report {
    double model_seconds = 0.0, refinement_seconds = 0.0;
    std::vector<float> q, q_initial, distance;
    std::vector<int64_t> best_step, start, flips, dense_steps;
    Algorithm algorithm = Algorithm::dense;
  };
  const Report& report() const { return report_; }

 private:
  void lay_out();
  float* inputs_of(const Episode& episode, int64_t number) const;
  void write_input(Episode& episode, int order, const float* values, int count);
  // The last hidden states of token `last` of the current steps, to hidden_.
  void advance(int last);
  void advance_chosen(int last);

  std::shared_ptr<const PackedTransformer> model_;
  std::vector<Episode> episodes_;
  AlignedFloats memory_{0};
  AlignedFloats hidden_{0};  // [B, span]
  AlignedFloats heads_{0};   // [B, in_panels(A)]
  std::vector<float> tokens_, raw_;
  std::vector<Episode*> chosen_;  // to advance
  Report report_;
};

}  // namespace dtag
