// What a block that builds maps (maps.h) does.
#pragma once

#include "maps.h"

namespace dtag::cuda {

// It has W_2 for some units of a head, and takes tile after tile.
//   kind()                   which units it has
//   index(), count()         of the blocks of a kind
//   expect(bytes...)         in the first batch of what is copied, and in the second
//   copy(batch, byte, from, bytes)   send to shared memory
//   wait(batch)              for it to be seen by all, tensor cores too
//   groups(f)                f(builder, index) by each of its warpgroups, of which there are groups_of()
template <int columns, typename Block>
DTAG_BOTH void build_maps(Block& block, const Job& job, const MapsLayout& at) {
  const PackedCritic& critic = job.critic;
  const int width = critic.layout.width, slabs = width / slab, head = block.kind() * columns / width;
  const auto* const weights =
      static_cast<const uint16_t*>(critic.halves) + block.kind() * columns * width * 2;
  const auto* const terms = static_cast<const uint16_t*>(critic.terms) + head * (at.bias - at.terms) / 2;
  block.expect(at.warps - at.terms, at.terms - at.weights);
  block.copy(0, at.terms, terms, at.bias - at.terms);
  block.copy(0, at.bias, critic.second_bias + block.kind() * columns, at.first - at.bias);
  if (at.keeps_first) {
    const auto copy_rows = [&](int before, const float* array, int rows) DTAG_INLINED {
      block.copy(0, at.first + 4 * width * before, array + head * width * rows, 4 * width * rows);
    };
    const int rows = observation_rows(critic), actions = critic.layout.actions;
    copy_rows(0, critic.first_bias, 1);
    copy_rows(1, critic.observation_weights, rows);
    copy_rows(1 + rows, critic.action_weights, actions);
  }
  for (int i = 0; i < slabs; ++i) {
    const int part = (i + block.index()) % slabs;  // not all blocks the same at once
    const int bytes = 4 * columns * slab;
    block.copy(1, at.weights + part * bytes, weights + part * bytes / 2, bytes);
  }
  const int tiles = tiles_of(job), stride = block.count() * block.groups_of();
  // A tile a group, of blocks side by side: few are spread over all blocks.
  const auto tile_of = [&](int first, int group) DTAG_INLINED { return first + group * block.count(); };
  block.groups([&](auto& builder, int group) DTAG_INLINED {
    builder.begin();
    builder.send_for(tile_of(block.index(), group));
  });
  block.wait(0);
  for (int first = block.index(); first == block.index() || first < tiles; first += stride) {
    block.groups([&](auto& builder, int group) DTAG_INLINED {
      if (tile_of(first, group) < tiles) builder.prepare(tile_of(first, group));
    });
    if (first == block.index()) block.wait(1);
    block.groups([&](auto& builder, int group) DTAG_INLINED {
      const bool there = tile_of(first, group) < tiles;
      if (there) builder.send_for(tile_of(first + stride, group));
      // One after the other: else all are at it at a time, and then none is.
      builder.take_turn();
      if (there) builder.multiply();
      builder.pass_turn(first + stride >= tiles);
      if (there) builder.give();
    });
  }
}

}  // namespace dtag::cuda
