// Sizes of what maps.h works on, and where it lies.
#pragma once

#include "job.h"

namespace dtag::cuda {

constexpr int slots_of_tile = 8;
constexpr int warps_of_group = 4;
constexpr int most_groups = 3;  // warpgroups of a block
constexpr int depth = 16;       // coefficients that are multiplied at a time
constexpr int slab = 64;        // of them, whose weights lie together

// Slots of a row.
DTAG_BOTH constexpr int slots_of_row(int actions) { return (1 + actions + 7) / 8; }
// Units of a block, whose weights take up to 128 KB.
DTAG_BOTH constexpr int columns_of_maps(int width) { return width <= 256 && width % 128 == 0 ? 128 : 64; }

// Of a job whose slots an int counts.
DTAG_BOTH int tiles_of(const Job& job) {
  const int slots = static_cast<int>(job.rows) * slots_of_row(job.critic.layout.actions);
  return (slots + slots_of_tile - 1) / slots_of_tile;
}

// The shared memory of a block, by offsets in bytes.
struct MapsLayout {
  static constexpr int most_inputs = 2 * warp_size;  // that a warp has at a time of a row
  // Bytes of a turn, of 16 units: those of values so that lanes that write some do not meet.
  static constexpr int values_of_turn = 64 + 16, masks_of_turn = 32;

  int slots;    // of a row
  int weights;  // [P / 64, 2, columns, 64] half floats, swizzled: W_2, its large parts and its small ones
  int terms;    // [P / 16, slots, 8, 4, 4] pairs of half floats: W_1a; PackedCritic
  int bias;     // [columns], b_2
  int first;    // [P], b_1; [P / 64, S by fours, 64], W_1s^T; and [P / 64, actions, 64], W_1a^T
  bool keeps_first;  // or that is read where it is, for want of room
  int warps;    // what every warp has
  int values;   // there [2, P / 16, 4, 4 and 4 more] pairs of half floats: z_1 of its two slots, as in terms
  int masks;    // there [2, P / 16, 4, 2] pairs of 16 bits: which units pass
  int values_of_slot, masks_of_slot;
  int inputs;   // there [2, most_inputs] floats: of the observation, and the action from 32 on
  int bytes_of_warp;
  int barriers;  // two, 8 bytes each
  int bytes;    // of all

  MapsLayout(const PackedCritic& critic, int groups, bool keeps_first) : keeps_first(keeps_first) {
    const int width = critic.layout.width, columns = columns_of_maps(width);
    slots = slots_of_row(critic.layout.actions);
    weights = 0;
    terms = weights + 4 * width * columns;
    bias = terms + width / depth * slots * 8 * 64;
    first = bias + 4 * columns;
    warps = first + (keeps_first ? 4 * width * (1 + observation_rows(critic) + critic.layout.actions) : 0);
    values_of_slot = width / depth * values_of_turn;
    masks_of_slot = width / depth * masks_of_turn;
    values = 0;
    masks = values + 2 * values_of_slot;
    // After the last turn one more is read, for nothing.
    inputs = masks + 2 * masks_of_slot + masks_of_turn;
    bytes_of_warp = inputs + 2 * most_inputs * 4;
    barriers = warps + groups * warps_of_group * bytes_of_warp;
    bytes = barriers + 16;
  }

  // Of as many groups as there is room for, up to so many.
  static MapsLayout within(int most_bytes, const PackedCritic& critic, int* groups) {
    for (;; --*groups)
      for (const bool keeps_first : {true, false}) {
        const MapsLayout layout(critic, *groups, keeps_first);
        if (layout.bytes <= most_bytes || (*groups == 1 && !keeps_first)) return layout;
      }
  }
};

// What a thread holds. units: for whose z_1 there is room.
template <int columns, int units>
struct MapLane {
  float z[2][units];    // of the rows of the warp's slots
  float raw[2], action[2];  // an input of each, of the next tile
  float mean, std, low, high;  // of those inputs
  // Of each slot the row, the lane's column, where its coefficients are, how far from turn to turn, and what
  // sums are to be multiplied by.
  int row[2], column[2], values[2], step[2];
  int next[2], next_masks;  // where the next turn's are
  int fetched[2][4], fetched_masks[2][2];  // of it
  float unscale[2];
  uint32_t a[2][2][4];   // coefficients of two turns, their large and their small parts
  float d[columns / 2];  // sums
};

}  // namespace dtag::cuda
