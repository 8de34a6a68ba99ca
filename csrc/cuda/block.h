// What a block does: takes row after row. In a cluster all blocks take the same row, each builds a part
// of its map, and the first of them walks.
#pragma once

#include <type_traits>

#include "job.h"
#include "walk.h"

namespace dtag::cuda {

// The map of the row that the blocks of a cluster took: a part by each, to the first one's memory.
template <typename Block>
DTAG_BOTH void build_apart(Block& block) {
  block.teams([&](auto& walk, int rank) DTAG_INLINED {
    walk.await_slice();
    if (walk.builds()) walk.add_part(rank);
  });
  block.wait();  // for all blocks to be there, and for the map before to have been taken
  block.teams([&](auto& walk, int rank) DTAG_INLINED {
    if (!walk.builds()) return;
    if (rank == 0) block.expect(walk.map_bytes());
    walk.give_part(rank, [&](int to, float number) DTAG_INLINED { block.give(to, number); });
  });
  block.teams([&](auto& walk, int rank) DTAG_INLINED {
    if (rank > 0 || !walk.builds()) return;
    block.receive();
    walk.take_map();
  });
}

// From `row` on the next row that the block takes: any, or one that is marked. Lanes look at as many rows.
template <bool marks, typename Block>
DTAG_BOTH int64_t next_row(Block& block, const Job& job, int64_t row) {
  while (marks && job.marked && row < job.rows) {
    const int found = block.find([&](int i) {
      const int64_t at = row + i * block.count();
      return at < job.rows && job.result.dense_steps[at] == marked_row;
    });
    row += found * block.count();
    if (found < warp_size) break;
  }
  return row;
}

// blocks: of a cluster, or 1.
//   index(), count()   of blocks, or clusters
//   find(f)            the least i < 32 for which f(i), or 32
//   teams(f)           f(walk, rank) for the block's team, by all blocks of the cluster
//   arrive(), wait()   wait until all threads of the cluster's blocks have arrived
//   give(to, number)   to the shared memory of the cluster's first block
//   expect(bytes)      by that block: so many will be given
//   receive()          by that block: wait until they are there
// Of rows some take twice as long as others: those of a queue (Team::queued) are taken by whoever is free,
// others are dealt out in advance.
template <int actions, int blocks, typename Precision, typename Block>
DTAG_BOTH void refine_rows(Block& block, const Job& job) {
  constexpr bool apart = blocks > 1;
  constexpr bool marks = std::is_same_v<Precision, Bf16> && !apart;
  if (marks && job.marked) wait_for_kernel_before();
  for (int64_t row = next_row<marks>(block, job, block.index()), next; row < job.rows;
       row = next_row<marks>(block, job, next)) {
    next = row + block.count();
    if constexpr (apart) block.arrive();
    block.teams([&](auto& walk, int rank) DTAG_INLINED { walk.take(row, next, apart, rank); });
    if constexpr (apart) build_apart(block);
    block.teams([&](auto& walk, int rank) DTAG_INLINED {
      if (rank == 0) walk.finish();
    });
    if constexpr (Block::Team::queued)
      block.teams([&](auto& walk, int) DTAG_INLINED { next = block.count() + walk.draw(); });
  }
}

}  // namespace dtag::cuda
