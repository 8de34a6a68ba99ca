// The threads that refine one row, as walk.h is written for: in turns between which they wait. They
// are a block or a part of one.
//
//   units               that a thread holds
//   each(f)             f(thread, seat) by every thread
//   share(n, f)         f(i), i < n, each by some thread
//   shared()            the team's shared memory
//   sync()              what was written to shared memory before is seen by all after
//   any(f)              whether f(thread, seat) holds for any thread, to all, who wait as in sync()
//   vote(to, words, f)  bit by unit: f(thread, u) of the threads' units, to the words at `to`, `words`
//                       a head: word `units` * warp + u has the lanes' bits
//   reduce(to, f)       f(thread, seat, values) gives 1 + actions values; a warp's sums to `to`,
//                       term_stride(actions) a warp
//   warps<State>(f)     f(warp, head, first unit) by every warp: warp.each(g) is g(state, lane) by its
//                       lanes, warp.multiply(a, b) adds to every lane's d the product of a tile
//   lanes(f)            f(lane, index) by the 32 lanes, in every warp alike
//   sum_lanes(f), all_lanes(f), pick(index, f)   over the lanes, or of one of them; to all
//   count_bits(n, f)    the bits of f(i), i < n; to all. Also within each(f)
//   once(f)             f(lane, index) by one warp only
//   roomy               whether a thread has registers for what can be had again
//
// device_team.cuh has them for the device; the tests' emulation has them as loops, in which a thread
// that reads what another has yet to write, or forgets to wait, reads something else.
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

// Where a thread's units lie: a pair of neighbours u = 0, 1 and, of four, another 32 units further.
DTAG_BOTH constexpr int unit_at(int u) { return u / 2 * 32 + u % 2; }

// The number, of which the compiler is not to know that it is the same as before: what is made of it
// is then made where it is needed, and not kept in registers through every step.
DTAG_BOTH int anew(int number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// A thread's place in its team.
struct Seat {
  int head;
  int thread;  // of the head's
  int first;   // of its units, in arrays [E, P] of all heads' units

  // units: of each thread.
  template <int units>
  DTAG_BOTH static Seat of(int head, int thread, int width) {
    static_assert(units == 2 || units == 4, "a thread holds one pair of units, or two");
    const int warp = thread / warp_size, lane = thread % warp_size;
    const int group = units == 2 ? warp : warp * 2 + lane % 2;  // of 64 units of the head
    return {head, thread, head * width + group * group_units + (units == 2 ? lane : lane / 2) * 2};
  }
};

DTAG_BOTH Seat anew(const Seat& seat) { return {anew(seat.head), anew(seat.thread), anew(seat.first)}; }

DTAG_BOTH int bits_of(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// Of the units whose bits are set in a warp's words of a vote: how many come before unit u of a lane,
// by their order in the head.
template <int units>
DTAG_BOTH int count_before(const uint32_t* words, int lane, int u) {
  const uint32_t before = (1u << lane) - 1;
  if constexpr (units == 2)
    return bits_of(words[0] & before) + bits_of(words[1] & before) + (u > 0 ? words[0] >> lane & 1 : 0);
  // Lanes of even index hold the warp's first group, the others the second one.
  const uint32_t even = 0x55555555u, group = even << lane % 2;
  const int half = u / 2 * 2;
  int count = bits_of(words[half] & before & group) + bits_of(words[half + 1] & before & group);
  if (u % 2 != 0) count += words[half] >> lane & 1;
  if (half > 0) count += bits_of(words[0] & group) + bits_of(words[1] & group);
  if (lane % 2 != 0)
    for (int i = 0; i < units; ++i) count += bits_of(words[i] & even);
  return count;
}

// What a thread keeps in registers: its units' part of the walk.
template <int actions, int units, bool roomy>
struct Thread {
  static constexpr int rows_sent_for = roomy ? 20 : 4;
  float c[units];           // z_2 = c + M d
  float m[actions][units];
  float first[actions][units];  // W_1a, where there are registers for it
  float output[units];      // w, likewise
  float base[units];        // z_1 at the base of the region, likewise
  float sent_for[rows_sent_for][units];  // of W_1s^T, while the observation is taken
  float kept[units];        // z_1 where signs were last looked at; the full network's slopes
  float top[units];         // the full network's last layer
  uint32_t signs;           // of z_1 in the region, a bit a unit
  int next;                 // of the listed rows: which to add next
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
