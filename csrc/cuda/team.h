// The threads that refine one row, as walk.h is written for: in turns between which they wait.
//
//   each(f)             f(thread, head, t) by every thread; t counts a head's threads
//   sync()              what was written to shared memory before is seen by all after
//   vote(words, f)      bit by unit: f(thread, head, t, u) of the threads' units, to shared words
//   reduce(sums, f)     f(thread, head, t, values) gives 1 + actions values; a warp's sums to shared
//   lanes(f)            f(lane, index) by the 32 lanes, in every warp alike
//   sum_lanes(f), all_lanes(f), pick(index, f)   over the lanes, or of one of them; to all
//   count_bits(words, n, f)   the bits of f(word index), index < n; to all
//   once(f)             f(lane, index) by one warp only
//   rows_ahead          how many rows of weights a thread has under way at once
//
// device_team.cuh has them for the device; the tests' emulation has them as loops, in which a thread
// that reads what another has yet to write, or forgets to wait, reads something else.
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

// What a thread keeps in registers: its units' part of the walk.
template <int actions, int units>
struct Thread {
  float c[units];           // z_2 = c + M d
  float m[actions][units];
  float kept[units];        // z_1 where signs were last looked at; the full network's slopes
  float top[units];         // the full network's last layer
};

// What a lane keeps: one dimension of everything that is as long as the action.
struct Lane {
  float initial;  // the starting point, projected
  float action;
  float move;      // action - base of the regions
  float base;
  float best;      // the best candidate of this starting point
  float first, second;  // the optimiser's moments
  float gradient;
  float proposal;
};

}  // namespace dtag::cuda
