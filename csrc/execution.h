// One refinement from end to end: the choice of algorithm, threads and scratch memory.
#pragma once

#include "cost_model.h"
#include "refine.h"

namespace dtag {

struct Execution {
  Algorithm algorithm = Algorithm::automatic;
  int threads = 1;  // the most to use; small batches use fewer
};

// What `automatic` becomes. Throws std::invalid_argument if a walk is asked for and cannot be had;
// the message is the reason.
Algorithm choose(const Critic& critic, const Options& options, const Batch& batch,
                 Algorithm algorithm);

// Refine the batch, by an algorithm that choose() gave. Rows do not depend on each other, so the
// result is the same bit for bit with any number of threads. A thread keeps its scratch memory.
void refine(const Critic& critic, const Options& options, const Batch& batch, const Result& result,
            const Execution& execution);

}  // namespace dtag
