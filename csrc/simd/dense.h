// The dense kernel: the full network at every candidate, for a block of points at a time. A point
// is a starting point of a row; the points of a block share the weights on their way through the
// cache. SIMD code need not care for numbers that are not finite, only notice them: the rows in
// which they turn up are left to the scalar kernel.
#pragma once

#include <algorithm>
#include <cmath>

#include "../climb.h"
#include "../ensemble.h"
#include "../refine.h"
#include "dense_layers.h"

namespace dtag {
inline namespace DTAG_TARGET {

class DenseRefinement {
 public:
  static WorkspaceSize memory(const Critic& critic) {
    WorkspaceSize size = DenseLayers::memory(critic);
    const WorkspaceSize scalar = workspace_size_scalar(critic);
    size.floats += own_floats(critic) + scalar.floats;
    size.indices = 2 * block_points + std::max(size.indices, scalar.indices);
    return size;
  }

  DenseRefinement(const Critic& critic, const Options& options, const Batch& batch,
                  const Result& result, const Workspace& workspace)
      : critic_(critic),
        options_(options),
        batch_(batch),
        result_(result),
        layers_(critic,
                {workspace.floats + own_floats(critic), workspace.indices + 2 * block_points}),
        scalar_{workspace.floats + own_floats(critic) + DenseLayers::memory(critic).floats,
                workspace.indices + 2 * block_points},
        climb_size_(Climb::memory(critic)),
        q_(workspace.floats),
        factor_(q_ + critic.heads * block_points),
        selected_factor_(factor_ + critic.heads * block_points),
        row_(workspace.indices),
        selected_(row_ + block_points) {
    for (int p = 0; p < block_points; ++p)
      climb_[p] = Climb(options, critic.action_dim,
                        selected_factor_ + block_points + p * climb_size_);
  }

  void run() {
    for (int64_t row = 0; row < batch_.rows; ++row) {
      result_.flips[row] = 0;
      result_.dense_steps[row] = batch_.starts * options_.steps;
    }
    const int64_t points = batch_.rows * batch_.starts;
    for (int64_t first = 0; first < points;) {
      const int64_t blocks = (points - first + block_points - 1) / block_points;
      first = refine_block(first, static_cast<int>((points - first + blocks - 1) / blocks));
    }
  }

 private:
  static size_t own_floats(const Critic& critic) {
    static_assert(block_points % padding == 0);
    return block_points * (2 * critic.heads + 1 + Climb::memory(critic));
  }

  // Refine `points` points of the batch from number `first` on; returns the next one to refine.
  int64_t refine_block(int64_t first, int points) {
    const int64_t row = first / batch_.starts;
    const int64_t last_row = (first + points - 1) / batch_.starts;
    layers_.observe(batch_.observations + row * critic_.observation_dim,
                    static_cast<int>(last_row - row + 1));
    for (int p = 0; p < points; ++p) {
      row_[p] = static_cast<int32_t>((first + p) / batch_.starts - row);
      climb_[p].begin(batch_.actions + (first + p) * critic_.action_dim);
      finite_[p] = true;
    }
    evaluate(points);
    for (int step = 1; step <= options_.steps; ++step) {
      if (std::none_of(finite_, finite_ + points, [](bool finite) { return finite; })) break;
      add_gradients(points);
      for (int p = 0; p < points; ++p) finite_[p] = climb_[p].move() && finite_[p];
      evaluate(points);
    }

    int64_t given_up = -1;
    for (int p = 0; p < points; ++p) {
      const int64_t at = row + row_[p];
      if (!finite_[p] && at != given_up) {
        given_up = at;
        refine_scalar(critic_, options_, batch_.part(critic_, at, 1), result_.from(critic_, at),
                      scalar_);
      } else if (at != given_up) {
        compete(climb_[p].outcome(), critic_.action_dim, at, (first + p) % batch_.starts, result_);
      }
    }
    // A row that was given up is complete, points of later blocks included.
    return given_up == last_row ? (last_row + 1) * batch_.starts : first + points;
  }

  // Every point's Q, and by it the factors of its heads' gradients.
  void evaluate(int points) {
    const int heads = critic_.heads;
    for (int e = 0; e < heads; ++e)
      layers_.values(e, climb_[0].action(), climb_size_, row_, points, q_ + e, heads);
    for (int p = 0; p < points; ++p) {
      finite_[p] = all_finite(q_ + p * heads, heads) && finite_[p];
      climb_[p].reached(combine(options_, q_ + p * heads, heads, factor_ + p * heads));
    }
  }

  // Every point's gradient; a head is only run for the points whose Q depends on it.
  void add_gradients(int points) {
    for (int p = 0; p < points; ++p) std::fill_n(climb_[p].gradient(), critic_.action_dim, 0.0f);
    for (int e = 0; e < critic_.heads; ++e) {
      int count = 0;
      for (int p = 0; p < points; ++p) {
        const float factor = factor_[p * critic_.heads + e];
        if (factor == 0.0f) continue;
        selected_[count] = p;
        selected_factor_[count++] = factor;
      }
      layers_.add_gradients(e, selected_, selected_factor_, count, climb_[0].gradient(),
                            climb_size_);
    }
  }

  const Critic& critic_;
  const Options& options_;
  const Batch& batch_;
  const Result& result_;
  const DenseLayers layers_;
  const Workspace scalar_;
  const size_t climb_size_;
  float *q_, *factor_;      // [block_points, E]
  float* selected_factor_;  // [block_points]
  int32_t* row_;            // [block_points], of the block's rows
  int32_t* selected_;       // [block_points]
  Climb climb_[block_points];
  bool finite_[block_points];  // so far, all numbers of that point
};

inline WorkspaceSize workspace_size_dense(const Critic& critic) {
  return DenseRefinement::memory(critic);
}

inline void refine_dense(const Critic& critic, const Options& options, const Batch& batch,
                         const Result& result, const Workspace& workspace) {
  if (critic.finite)
    DenseRefinement(critic, options, batch, result, workspace).run();
  else
    refine_scalar(critic, options, batch, result, workspace);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
