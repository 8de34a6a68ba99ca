// What a block does: takes rows, builds their maps together, and lets each row's team walk.
//
// Rows that are built together share what they read of W_2^T. A thread of the block then has one
// hidden unit of one head, and 1 + A sums for each row; they cross shared memory to the row's own
// team. They are added up in the same order as a team alone adds them, so that a row's result does
// not depend on the rows beside it.
#pragma once

#include "job.h"
#include "memory.h"
#include "step.h"
#include "walk.h"

namespace dtag::cuda {

// The signs of a row's first layer as another team's threads see them; see SharedLayout.
DTAG_BOTH const uint32_t* signs_of(const float* shared, const SharedLayout& at) {
  return reinterpret_cast<const uint32_t*>(shared + at.words);
}
DTAG_BOTH uint32_t builds_of(const float* shared, const SharedLayout& at) {
  return *reinterpret_cast<const uint32_t*>(shared + at.builds);
}

// One hidden unit's part of the maps of all rows, thread < E * P. shared(r): the memory of row r's
// team; handover [together, E, 1 + actions, P].
template <int actions, int together, typename Weight, typename Shared>
DTAG_BOTH void build_together(const Job& job, int thread, Shared shared, float* handover) {
  const PackedCritic& critic = job.critic;
  const SharedLayout& at = job.shared;
  constexpr int units = units_per_thread(actions);
  constexpr int ahead = 4;
  const int width = critic.layout.width;
  const int e = thread / width, j = thread % width;
  const bool leaky = critic.negative_slope != 0.0f;
  const Weight* const rows =
      static_cast<const Weight*>(critic.transposed) + e * width * width + j;
  const float* const action_rows =
      critic.action_rows + e * width * row_stride(actions);

  float c[together][1], m[together][actions][1];
  DTAG_UNROLLED
  for (int r = 0; r < together; ++r) {
    load<1>(critic.second_bias + thread, c[r]);
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) m[r][a][0] = 0.0f;
  }
  int word = 0;
  uint32_t left = 0, signs[together];
  bool more = true;
  while (more) {
    int k[ahead];
    uint32_t adds[ahead], positive[ahead];  // a bit a row
    float weight[ahead][1];
    DTAG_UNROLLED
    for (int i = 0; i < ahead; ++i) {
      while (left == 0 && word < at.words_per_head) {
        DTAG_UNROLLED
        for (int r = 0; r < together; ++r) {
          signs[r] = builds_of(shared(r), at)
                         ? signs_of(shared(r), at)[e * at.words_per_head + word]
                         : 0u;
          left |= leaky && builds_of(shared(r), at) ? 0xffffffffu : signs[r];
        }
        ++word;
      }
      adds[i] = 0;
      if (left != 0) {
        const int bit = lowest_bit(left);
        left &= left - 1;
        k[i] = ((word - 1) / units * warp_size + bit) * units + (word - 1) % units;
        positive[i] = 0;
        DTAG_UNROLLED
        for (int r = 0; r < together; ++r) {
          positive[i] |= (signs[r] >> bit & 1) << r;
          adds[i] |= (leaky ? builds_of(shared(r), at) : signs[r] >> bit & 1) << r;
        }
        stream<1>(rows + k[i] * width, weight[i]);
      }
    }
    DTAG_UNROLLED
    for (int i = 0; i < ahead; ++i) {
      more = adds[i] != 0;
      if (!more) continue;
      float row[actions];
      load_row<actions>(action_rows + k[i] * row_stride(actions), row);
      DTAG_UNROLLED
      for (int r = 0; r < together; ++r)
        if (adds[i] >> r & 1)
          add_unit<actions, 1>(positive[i] >> r & 1 ? 1.0f : critic.negative_slope,
                               shared(r)[at.base + e * width + k[i]], row,
                               weight[i], c[r], m[r]);
    }
  }
  DTAG_UNROLLED
  for (int r = 0; r < together; ++r) {
    float* const to =
        handover + (r * critic.heads + e) * (1 + actions) * width + j;
    to[0] = c[r][0];
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) to[(1 + a) * width] = m[r][a][0];
  }
}

// together: rows at a time, each with its team.
//   index(), count()   of blocks
//   teams(f)           f(walk, r) for each team
//   threads(f)         f(i) for all threads of the block
//   sync()             as a team's, for the block
//   shared(r)          the memory of a team
//   handover()         [together, E, 1 + actions, P]
template <int actions, int together, typename Weight, typename Block>
DTAG_BOTH void refine_rows(Block& block, const Job& job) {
  static_assert(together == 1 || together == units_per_thread(actions),
                "a thread of the block has one hidden unit");
  const PackedCritic& critic = job.critic;
  const SharedLayout& at = job.shared;
  for (int64_t first = block.index() * together; first < job.rows;
       first += block.count() * together) {
    block.teams([&](auto& walk, int r) DTAG_INLINED {
      walk.take(first + r);
      // By every thread of the team: the same value.
      if constexpr (together > 1)
        *reinterpret_cast<uint32_t*>(block.shared(r) + at.builds) = walk.begin_to_place() ? 1u : 0u;
    });
    if constexpr (together > 1) {
      block.sync();
      if (critic.hidden_layers == 2)
        block.threads([&](int thread) DTAG_INLINED {
          build_together<actions, together, Weight>(
              job, thread, [&](int r) { return block.shared(r); }, block.handover());
        });
      block.sync();
    }
    block.teams([&](auto& walk, int r) DTAG_INLINED {
      if constexpr (together > 1)
        if (builds_of(block.shared(r), at) != 0)
          walk.take_map(block.handover() +
                        r * critic.heads * (1 + actions) * critic.layout.width);
      walk.finish();
    });
    if constexpr (together > 1) block.sync();
  }
}

}  // namespace dtag::cuda
