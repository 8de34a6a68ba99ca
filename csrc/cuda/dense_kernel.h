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
  static constexpr int threads = 256;
  float q[threads];  // of the ensemble, now
  float best_q[threads], q_initial[threads];
  float result_q[threads], result_initial[threads];  // of the starting points yet
  int best_step[threads];
  int failed[threads];  // a number was not finite
  float output_bias[2];  // of the heads
  int finite;            // the critic's
  int unused;            // for what comes next to be aligned
};

// By offsets in bytes, from a place that is a multiple of 1024.
struct TileLayout {
  static constexpr int rows = 64;          // of a tile
  static constexpr int group_threads = 128;  // of a warpgroup: two to a row where rows climb
  static constexpr int groups = 2;         // of a block, each with half of the units
  static constexpr int threads = TileNotes::threads;
  static constexpr int units = 256;        // of a hidden layer; zeros beyond the critic's
  static constexpr int slab_units = 64;    // that lie together, of W_2 of the first layer
  static constexpr int slab = units * slab_units * 2;
  static constexpr int layer_slab = rows * slab_units * 2;
  static constexpr int staged = 32;  // of the observation's numbers at a time
  static constexpr int observed_stride = staged + 4;
  static constexpr int most_actions = 8;
  static constexpr int most_sources = 2 * groups;  // of sums: each head's warpgroups

  static constexpr int weights = 0;  // [4, 256, 64], bfloat16, W_2 by slabs, swizzled
  static constexpr int layer = weights + units / slab_units * slab;  // [4, 64, 64], bfloat16, h_1 or g_2, likewise
  static constexpr int staged_weights = layer;  // [32, 256], floats, before those are there
  static constexpr int climbs = layer + units / slab_units * layer_slab;  // [4, 256, 4], see Climbing
  static constexpr int observed = climbs;                                 // [64, 32 + 4], before those
  static constexpr int top = climbs + 4 * 16 * threads;       // [128, 4]: -b_2 and w of two units
  static constexpr int actions = top + 16 * units / 2;        // [2, 64, 8], each warpgroup's own
  static constexpr int sent_bytes = 4 * groups * (rows * most_actions + group_threads);  // a turn, by the other head
  static constexpr int sent = actions + 4 * groups * rows * most_actions;  // [2, 4, 64, 8]: gradients
  static constexpr int sent_values = sent + 2 * 4 * most_sources * rows * most_actions;  // [2, 4, 128], and q
  static constexpr int notes = sent_values + 2 * 4 * most_sources * group_threads;  // TileNotes
  static constexpr int marks = notes + static_cast<int>(sizeof(TileNotes));  // [4], 8 bytes each: what is on its way
  static constexpr int mark_count = 4;
  static constexpr int first = marks + 8 * mark_count;  // [32, 8, 8], W_1a of eight units, and room after each
  static constexpr int first_stride = 8 * most_actions + 8;  // floats: four eights' neighbours fill the banks
  static constexpr int first_bytes = 4 * first_stride * units / 8;
  static constexpr int bytes = first + first_bytes;
};
static_assert(4 * TileLayout::staged * TileLayout::units <= TileLayout::climbs - TileLayout::layer &&
                  4 * TileLayout::rows * TileLayout::observed_stride <= TileLayout::top - TileLayout::observed,
              "what is staged lies where other things will");
static_assert(TileLayout::threads == TileLayout::groups * TileLayout::group_threads, "a block's warpgroups");
static_assert(TileLayout::first % 16 == 0, "it is copied in bulk, and read by fours");
static_assert(TileLayout::bytes <= 227 * 1024, "a block's shared memory");

// Those there are kernels for, of the critic's number or the next.
DTAG_BOTH constexpr int tile_actions(int actions) { return actions <= 4 ? 4 : actions; }

// void(const Job), of heads blocks a cluster; for what fits_tiles. A kernel launched next may begin before
// this ends (wait_for_kernel_before).
const void* dense_kernel_for(const PackedCritic& critic);

}  // namespace dtag::cuda
