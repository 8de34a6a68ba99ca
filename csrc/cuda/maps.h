// The first maps of a whole batch by tensor cores, before the walk, in the precision tf32x3; and with them
// the observation's share of z_1.
//
// c and M of a head are a product with W_2: of every row of the batch 1 + A columns, whose coefficients are
// z_1 at the action and the weights W_1a, both 0 for units that do not pass. A slot is eight columns of a
// row. Eight slots are a tile: 64 x P coefficients, made in registers, by W_2^T of `columns` units, which
// stay in the block's shared memory from the first tile to the last.
//
// A tensor core multiplies numbers of eleven bits. Every number is split in two half floats, scaled so that
// their range does, and of the four products of the parts the three that matter are taken: what is left
// out is some 2^-22 of the largest. What is given is float32 as ever.
#pragma once

#include <cstdint>

#include "half.h"
#include "job.h"
#include "maps_layout.h"
#include "memory.h"
#include "step.h"
#include "wgmma.cuh"

namespace dtag::cuda {

// Maps by a warpgroup, one of a block's, whose shared memory has W_2 for `columns` units of a head.
//   shared(), index()        the block's shared memory; which of its groups it is
//   warps(f)                 f(warp) by each of the four; warp.index; warp.each(g): g(lane, index) by its lanes;
//                            warp.sync(): what was written before is seen by the warp's lanes after;
//                            warp.largest(g): of g(lane), to all
//   multiply(a, byte)        to every lane's d the product of a(lane) and the weights from `byte` on, as wgmma()
//   fence(), commit(), wait<pending>()
//   take_turn()              wait for the group before to have passed its turn: the first after the last
//   pass_turn(last)          last: of the group's
template <int columns, int units, typename Group>
class MapBuilder {
 public:
  using Lane = MapLane<columns, units>;

  // kind: which `columns` units, of all heads'.
  DTAG_BOTH MapBuilder(const Group& group, const Job& job, const MapsLayout& at, int kind)
      : group_(group),
        job_(job),
        critic_(job.critic),
        at_(at),
        head_(kind * columns / width()),
        first_unit_(kind * columns) {}

  // What all tiles need.
  DTAG_BOTH void begin() {
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int index) DTAG_INLINED {
        const bool observed = index < critic_.observation_dim;
        lane.mean = observed ? critic_.mean[index] : 0.0f;
        lane.std = observed ? critic_.std[index] : 1.0f;
        lane.low = job_.settings.low[index];
        lane.high = job_.settings.high[index];
        // By a thread of each of several blocks, before the walk.
        if (first_unit_ == 0 && group_.index() == 0 && warp.index == 0 && index == 0) *job_.queue = 0;
      });
    });
  }

  // Send for a tile's first inputs.
  DTAG_BOTH void send_for(int tile) {
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int index) DTAG_INLINED {
        DTAG_UNROLLED
        for (int s = 0; s < 2; ++s) {
          const int64_t row = there(row_of(tile, warp.index, s));
          lane.raw[s] = index < critic_.observation_dim
                            ? job_.observations[row * critic_.observation_dim + index]
                            : 0.0f;
          lane.action[s] = index < critic_.action_dim
                               ? job_.actions[row * job_.starts * critic_.action_dim + index]
                               : 0.0f;
        }
      });
    });
  }

  // Its coefficients.
  DTAG_BOTH void prepare(int tile) {
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int index) DTAG_INLINED { begin_tile(lane, index, tile, warp.index); });
      observe(warp);
      DTAG_UNROLLED
      for (int s = 0; s < 2; ++s) {
        const float scale = scale_for(warp.largest([&](const Lane& lane) DTAG_INLINED {
          float largest = 0.0f;
          DTAG_UNROLLED
          for (int u = 0; u < units; ++u) largest = fmaxf(largest, fabsf(lane.z[s][u]));
          return largest;
        }));
        warp.each([&](Lane& lane, int index) DTAG_INLINED {
          if (lane.column[s] == 0) lane.unscale[s] *= inverse_of_power(scale);
          put(lane, index, area(warp.index), s, scale);
        });
      }
      warp.sync();
    });
  }

  DTAG_BOTH void take_turn() { group_.take_turn(); }
  DTAG_BOTH void pass_turn(bool last) const { group_.pass_turn(last); }

  // Their product with the weights.
  DTAG_BOTH void multiply() {
    const float slope = critic_.negative_slope;
    change_sums([](float) DTAG_INLINED { return 0.0f; });
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
    for (bool pass = slope == 0.0f;; pass = true) {
      multiply(pass ? 0u : ~0u);
      if (pass) return;
      change_sums([slope](float sum) DTAG_INLINED { return sum * slope; });
    }
  }

  // It, to the maps of the tile's rows.
  DTAG_BOTH void give() {
    const int of_map = 1 + critic_.layout.actions;
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](const Lane& lane, int index) DTAG_INLINED {
        DTAG_UNROLLED
        for (int s = 0; s < 2; ++s) {
          if (lane.row[s] >= job_.rows || lane.column[s] >= of_map) continue;
          // A lane has four neighbouring units of each sixteen (refinement/cuda_layouts.py has them in that order).
          float* const map = maps_of(lane.row[s]) + first_unit_ * of_map +
                             lane.column[s] * units_together + index % 4 * 4;
          const float* const bias = in_shared<float>(at_.bias) + index % 4 * 4;
          DTAG_UNROLLED
          for (int i = 0; i < columns / units_together; ++i) {
            float sum[4] = {};
            if (lane.column[s] == 0) load_four(bias + i * units_together, sum);
            DTAG_UNROLLED
            for (int k = 0; k < 4; ++k)
              sum[k] = fmaf(lane.d[8 * i + k / 2 * 4 + 2 * s + k % 2], lane.unscale[s], sum[k]);
            store_four(map + i * of_map * units_together, sum);
          }
        }
      });
    });
  }

 private:
  DTAG_BOTH int width() const { return critic_.layout.width; }
  DTAG_BOTH int slot_of(int tile, int warp, int s) const { return tile * slots_of_tile + 2 * warp + s; }
  DTAG_BOTH int row_of(int tile, int warp, int s) const {
    const int slot = slot_of(tile, warp, s);
    return at_.slots == 1 ? slot : slot / at_.slots;
  }
  // Of slots beyond the last row's: that row.
  DTAG_BOTH int64_t there(int row) const {
    const int rows = static_cast<int>(job_.rows);
    return row < rows ? row : rows - 1;
  }
  // The shares of z_1, then the maps of a row.
  DTAG_BOTH float* shares_of(int64_t row) const { return job_.maps + row * floats_of_maps(critic_); }
  DTAG_BOTH float* maps_of(int64_t row) const { return shares_of(row) + critic_.heads * width(); }

  // What a warp has of the shared memory, in bytes.
  DTAG_BOTH int area(int warp) const {
    return at_.warps + (group_.index() * warps_of_group + warp) * at_.bytes_of_warp;
  }
  template <typename Number>
  DTAG_BOTH Number* in_shared(int byte) const {
    return reinterpret_cast<Number*>(group_.shared() + byte);
  }

  // A lane's units, as to their z_1: four by four.
  DTAG_BOTH static int unit_of(int index, int u) { return u / 4 * far_units + index * 4 + u % 4; }
  // The same, but of units that are not there others.
  DTAG_BOTH int unit_there(int index, int u) const {
    const int unit = unit_of(index, u);
    return unit < width() ? unit : 0;
  }
  // Of the head, from one of the arrays [E, P, ...] that `first` of the layout is made of.
  DTAG_BOTH const float* first_layer(const float* array, int rows, int rows_before) const {
    return at_.keeps_first ? in_shared<float>(at_.first) + rows_before * width()
                           : array + head_ * width() * rows;
  }

  DTAG_BOTH void begin_tile(Lane& lane, int index, int tile, int warp) const {
    DTAG_UNROLLED
    for (int s = 0; s < 2; ++s) {
      lane.row[s] = row_of(tile, warp, s);
      const int column = (slot_of(tile, warp, s) - lane.row[s] * at_.slots) * 8 + index / 4;
      const int part = index % 4 * 16;
      lane.column[s] = column;
      lane.values[s] = column == 0 ? area(warp) + at_.values + s * at_.values_of_slot + part
                                   : at_.terms + column * 64 + part;
      lane.step[s] = column == 0 ? MapsLayout::values_of_turn : at_.slots * 8 * 64;
      lane.unscale[s] = critic_.unscale[head_ * at_.slots * 8 + column];
    }
    DTAG_UNROLLED
    for (int u = 0; u < units; u += 4) {
      float bias[4];
      load_four(first_layer(critic_.first_bias, 1, 0) + unit_there(index, u), bias);
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) lane.z[0][u + i] = lane.z[1][u + i] = bias[i];
    }
  }

  // z_1, and the observation's share of it to the row's. In the order in which the walk adds it up.
  template <typename Warp>
  DTAG_BOTH void observe(Warp& warp) const {
    float* const inputs = in_shared<float>(area(warp.index) + at_.inputs);
    const int rows = observation_rows(critic_);
    for (int first = 0; first < rows; first += warp_size) {
      warp.sync();  // all have done with those before
      warp.each([&](Lane& lane, int index) DTAG_INLINED {
        DTAG_UNROLLED
        for (int s = 0; s < 2; ++s) {
          float* const to = inputs + s * MapsLayout::most_inputs + index;
          if (first == 0) {
            to[0] = (lane.raw[s] - lane.mean) / lane.std;
            to[warp_size] = into_box(lane.low, lane.high, lane.action[s]);
            continue;
          }
          const int size = critic_.observation_dim, i = first + index;
          to[0] = 0.0f;
          if (i < size)
            to[0] = (job_.observations[there(lane.row[s]) * size + i] - critic_.mean[i]) / critic_.std[i];
        }
      });
      warp.sync();
      warp.each([&](Lane& lane, int index) DTAG_INLINED {
        add_inputs(lane, index, first_layer(critic_.observation_weights, rows, 1), rows, first, inputs);
      });
    }
    warp.each([&](Lane& lane, int index) DTAG_INLINED {
      DTAG_UNROLLED
      for (int s = 0; s < 2; ++s) {
        if (lane.row[s] >= job_.rows || first_unit_ != head_ * width()) continue;  // one block is enough
        DTAG_UNROLLED
        for (int u = 0; u < units; u += 4) {
          const float four[4] = {lane.z[s][u], lane.z[s][u + 1], lane.z[s][u + 2], lane.z[s][u + 3]};
          if (unit_of(index, u) < width())
            store_four(shares_of(lane.row[s]) + first_unit_ + unit_of(index, u), four);
        }
      }
      const int actions = critic_.layout.actions;
      add_inputs(lane, index, first_layer(critic_.action_weights, actions, 1 + rows), actions, 0,
                 inputs + warp_size);
    });
  }

  // Up to 32 of the `rows` inputs whose weights are [P / 64, rows, 64], from `first` on.
  DTAG_BOTH void add_inputs(Lane& lane, int index, const float* weights, int rows, int first,
                            const float* inputs) const {
    const float* from[units / 4];
    DTAG_UNROLLED
    for (int u = 0; u < units; u += 4) {
      const int unit = unit_there(index, u);
      from[u / 4] = weights + unit + (unit / group_units * (rows - 1) + first) * group_units;
    }
    const int count = rows - first < warp_size ? rows - first : warp_size;
    for (int done = 0; done < count; done += 4) {
      float x[2][4], w[units / 4][4][4];
      DTAG_UNROLLED
      for (int s = 0; s < 2; ++s) load_four(inputs + s * MapsLayout::most_inputs + done, x[s]);
      DTAG_UNROLLED
      for (int k = 0; k < 4; ++k)
        if (done + k < count) {
          DTAG_UNROLLED
          for (int u = 0; u < units / 4; ++u) load_four(from[u] + k * group_units, w[u][k]);
        }
      DTAG_UNROLLED
      for (int u = 0; u < units / 4; ++u) from[u] += 4 * group_units;
      DTAG_UNROLLED
      for (int k = 0; k < 4; ++k)
        if (done + k < count) {
          DTAG_UNROLLED
          for (int s = 0; s < 2; ++s)
            DTAG_UNROLLED
            for (int u = 0; u < units; ++u) lane.z[s][u] = fmaf(x[s][k], w[u / 4][k][u % 4], lane.z[s][u]);
        }
    }
  }

  // z_1 as coefficients of c, and which units pass.
  DTAG_BOTH void put(const Lane& lane, int index, int area, int s, float scale) const {
    DTAG_UNROLLED
    for (int u = 0; u < units; u += 4) {
      const int unit = unit_of(index, u);
      if (unit >= width()) break;
      // Pairs t and t + 4 of eight are neighbours, as a lane takes them.
      const int turn = unit / depth, pair = unit % depth / 2;
      const int at = pair % 4 * 2 + pair / 4;
      const int values = area + at_.values + s * at_.values_of_slot + turn * MapsLayout::values_of_turn;
      const int masks = area + at_.masks + s * at_.masks_of_slot + turn * MapsLayout::masks_of_turn;
      uint32_t* const value = in_shared<uint32_t>(values) + at + at / 2 * 2;
      uint32_t* const mask = in_shared<uint32_t>(masks) + at;
      DTAG_UNROLLED
      for (int next = 0; next < 2; ++next) {  // pairs, of which the second lies a quad on
        const float* const z = lane.z[s] + u + 2 * next;
        split(z[0] * scale, z[1] * scale, value[4 * next], value[4 * next + 2]);
        mask[2 * next] = (is_active(z[0]) ? 0xffffu : 0) | (is_active(z[1]) ? 0xffff0000u : 0);
      }
    }
  }

  template <typename F>
  DTAG_BOTH void change_sums(F f) {
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int) DTAG_INLINED {
        DTAG_UNROLLED
        for (int i = 0; i < columns / 2; ++i) lane.d[i] = f(lane.d[i]);
      });
    });
  }

  // By units that pass or, inverted, by those that do not.
  DTAG_BOTH void multiply(uint32_t inverted) {
    constexpr int together = slab / depth, part = columns * slab * 2;
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int index) DTAG_INLINED {
        DTAG_UNROLLED
        for (int s = 0; s < 2; ++s) lane.next[s] = lane.values[s];
        lane.next_masks = area(warp.index) + at_.masks + index % 4 * 8;
        fetch(lane);
      });
    });
    for (int at = 0; at < width() / slab; ++at) {
      DTAG_UNROLLED
      for (int turn = 0; turn < together; ++turn) {
        const int side = turn % 2;
        // The next turn's before the products, which keep shared memory busy; after the last for nothing.
        group_.warps([&](auto& warp) DTAG_INLINED {
          warp.each([&](Lane& lane, int) DTAG_INLINED {
            let_pass(lane, inverted, lane.a[side]);
            fetch(lane);
          });
        });
        const int large = at_.weights + at * 2 * part + turn * depth * 2, small = large + part;
        const auto large_parts = [side](Lane& lane) -> auto& { return lane.a[side][0]; };
        const auto small_parts = [side](Lane& lane) -> auto& { return lane.a[side][1]; };
        group_.fence();
        group_.multiply(small_parts, large);
        group_.multiply(large_parts, small);
        group_.multiply(large_parts, large);
        group_.commit();
        group_.template wait<1>();  // for the coefficients of the other side to have been read
      }
    }
    group_.template wait<0>();
  }

  // Send for the coefficients of the next turn, and for which of them count.
  DTAG_BOTH void fetch(Lane& lane) const {
    DTAG_UNROLLED
    for (int s = 0; s < 2; ++s) {
      // Both slots' are mostly the same.
      if (s == 0 || lane.values[1] != lane.values[0])
        load_four(in_shared<int>(lane.next[s]), lane.fetched[s]);
      else
        for (int i = 0; i < 4; ++i) lane.fetched[s][i] = lane.fetched[0][i];
      load_two(in_shared<int>(lane.next_masks + s * at_.masks_of_slot), lane.fetched_masks[s]);
      lane.next[s] += lane.step[s];
    }
    lane.next_masks += MapsLayout::masks_of_turn;
  }
  DTAG_BOTH static void let_pass(const Lane& lane, uint32_t inverted, uint32_t (&a)[2][4]) {
    DTAG_UNROLLED
    for (int s = 0; s < 2; ++s)
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        const uint32_t passes = static_cast<uint32_t>(lane.fetched_masks[s][half]) ^ inverted;
        a[0][2 * half + s] = static_cast<uint32_t>(lane.fetched[s][half]) & passes;
        a[1][2 * half + s] = static_cast<uint32_t>(lane.fetched[s][2 + half]) & passes;
      }
  }

  Group group_;
  const Job& job_;
  const PackedCritic& critic_;
  const MapsLayout& at_;
  int head_, first_unit_;  // of all heads' units
};

}  // namespace dtag::cuda
