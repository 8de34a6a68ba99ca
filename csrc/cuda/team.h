// The threads that refine one row, a block's, as walk.h is written for: in turns between which they
// wait.
//
//   units               that a thread holds
//   each(f)             f(thread, seat) by every thread
//   shared()            the block's shared memory
//   send(to, from, bytes, n, apart)   once, in a cluster: for n times so many bytes, `apart` from each other
//                       in global memory, to shared memory, where they lie together
//   await_sent()        until they are there
//   sync()              what was written to shared memory before is seen by all after
//   any(f)              whether f(thread, seat) holds for any thread, to all, who wait as in sync()
//   vote(to, f)         f(thread, u) of the threads' units: thread.votes[u] has the bits of the warp's
//                       lanes, and the integer `to` + w how many bits those of warp w have
//   count_votes(from, n)   the sum of n such integers; also within each(f)
//   reduce(to, f)       f(thread, seat, values) gives 1 + actions values; a warp's sums to `to`,
//                       term_stride(actions) a warp
//   lanes(f)            f(lane, index) by the 32 lanes, in every warp alike
//   sum_lanes(f), all_lanes(f), pick(index, f)   over the lanes, or of one of them; to all
//   once(f)             f(lane, index) by one warp only
//   sync_lanes()        what a warp's lanes did before is done for all of them after
//   roomy, crowded      whether a thread has registers for what can be had again, or for less than others
//   queued              whether it takes rows whose maps were built before, from a queue; then there are
//   draw(so, counter)   if so, once: send for a number that nobody else has, of those the counter counts
//   put_drawn(so)       once it is there: it, to shared memory
//   drawn()             it, where a wait as in sync() came in between
//
// device_team.cuh has them for the device. The tests have them as loops, for the numbers (host_team.h), and as
// fibers, which find out where a thread forgets to wait (fiber_team.h).
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

// The number, of which the compiler is not to know that it is the same as before: what is made of it
// is then made where it is needed, and not kept in registers through every step.
DTAG_BOTH int anew(int number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(number));
#endif
  return number;
}

DTAG_BOTH uint32_t anew(uint32_t word) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(word));
#endif
  return word;
}

DTAG_BOTH float anew(float number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+f"(number));
#endif
  return number;
}

// A thread's place in its team.
struct Seat {
  int head;
  int thread;  // of the head's
  int first;   // of its units, in arrays [E, P] of all heads' units

  // units: of each thread, of whose number two may hold what one of the lean kernel does. That has its
  // units four by four, far_units from each other; these then lie as far apart.
  template <int actions, int units>
  DTAG_BOTH static Seat of(int head, int thread, int width) {
    constexpr int both = 2 * far_units;
    int first = thread * units;
    if (units_of_lean(actions) == 8 && width % both == 0)
      first = thread * units / both * both + thread * units % 8 / 4 * far_units +
              thread * units % both / 8 * 4;
    return {head, thread, head * width + first};
  }
};

// From the first unit of a thread to another.
DTAG_BOTH constexpr int to_unit(int u) { return u / 4 * far_units + u % 4; }

DTAG_BOTH Seat anew(const Seat& seat) { return {anew(seat.head), anew(seat.thread), anew(seat.first)}; }

DTAG_BOTH int bits_of(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// What a thread keeps in registers: its units' part of the walk.
template <int actions, int units, bool roomy>
struct Thread {
  static constexpr int rows_sent_for = roomy ? 20 : 4;
  // Of a map that a cluster builds: half of a unit's columns with those that fill them up, or some more,
  // whose terms are read by fours.
  static constexpr int half_columns = term_stride(actions) / 2;
  static constexpr int columns_of_share = half_columns <= 4 ? half_columns : (half_columns + 3) / 4 * 4;

  float map[1 + actions][units];  // c, and the columns of M: z_2 = c + M d
  float first[actions][units];    // W_1a, where there are registers for it
  float output[units];            // w, likewise
  float base[units];              // z_1 at the base of the region, likewise
  float raw, mean, std;           // a dimension of the observation
  float sent_for[rows_sent_for][units];  // of W_1s^T, while the observation is taken
  float share[columns_of_share][1];
  float bias;             // b_2 of the share's unit
  float kept[units];      // z_1 where signs were last looked at; the full network's slopes
  float top[units];       // the full network's last layer
  uint32_t signs;         // of z_1 in the region, a bit a unit
  uint32_t votes[units];  // of the warp's last vote
  int marked;             // of the units, a bit each; above them how many come before in the head
  int count;              // how many are marked in the head
};

// What a lane keeps: one dimension of everything that is as long as the action.
struct Lane {
  float initial;  // the starting point, projected
  float action;
  float base;      // of the regions
  float best;      // the best candidate of this starting point
  float first, second;  // the optimiser's moments
  float gradient;
  float proposal;
  float low, high;          // the box
  float q, bias;            // of the head of this index
};

}  // namespace dtag::cuda
