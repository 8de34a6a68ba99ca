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

// What a thread notes of its rows' climbs, in shared memory since the network takes all registers.
struct TileNotes {
  static constexpr int threads = 256, rows = 2;
  float q[threads][rows];  // of the ensemble, now
  float best_q[threads][rows], q_initial[threads][rows];
  float result_q[threads][rows], result_initial[threads][rows];  // of the starting points yet
  int best_step[threads][rows];
  int failed[threads][rows];  // a number was not finite
  float output_bias[2];       // of the heads
  int finite;                 // the critic's
  int tile;                   // of which they are
};

// By which powers of two a head's numbers are packed, for half floats to have all their digits: W_1a by dimension of
// the action, z_1 and b_2 as the dimension of the largest weights, times 16, and w so that no sum of g_2 W_2 is beyond
// them (for_dense_tiles in cuda_layouts.py). What is to be multiplied by them:
struct TileScales {
  float of_action[8];      // an action, whose products with W_1a then are of z_1
  float from_gradient[8];  // what comes of W_1a and g_2, which is the gradient then
  float of_share, from_q;  // the observation's share of z_1; and what comes of z_2 and w, which is q then
  float unused[2];
};

// By offsets in bytes, from a place that is a multiple of 1024.
struct TileLayout {
  static constexpr int rows = 64;          // of a tile
  static constexpr int group_threads = 128;  // of a warpgroup: four to two rows
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
  static constexpr int layer = weights + units / slab_units * slab;  // [4, 64, 64], bfloat16, h_1, likewise
  static constexpr int staged_weights = layer;  // [32, 256], floats, before those are there
  static constexpr int climbs = layer + units / slab_units * layer_slab;  // [5, 256, 4], see Climbing
  static constexpr int observed = climbs;                                 // [64, 32 + 4], before those
  static constexpr int transposed_stride = units / groups + 8;  // floats: four rows' neighbours fill the banks
  static constexpr int transposed = layer;  // [8, 8, 128 + 8], by warps: the share of z_1, before those are there
  static constexpr int transposed_bytes = 4 * (threads / 32) * 8 * transposed_stride;
  static constexpr int top = climbs + 5 * 16 * threads;  // [128, 4]: -b_2 and w of two units
  static constexpr int top_bytes = 16 * units / 2;
  static constexpr int scales = top + top_bytes;  // TileScales
  static constexpr int first = scales + static_cast<int>(sizeof(TileScales));  // [2, 256, 8], half floats: W_1a's parts
  static constexpr int first_part = 2 * most_actions * units;
  static constexpr int number_bytes = top_bytes + static_cast<int>(sizeof(TileScales)) + 2 * first_part;
  static constexpr int sent_bytes = 4 * groups * (rows * most_actions + group_threads);  // a turn, by the other head
  static constexpr int sent = top + number_bytes;  // [2, 4, 64, 8]: gradients
  static constexpr int sent_values = sent + 2 * 4 * most_sources * rows * most_actions;  // [2, 4, 128], and q
  static constexpr int notes = sent_values + 2 * 4 * most_sources * group_threads;  // TileNotes
  static constexpr int marks = notes + static_cast<int>(sizeof(TileNotes));  // [4], 8 bytes each: what is on its way
  static constexpr int mark_count = 4;
  static constexpr int bytes = marks + 8 * mark_count;
};
static_assert(4 * TileLayout::staged * TileLayout::units <= TileLayout::climbs - TileLayout::layer &&
                  4 * TileLayout::rows * TileLayout::observed_stride <= TileLayout::top - TileLayout::observed &&
                  TileLayout::transposed_bytes <= TileLayout::top - TileLayout::transposed,
              "what is staged lies where other things will");
static_assert(TileLayout::threads == TileLayout::groups * TileLayout::group_threads, "a block's warpgroups");
static_assert(TileLayout::first % 16 == 0 && TileLayout::number_bytes % 16 == 0, "it is copied in bulk");
static_assert(TileLayout::bytes <= 227 * 1024, "a block's shared memory");

// void(const Job), of heads blocks a cluster; for what fits_tiles. A kernel launched next may begin before
// this ends (wait_for_kernel_before).
const void* dense_kernel_for(const PackedCritic& critic);

}  // namespace dtag::cuda
