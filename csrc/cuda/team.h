// The threads that refine one row, as walk.h is written for: in turns between which they wait. They
// are a part of a block, a block, or the two blocks of a cluster, each of which has half of the heads
// and a shared memory of its own.
//
//   units               that a thread holds
//   each(f)             f(thread, head, t) by every thread; t counts a head's threads
//   share(n, f)         f(i), i < n, each by some thread of every block
//   shared()            the shared memory of the thread's block
//   sync()              what was written to shared memory before is seen by all after
//   sync_block()        the same within each block
//   vote(to, words, f)  bit by unit: f(thread, head, t, u) of the threads' units, to the words at `to`
//                       of every block's shared memory, `words` a head
//   reduce(to, warps, f)  f(thread, head, t, values) gives 1 + actions values; a warp's sums to `to` of
//                       every block's shared memory, `warps` a head
//   warps<State>(f)     f(warp, head, first unit) by every warp: warp.each(g) is g(state, lane) by its
//                       lanes, warp.multiply(a, b) adds to every lane's d the product of a tile
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

// Where a thread's units lie. A pair of neighbours u = 0, 1 and, of four, another 32 units further.
// So threads of four units add up in the order in which threads of two do: the two pairs of a thread
// of four are those of lanes i and i + 16 of two, the first that a warp's sums bring together; its
// neighbours of even and odd index are in two warps of theirs, the last.
DTAG_BOTH constexpr int unit_at(int u) { return u / 2 * 32 + u % 2; }

template <int units>
struct Place {
  static_assert(units == 2 || units == 4, "a thread holds one pair of units, or two");
  int group;   // of 64 units of the head
  int within;  // the first unit, in its group

  DTAG_BOTH explicit Place(int t)
      : group(units == 2 ? t / warp_size : t / warp_size * 2 + t % 2),
        within(units == 2 ? t % warp_size * 2 : t % warp_size / 2 * 2) {}
  DTAG_BOTH int unit() const { return group * group_units + within; }
};

// The unit, within its head, of a bit of a word of that head's; see SharedLayout.
DTAG_BOTH int unit_of(int word, int bit) { return word / 2 * group_units + bit * 2 + word % 2; }

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
