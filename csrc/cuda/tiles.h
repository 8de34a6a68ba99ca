// The set-up by tensor cores, in the precision tf32x3: c and M are a product of the rows of W_2^T that
// pass and 1 + A coefficients each, of which tiles of 16 hidden units, 8 columns and 8 rows of W_2^T
// are one instruction.
//
// A tensor core rounds what it multiplies to tf32, ten bits of mantissa. Here every number is split in
// two of them, and of the four products of the parts the three that matter are taken: what is left
// out is some 2^-22 of a product. It adds up with less care than float32 is added up elsewhere, and
// cuts digits off, so that a step's sums leave it after 8 rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "job.h"
#include "memory.h"
#include "team.h"

namespace dtag::cuda {

// The nearest number of ten bits of mantissa, the larger in magnitude of two.
DTAG_BOTH float to_tf32(float x) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits & 0xffffe000u);  // the others may be anything
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & 0xffffe000u;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

// x, but for some 2^-22 of it, in two numbers of tf32.
DTAG_BOTH void split(float x, float& big, float& small) {
  big = to_tf32(x);
  small = to_tf32(x - big);
}

constexpr int tile_rows = 8;  // of W_2^T at a time

// What a lane of a warp holds: of the rows t and t + 4 of eight, t = lane % 4, four neighbouring units
// g = lane / 4 of each 32 of the warp's; of the sums, two units and two columns a tile. What is called
// a, b and d is a tile's, as the instruction has it.
template <int units, int columns>
struct TileLane {
  static constexpr int parts = (columns + 7) / 8;
  const float* next[2];  // where to read the rows after, or again
  float rows[2][units][4];
  float sums[units][2][parts][4];
  float b_big[parts][2], b_small[parts][2];
  float a_big[2][4], a_small[2][4];
  float d[4];
};

// For every head e, unit u of it and column i: give(e, u, i, sum), the sum over n < count(e) of
// weights(e, n)[u] * coefficient(e, n, i). first_unit: of a warp.
template <int columns, typename Team, typename Count, typename Weights, typename Coefficient,
          typename Give>
DTAG_BOTH void multiply_by_tiles(Team& team, Count count_of, Weights weights,
                                 Coefficient coefficient, Give give) {
  constexpr int units = Team::units;
  using State = TileLane<units, columns>;
  team.template warps<State>([&](auto& warp, int e, int first_unit) DTAG_INLINED {
    const int count = count_of(e);
    // To the rows from n on; beyond the last to the first, which then counts for nothing.
    const auto turn_to = [&](State& lane, int index, int n) DTAG_INLINED {
      DTAG_UNROLLED
      for (int i = 0; i < 2; ++i) {
        const int row = n + index % 4 + 4 * i;
        lane.next[i] = weights(e, row < count ? row : 0) + first_unit + index / 4 * 4;
      }
    };
    const auto fetch = [](State& lane, int block) DTAG_INLINED {
      DTAG_UNROLLED
      for (int i = 0; i < 2; ++i) stream_four(lane.next[i] + 32 * block, lane.rows[i][block]);
    };
    warp.each([&](State& lane, int index) DTAG_INLINED {
      DTAG_UNROLLED
      for (int block = 0; block < units; ++block)
        DTAG_UNROLLED
        for (int i = 0; i < 8 * State::parts; ++i)
          lane.sums[block][i / (4 * State::parts)][i / 4 % State::parts][i % 4] = 0.0f;
      if (count == 0) return;
      turn_to(lane, index, 0);
      DTAG_UNROLLED
      for (int block = 0; block < units; ++block) fetch(lane, block);
    });
    for (int n = 0; n < count; n += tile_rows) {
      warp.each([&](State& lane, int index) DTAG_INLINED {
        turn_to(lane, index, n + tile_rows);
        DTAG_UNROLLED
        for (int part = 0; part < State::parts; ++part) {
          DTAG_UNROLLED
          for (int i = 0; i < 2; ++i) {
            const int row = n + index % 4 + 4 * i, column = 8 * part + index / 4;
            const bool counts = row < count && column < columns;
            split(counts ? coefficient(e, row, column) : 0.0f, lane.b_big[part][i],
                  lane.b_small[part][i]);
          }
        }
      });
      DTAG_UNROLLED
      for (int block = 0; block < units; ++block) {
        warp.each([&](State& lane, int) DTAG_INLINED {
          DTAG_UNROLLED
          for (int i = 0; i < 8; ++i)
            split(lane.rows[i / 2 % 2][block][i / 4 * 2 + i % 2], lane.a_big[i / 4][i % 4],
                  lane.a_small[i / 4][i % 4]);
          fetch(lane, block);  // long before it is needed
        });
        DTAG_UNROLLED
        for (int i = 0; i < 2 * State::parts; ++i) {
          const int pair = i / State::parts, part = i % State::parts;
          const auto b_big = [part](State& lane) -> auto& { return lane.b_big[part]; };
          const auto b_small = [part](State& lane) -> auto& { return lane.b_small[part]; };
          const auto a_big = [pair](State& lane) -> auto& { return lane.a_big[pair]; };
          const auto a_small = [pair](State& lane) -> auto& { return lane.a_small[pair]; };
          warp.each([](State& lane, int) DTAG_INLINED {
            DTAG_UNROLLED
            for (int d = 0; d < 4; ++d) lane.d[d] = 0.0f;
          });
          warp.multiply(a_small, b_big);
          warp.multiply(a_big, b_small);
          warp.multiply(a_big, b_big);
          warp.each([&](State& lane, int) DTAG_INLINED {
            DTAG_UNROLLED
            for (int d = 0; d < 4; ++d) lane.sums[block][pair][part][d] += lane.d[d];
          });
        }
      }
    }
    warp.each([&](State& lane, int index) DTAG_INLINED {
      DTAG_UNROLLED
      for (int tile = 0; tile < 2 * units; ++tile)
        DTAG_UNROLLED
        for (int part = 0; part < State::parts; ++part)
          DTAG_UNROLLED
          for (int i = 0; i < 4; ++i) {
            const int unit = first_unit + tile / 2 * 32 + index / 4 * 4 + tile % 2 * 2 + i / 2;
            const int column = 8 * part + index % 4 * 2 + i % 2;
            if (column < columns) give(e, unit, column, lane.sums[tile / 2][tile % 2][part][i]);
          }
    });
  });
}

}  // namespace dtag::cuda
