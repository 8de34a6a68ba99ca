// The loop of refinement from one starting point, and the competition among a row's starting points,
// for the kernels that take one point at a time. What evaluates the critic is a parameter:
//
//   struct Evaluator {
//     void observe(const float* observation);  // [S], raw: from now on this row
//     void begin();                            // the next value() is that of a starting point
//     float value(const float* action);        // the ensemble's Q
//     void gradient(float* gradient);          // [A], of Q where the last value() was taken
//   };
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "optimizer.h"
#include "projection.h"
#include "refine.h"
#include "target.h"
#include "vector_loops.h"

namespace dtag {
inline namespace DTAG_TARGET {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

inline bool all_finite(const float* x, int n) {
  // The sum of 0 * x is 0, or NaN if any x is not finite.
  return interleaved_sum(n, [=](int i) { return x[i] * 0.0f; }) == 0.0f;
}

inline float or_minus_infinity(float q) { return std::isfinite(q) ? q : minus_infinity; }

template <typename Evaluator>
class Ascent {
 public:
  static size_t memory(const Critic& critic) { return 8 * padded(critic.action_dim); }

  // memory: zeros or anything finite
  Ascent(Evaluator& evaluator, const Critic& critic, const Options& options, float* memory)
      : evaluator_(evaluator), options_(options), n_(critic.action_dim) {
    for (float** action :
         {&initial_, &action_, &proposal_, &best_, &move_, &gradient_, &first_, &second_}) {
      *action = memory;
      memory += padded(n_);
    }
  }

  // Refine one row of the batch into the result.
  void refine_row(const Batch& batch, const Result& result, int64_t row, int observation_dim) {
    evaluator_.observe(batch.observations + row * observation_dim);
    // The starting points compete: the highest finite Q, the first one on a tie.
    for (int64_t start = 0; start < batch.starts; ++start) {
      const Outcome outcome = refine(batch.actions + (row * batch.starts + start) * n_);
      if (start == 0 || or_minus_infinity(outcome.q) > or_minus_infinity(result.q[row])) {
        std::copy_n(outcome.action, n_, result.actions + row * n_);
        result.q[row] = outcome.q;
        result.best_step[row] = outcome.step;
        result.start[row] = start;
        result.distance[row] = distance(outcome.action);
      }
      if (start == 0 ||
          or_minus_infinity(outcome.q_initial) > or_minus_infinity(result.q_initial[row]))
        result.q_initial[row] = outcome.q_initial;
    }
  }

 private:
  struct Outcome {
    const float* action;  // [A]
    float q;
    float q_initial;
    int step;
  };

  Outcome refine(const float* start) {
    std::copy_n(start, n_, initial_);
    into_box(options_, n_, initial_);
    std::copy_n(initial_, n_, action_);
    std::copy_n(initial_, n_, best_);
    std::fill_n(first_, n_, 0.0f);
    std::fill_n(second_, n_, 0.0f);

    evaluator_.begin();
    const float q_initial = evaluator_.value(action_);
    Outcome last{action_, q_initial, q_initial, 0};
    Outcome best{best_, or_minus_infinity(q_initial), q_initial, 0};
    for (int step = 1; step <= options_.steps; ++step) {
      gradient();
      std::copy_n(action_, n_, proposal_);
      add_update(options_, step, gradient_, n_, first_, second_, proposal_);
      project(options_, initial_, n_, move_, proposal_);
      if (!all_finite(gradient_, n_) || !all_finite(proposal_, n_)) break;
      std::copy_n(proposal_, n_, action_);
      last.q = evaluator_.value(action_);
      last.step = step;
      if (std::isfinite(last.q) && last.q > best.q) {
        best.q = last.q;
        best.step = step;
        std::copy_n(action_, n_, best_);
      }
    }
    if (best.q == minus_infinity) return {initial_, q_initial, q_initial, 0};  // never finite
    return options_.select == Select::best ? best : last;
  }

  void gradient() {
    evaluator_.gradient(gradient_);
    if (options_.gradient != Gradient::unit) return;
    const float length = std::sqrt(dot(gradient_, gradient_, n_));
    if (length != 0.0f)
      for (int k = 0; k < n_; ++k) gradient_[k] /= length;
  }

  float distance(const float* action) {  // from the projected starting point
    for (int k = 0; k < n_; ++k) move_[k] = action[k] - initial_[k];
    return std::sqrt(dot(move_, move_, n_));
  }

  Evaluator& evaluator_;
  const Options& options_;
  const int n_;
  float *initial_, *action_, *proposal_, *best_, *move_, *gradient_, *first_, *second_;  // [A]
};

}  // namespace DTAG_TARGET
}  // namespace dtag
