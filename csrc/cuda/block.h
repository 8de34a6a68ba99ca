// What a block does: takes rows, builds their maps together, and lets each row's team walk.
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
  const int width = critic.layout.width, part_size = staged_rows * width;
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

// together: rows at a time, each with its team.
//   index(), count()   of blocks
//   teams(f)           f(walk, r) for each team
//   sync()             as a team's, for the block
//   staging()          [stages, E, staged_rows, P] weights of shared memory
//   copy(to, from, bytes), end_copies(), wait_for_copies()
//                      copies to it by all threads, in lots that end_copies() ends; to wait for all
//                      lots of the calling thread but the last stages - 2
template <int actions, int together, typename Precision, typename Block>
DTAG_BOTH void refine_rows(Block& block, const Job& job) {
  static_assert(together == 1 || !Precision::tiles, "tiles build a row at a time");
  for (int64_t first = block.index() * together; first < job.rows;
       first += block.count() * together) {
    block.teams([&](auto& walk, int r) DTAG_INLINED { walk.take(first + r, together > 1); });
    if constexpr (together > 1)
      if (job.critic.hidden_layers == 2 && !job.dense) build_together<Precision>(block, job);
    block.teams([&](auto& walk, int) DTAG_INLINED { walk.finish(); });
    if constexpr (together > 1) block.sync();
  }
}

}  // namespace dtag::cuda
