// The kernels of dense tiles (dense_tiles.h), which take 64 rows at a time: for which critics they are, and
// where things lie in the shared memory of a block. Nothing here needs CUDA's headers.
#pragma once

#include "job.h"

namespace dtag::cuda {

// Whether they can take the critic: as the full network, rounded as precision bf16 says.
inline bool fits_tiles(const PackedCritic& critic) {
  return critic.precision == Precision::bf16 && critic.hidden_layers == 2 && critic.negative_slope == 0.0f &&
         critic.heads <= 2 && critic.action_dim <= 8 && critic.layout.width <= 256;
}

// What a row's threads note of its climb, in shared memory since the network takes all registers.
struct TileNotes {
  static constexpr int threads = 128;
  float q[threads];  // of the ensemble, now
  float best_q[threads], q_initial[threads];
  float result_q[threads], result_initial[threads];  // of the starting points yet
  int best_step[threads];
  int failed[threads];  // a number was not finite
  float output_bias[4];
};

// By offsets in bytes, from a place that is a multiple of 1024.
struct TileLayout {
  static constexpr int rows = 64;           // of a tile
  static constexpr int threads = TileNotes::threads;  // of a block: two to a row where rows climb
  static constexpr int units = 256;         // of a hidden layer; zeros beyond the critic's
  static constexpr int slab_units = 64;     // W_2: of the first layer, whose weights lie together
  static constexpr int slab = units * slab_units * 2;
  static constexpr int share_stride = units + 8;  // floats: eight rows' neighbours fill the banks
  static constexpr int staged = 32;               // of the observation's numbers at a time
  static constexpr int observed_stride = staged + 4;
  static constexpr int most_actions = 8;

  static constexpr int weights = 0;  // [4, 256, 64], bfloat16, W_2 by slabs, swizzled
  static constexpr int share = weights + units / slab_units * slab;  // [64, 256 + 8], W_1s s + b_1
  static constexpr int staged_weights = share;  // [32, 256], before the share is there
  static constexpr int observed = share + 4 * staged * units;  // [64, 32 + 4], likewise
  static constexpr int top = share + 4 * rows * share_stride;  // [128, 4]: -b_2 and w of two units
  static constexpr int actions = top + 16 * units / 2;         // [64, 8]
  static constexpr int climbs = actions + 4 * rows * most_actions;  // [4, 128, 4], see Climbing
  static constexpr int sent_bytes = 20 * threads;  // a turn
  static constexpr int sent = climbs + 4 * 16 * threads;  // [2, 128, 4], by the other head: its gradient
  static constexpr int sent_values = sent + 2 * 16 * threads;      // [2, 128], and q
  static constexpr int notes = sent_values + 2 * 4 * threads;      // TileNotes
  // [4, 128], a bit each: where z_1 > 0, by quarters of the columns.
  static constexpr int passing = notes + static_cast<int>(sizeof(TileNotes));
  static constexpr int marks = passing + 4 * 4 * threads;  // [4], 8 bytes each: what is on its way
  static constexpr int mark_count = 4;
  static constexpr int first = marks + 8 * mark_count;  // [128, first_stride], W_1a of two units

  // Floats of the first layer's weights of two units for all of the kernel's dimensions of the action, two
  // by two; four threads that read four pairs' do not meet.
  DTAG_BOTH static constexpr int first_stride(int actions) { return 2 * actions + (actions == 8 ? 4 : 0); }
  DTAG_BOTH static constexpr int first_bytes(int actions) { return 4 * first_stride(actions) * units / 2; }
  DTAG_BOTH static constexpr int bytes(int actions) { return first + first_bytes(actions); }
};
static_assert(TileLayout::observed + 4 * TileLayout::rows * TileLayout::observed_stride <= TileLayout::top,
              "what is staged lies where the share will");
static_assert(TileLayout::bytes(8) <= 227 * 1024, "a block's shared memory");

// Those there are kernels for, of the critic's number or the next.
DTAG_BOTH constexpr int tile_actions(int actions) { return actions <= 4 ? 4 : actions; }

// void(const Job), of heads blocks a cluster; for what fits_tiles. A kernel launched next may begin before
// this ends (wait_for_kernel_before).
const void* dense_kernel(const PackedCritic& critic);

}  // namespace dtag::cuda
