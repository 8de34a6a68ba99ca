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
// team; handover [together, E, P / 64, 1 + actions, 64].
template <int actions, int together, typename Precision, typename Shared>
DTAG_BOTH void build_together(const Job& job, int thread, Shared shared, float* handover) {
  const PackedCritic& critic = job.critic;
  const SharedLayout& at = job.shared;
  using Weight = typename Precision::Weight;
  constexpr int ahead = 2;  // with four warps to a scheduler enough; more spills registers
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
  uint32_t builds = 0;  // a bit a row
  DTAG_UNROLLED
  for (int r = 0; r < together; ++r) builds |= builds_of(shared(r), at) << r;
  int word = 0;
  uint32_t left = 0, signs[together];
  bool more = true;
  while (more) {
    // The unit, above a bit a row: whether it is active there, and whether it is added at all.
    uint32_t next[ahead];
    float weight[ahead][1];
    DTAG_UNROLLED
    for (int i = 0; i < ahead; ++i) {
      while (left == 0 && word < at.words_per_head) {
        DTAG_UNROLLED
        for (int r = 0; r < together; ++r) {
          signs[r] = builds >> r & 1 ? signs_of(shared(r), at)[e * at.words_per_head + word] : 0u;
          left |= signs[r];
        }
        if (leaky && builds != 0) left = 0xffffffffu;
        ++word;
      }
      next[i] = 0;
      if (left != 0) {
        const int bit = lowest_bit(left);
        left &= left - 1;
        const int k = unit_of(word - 1, bit);
        stream<1>(rows + k * width, weight[i]);
        next[i] = static_cast<uint32_t>(k) << 8;
        DTAG_UNROLLED
        for (int r = 0; r < together; ++r) next[i] |= (signs[r] >> bit & 1) << (4 + r);
        next[i] |= leaky ? builds : next[i] >> 4 & 0xf;
      }
    }
    DTAG_UNROLLED
    for (int i = 0; i < ahead; ++i) {
      more = (next[i] & 0xf) != 0;
      if (!more) continue;
      const int k = static_cast<int>(next[i] >> 8);
      float row[actions];
      load_row<actions>(action_rows + k * row_stride(actions), row);
      DTAG_UNROLLED
      for (int r = 0; r < together; ++r)
        if (next[i] >> r & 1)
          add_unit<actions, 1>(next[i] >> (4 + r) & 1 ? 1.0f : critic.negative_slope,
                               shared(r)[at.base + e * width + k], row, weight[i], c[r], m[r]);
    }
  }
  DTAG_UNROLLED
  for (int r = 0; r < together; ++r) {
    float* const to =
        handover +
        (r * critic.heads * width + thread) / group_units * (1 + actions) * group_units +
        j % group_units;
    to[0] = c[r][0];
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) to[(1 + a) * group_units] = m[r][a][0];
  }
}

// together: rows at a time, each with its team.
//   index(), count()   of blocks
//   teams(f)           f(walk, r) for each team
//   threads(f)         f(i) for all threads of the block
//   sync()             as a team's, for the block
//   shared(r)          the memory of a team
//   handover()         [together, E, P / 64, 1 + actions, 64]
template <int actions, int together, typename Precision, typename Block>
DTAG_BOTH void refine_rows(Block& block, const Job& job) {
  static_assert(together == 1 || together == units_per_thread(actions),
                "a thread of the block has one hidden unit");
  static_assert(together == 1 || !Precision::tiles, "tiles build a row at a time");
  const PackedCritic& critic = job.critic;
  const SharedLayout& at = job.shared;
  for (int64_t first = block.index() * together; first < job.rows;
       first += block.count() * together) {
    block.teams([&](auto& walk, int r) DTAG_INLINED {
      const bool builds = walk.look_at(first + r, together > 1);
      // By every thread of the team: the same value.
      if constexpr (together > 1)
        *reinterpret_cast<uint32_t*>(block.shared(r) + at.builds) = builds ? 1u : 0u;
    });
    if constexpr (together > 1) {
      block.sync();
      if (critic.hidden_layers == 2)
        block.threads([&](int thread) DTAG_INLINED {
          build_together<actions, together, Precision>(
              job, thread, [&](int r) { return block.shared(r); }, block.handover());
        });
      block.sync();
    }
    block.teams([&](auto& walk, int r) DTAG_INLINED {
      walk.take(first + r);
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
