// The climb from one starting point, whatever evaluates the critic:
//
//   begin(a^0);  reached(Q);  while move(): reached(Q);  outcome()
//
// Each candidate is at action(); reached() takes its Q, move() its gradient, from gradient().
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "optimizer.h"
#include "projection.h"
#include "refine.h"
#include "target.h"
#include "vector_loops.h"

namespace dtag {
inline namespace DTAG_TARGET {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// The sum of 0 * x is 0, or NaN if any x is not finite.
inline bool all_finite(const float* x, int n) {
  return interleaved_sum(n, [=](int i) { return x[i] * 0.0f; }) == 0.0f;
}
inline bool all_finite(const float* x, const float* y, int n) {
  return interleaved_sum(n, [=](int i) { return x[i] * 0.0f + y[i] * 0.0f; }) == 0.0f;
}

// Between arrays that are padded: in pieces of a size that is known when this is compiled.
inline void copy_padded(const float* from, int n, float* to) {
  for (int k = 0; k < n; k += padding) std::memcpy(to + k, from + k, padding * sizeof(float));
}

inline float or_minus_infinity(float q) { return std::isfinite(q) ? q : minus_infinity; }

struct Outcome {
  const float* action;  // [A]
  float q;
  float q_initial;
  int step;
  float distance;
};

class Climb {
 public:
  static size_t memory(const Critic& critic) { return 8 * padded(critic.action_dim); }

  Climb() = default;
  Climb(const Options& options, int action_dim, float* memory)
      : options_(&options), n_(action_dim) {
    for (float** action :
         {&initial_, &action_, &proposal_, &best_, &offset_, &gradient_, &first_, &second_}) {
      *action = memory;
      memory += padded(n_);
    }
  }

  void begin(const float* start) {  // [A]
    std::copy_n(start, n_, initial_);
    into_box(*options_, n_, initial_);
    copy_padded(initial_, n_, action_);
    copy_padded(initial_, n_, best_);
    std::fill_n(first_, n_, 0.0f);
    std::fill_n(second_, n_, 0.0f);
    step_ = best_step_ = 0;
    best_q_ = minus_infinity;
  }

  // [A], always at the same place of the memory given: a kernel may keep many climbs side by side.
  const float* action() const { return action_; }
  float* gradient() const { return gradient_; }    // [A], to be written before move()

  void reached(float q) {
    q_ = q;
    if (step_ == 0) q_initial_ = q;
    if (!std::isfinite(q) || !(q > best_q_)) return;
    best_q_ = q;
    best_step_ = step_;
    copy_padded(action_, n_, best_);
  }

  // Take a step; false, and nothing changes, if the gradient or the next candidate is not finite.
  bool move() {
    if (options_->gradient == Gradient::unit) {
      const float length = std::sqrt(dot(gradient_, gradient_, n_));
      if (length != 0.0f)
        for (int k = 0; k < n_; ++k) gradient_[k] /= length;
    }
    copy_padded(action_, n_, proposal_);
    add_update(*options_, step_ + 1, gradient_, n_, first_, second_, proposal_);
    project(*options_, initial_, n_, offset_, proposal_);
    if (!all_finite(gradient_, proposal_, n_)) return false;
    copy_padded(proposal_, n_, action_);
    ++step_;
    return true;
  }

  Outcome outcome() const {
    Outcome result{action_, q_, q_initial_, step_, 0.0f};
    if (best_q_ == minus_infinity)  // never finite
      result = {initial_, q_initial_, q_initial_, 0, 0.0f};
    else if (options_->select == Select::best)
      result = {best_, best_q_, q_initial_, best_step_, 0.0f};
    for (int k = 0; k < n_; ++k) offset_[k] = result.action[k] - initial_[k];
    result.distance = std::sqrt(dot(offset_, offset_, n_));
    return result;
  }

 private:
  const Options* options_ = nullptr;
  int n_ = 0;
  float *initial_, *action_, *proposal_, *best_, *offset_, *gradient_, *first_, *second_;  // [A]
  int step_, best_step_;
  float q_, q_initial_, best_q_;
};

// The starting points of a row compete, one after the other, for its place in the result: the
// highest finite Q wins, the first one on a tie.
inline void compete(const Outcome& outcome, int action_dim, int64_t row, int64_t start,
                    const Result& result) {
  if (start == 0 || or_minus_infinity(outcome.q) > or_minus_infinity(result.q[row])) {
    std::copy_n(outcome.action, action_dim, result.actions + row * action_dim);
    result.q[row] = outcome.q;
    result.best_step[row] = outcome.step;
    result.start[row] = start;
    result.distance[row] = outcome.distance;
  }
  if (start == 0 ||
      or_minus_infinity(outcome.q_initial) > or_minus_infinity(result.q_initial[row]))
    result.q_initial[row] = outcome.q_initial;
}

}  // namespace DTAG_TARGET
}  // namespace dtag
