// Refinement one starting point at a time. What evaluates the critic is a parameter:
//
//   struct Evaluator {
//     void observe(const float* observation);  // [S], raw: from now on this row
//     void begin();                            // the next value() is that of a starting point
//     float value(const float* action);        // the ensemble's Q
//     void gradient(float* gradient);          // [A], of Q where the last value() was taken
//     void stopped();                          // that gradient led nowhere: it is not finite
//   };
#pragma once

#include "climb.h"
#include "refine.h"
#include "target.h"

namespace dtag {
inline namespace DTAG_TARGET {

template <typename Evaluator>
class Ascent {
 public:
  static size_t memory(const Critic& critic) { return Climb::memory(critic); }

  // memory: zeros or anything finite
  Ascent(Evaluator& evaluator, const Critic& critic, const Options& options, float* memory)
      : evaluator_(evaluator),
        options_(options),
        action_dim_(critic.action_dim),
        climb_(options, critic.action_dim, memory) {}

  // Refine one row of the batch into the result.
  void refine_row(const Batch& batch, const Result& result, int64_t row, int observation_dim) {
    evaluator_.observe(batch.observations + row * observation_dim);
    for (int64_t start = 0; start < batch.starts; ++start) {
      evaluator_.begin();
      climb_.begin(batch.actions + (row * batch.starts + start) * action_dim_);
      climb_.reached(evaluator_.value(climb_.action()));
      for (int step = 0; step < options_.steps; ++step) {
        evaluator_.gradient(climb_.gradient());
        if (!climb_.move()) {
          evaluator_.stopped();
          break;
        }
        climb_.reached(evaluator_.value(climb_.action()));
      }
      compete(climb_.outcome(), action_dim_, row, start, result);
    }
  }

 private:
  Evaluator& evaluator_;
  const Options& options_;
  const int action_dim_;
  Climb climb_;
};

}  // namespace DTAG_TARGET
}  // namespace dtag
