// What a block does: takes rows, builds their maps together, and lets each row's team walk. In a
// cluster all blocks take the same row, each builds a part of its map, and the first of them walks.
//
// Rows that are built together share what they read of W_2^T: it comes to shared memory part by part,
// while each team adds the rows of the part before that its own list names. They are added in the
// order in which a team alone adds them, so that a row's result does not depend on the rows beside it.
#pragma once

#include "job.h"
#include "walk.h"

namespace dtag::cuda {

// The maps of all rows that the teams took.
template <typename Precision, typename Block>
DTAG_BOTH void build_together(Block& block, const Job& job) {
  using Weight = typename Precision::Weight;
  const PackedCritic& critic = job.critic;
  const int width = critic.layout.width, staged_rows = job.staged_rows;
  const int part_size = staged_rows * width;
  const int parts = (critic.first_units + staged_rows - 1) / staged_rows;
  const auto* const transposed = static_cast<const Weight*>(critic.transposed);
  const auto staged = [&](int part) DTAG_INLINED {
    return static_cast<Weight*>(block.staging()) + part % stages * critic.heads * part_size;
  };
  const auto send_for = [&](int part) DTAG_INLINED {
    if (part < parts)
      for (int e = 0; e < critic.heads; ++e)
        block.copy(staged(part) + e * part_size,
                   transposed + (e * width + part * staged_rows) * width,
                   part_size * sizeof(Weight));
    block.end_copies();
  };
  for (int part = 0; part < stages - 1; ++part) send_for(part);
  for (int part = 0; part < parts; ++part) {
    block.wait_for_copies();  // all but the last
    block.sync();             // and what was read of the part before last is no longer needed
    send_for(part + stages - 1);
    block.teams([&](auto& walk, int) DTAG_INLINED {
      if (walk.builds()) walk.add_staged(staged(part), part);
    });
  }
}

// The map of the row that the blocks of a cluster took: a part by each, to the first one's memory.
template <typename Block>
DTAG_BOTH void build_apart(Block& block) {
  block.teams([&](auto& walk, int rank) DTAG_INLINED {
    if (walk.builds()) walk.add_part(rank);
  });
  block.wait();  // for all blocks to be there, and for the map before to have been taken
  block.teams([&](auto& walk, int rank) DTAG_INLINED {
    if (walk.builds()) walk.give_part(rank, block.first_shared());
  });
  block.arrive();
  block.wait();
  block.teams([&](auto& walk, int rank) DTAG_INLINED {
    if (rank == 0 && walk.builds()) walk.take_map();
  });
}

// together: rows at a time, each with its team; blocks: of a cluster that takes a row.
//   index(), count()   of blocks, or clusters
//   teams(f)           f(walk, r) for each team, r of those in a block or, in a cluster, of its blocks
//   sync()             as a team's, for the block
//   staging()          [stages, E, staged_rows, P] weights of shared memory
//   copy(to, from, bytes), end_copies(), wait_for_copies()
//                      copies to it by all threads, in lots that end_copies() ends; to wait for all
//                      lots of the calling thread but the last stages - 2
//   arrive(), wait()   wait until all threads of the cluster's blocks have arrived; what they wrote
//                      before is seen after
//   first_shared()     the shared memory of the cluster's first block
template <int actions, int together, int blocks, typename Precision, typename Block>
DTAG_BOTH void refine_rows(Block& block, const Job& job) {
  static_assert(together == 1 || !Precision::tiles, "tiles build a row at a time");
  static_assert(together == 1 || blocks == 1, "a cluster takes a row at a time");
  constexpr Building building = blocks > 1     ? Building::apart
                                : together > 1 ? Building::together
                                               : Building::alone;
  for (int64_t first = block.index() * together; first < job.rows;
       first += block.count() * together) {
    if constexpr (building == Building::apart) block.arrive();
    block.teams([&](auto& walk, int r) DTAG_INLINED {
      walk.take(building == Building::together ? first + r : first, building);
    });
    if constexpr (building == Building::together)
      if (job.critic.hidden_layers == 2 && !job.dense) build_together<Precision>(block, job);
    if constexpr (building == Building::apart) build_apart(block);
    block.teams([&](auto& walk, int r) DTAG_INLINED {
      if (building != Building::apart || r == 0) walk.finish();
    });
    if constexpr (building == Building::together) block.sync();
  }
}

}  // namespace dtag::cuda
