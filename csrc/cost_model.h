// How long a refinement takes by each algorithm, to choose between them and to decide on threads.
// The constants are measured, per instruction set, by benchmarks/fit_cost_model.py.
#pragma once

#include "refine.h"

namespace dtag {

enum class Algorithm { automatic, dense, walk };

// Nanoseconds. A weight here is one of a head's, met once.
struct CostRates {
  // walk
  double build_weight;   // of W_2, W_3: times 1 + A vectors, per passing unit's row
  double step_weight;    // of a map, or of W_1a, per step
  double step;           // per step and head beside that
  // both: the observation's share of the first layer, per row
  double share_weight;
  // dense: forward or backward, per candidate
  double single_weight;  // of a lone point: bound by the reading of weights
  double block_weight;   // of one of many points that share the reading
  double candidate;      // per candidate beside that
  double unit;           // per hidden unit and candidate: its activation
};

// Of one thread.
double estimated_microseconds(const CostRates& rates, const Critic& critic,
                              const Options& options, const Batch& batch, Algorithm algorithm);

// The quicker algorithm for a critic that can be walked; but dense where a path too wild to be
// walked would take over 1.5 times as long as dense. It does not depend on the batch: algorithms
// round differently, and a row's result is to be the same in every batch, bit for bit.
Algorithm quicker(const CostRates& rates, const Critic& critic, const Options& options);

}  // namespace dtag
