// The first maps of a whole batch by tensor cores, before the walk, in the precision tf32x3.
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
#include <cstring>

#include "job.h"
#include "memory.h"
#include "step.h"
#include "wgmma.cuh"

namespace dtag::cuda {

constexpr int slots_of_tile = 8;
constexpr int warps_of_group = 4;
constexpr int depth = 16;          // coefficients that are multiplied at a time
constexpr int slab = 64;           // of them, whose weights lie together; in bytes 128
constexpr int most_groups = 3;     // warpgroups of a block

// Slots of a row.
DTAG_BOTH constexpr int slots_of_row(int actions) { return (1 + actions + 7) / 8; }
// Units of a block, whose weights take up to 128 KB.
DTAG_BOTH constexpr int columns_of_maps(int width) { return width <= 256 && width % 128 == 0 ? 128 : 64; }

// Of a job whose slots an int counts.
DTAG_BOTH int tiles_of(const Job& job) {
  const int slots = static_cast<int>(job.rows) * slots_of_row(job.critic.layout.actions);
  return (slots + slots_of_tile - 1) / slots_of_tile;
}

// The shared memory of a block, by offsets in bytes.
struct MapsLayout {
  int slots;    // of a row
  int weights;  // [P / 64, 2, columns, 64] half floats, swizzled: W_2, its large parts and its small ones
  int terms;    // [P / 16, slots, 8, 4, 4] pairs of half floats: W_1a; PackedCritic
  int warps;    // what every warp has
  int values;   // there [2, P / 16, 4, 4] pairs of half floats: z_1 of its two slots, as in terms
  int masks;    // there [2, P / 16, 4, 2] pairs of 16 bits: which units pass
  int inputs;   // there [2, 32] floats: of the observation and the action
  int bytes_of_warp;
  int bytes;    // of all

  MapsLayout(const PackedCritic& critic, int groups) {
    const int width = critic.layout.width;
    slots = slots_of_row(critic.layout.actions);
    weights = 0;
    terms = weights + 4 * width * columns_of_maps(width);
    warps = terms + width / depth * slots * 8 * 64;
    values = 0;
    masks = values + 2 * width / depth * 64;
    inputs = masks + 2 * width / depth * 32;
    bytes_of_warp = inputs + 2 * warp_size * static_cast<int>(sizeof(float));
    bytes = warps + groups * warps_of_group * bytes_of_warp;
  }
};

// ---- half floats ----

DTAG_BOTH uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
DTAG_BOTH float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

DTAG_BOTH uint16_t to_half(float x) {
#ifdef __CUDA_ARCH__
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
#else
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // beyond 65504
  if (size < 0x38800000)  // below 2^-14
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyintf(float_of_bits(size) * 0x1p24f)));
  return static_cast<uint16_t>(sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10)));
#endif
}
DTAG_BOTH float from_half(uint16_t half) {
#ifdef __CUDA_ARCH__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
#else
  const uint32_t size = half & 0x7fff;
  const float x = size < 0x400    ? static_cast<float>(size) * 0x1p-24f
                  : size < 0x7c00 ? float_of_bits((size << 13) + (112u << 23))
                                  : float_of_bits(0x7f800000 | (size & 0x3ff) << 13);
  return half & 0x8000 ? -x : x;
#endif
}

// A pair of numbers, the first in the lower half of each word.
DTAG_BOTH void split(const float (&x)[2], uint32_t& big, uint32_t& small) {
  big = small = 0;
  DTAG_UNROLLED
  for (int i = 0; i < 2; ++i) {
    const uint16_t half = to_half(x[i]);
    big |= static_cast<uint32_t>(half) << 16 * i;
    small |= static_cast<uint32_t>(to_half(x[i] - from_half(half))) << 16 * i;
  }
}

// A power of two by which numbers as large as this become some 2^14, but by 2^100 at most.
DTAG_BOTH float scale_for(float largest) {
  const int exponent = static_cast<int>(bits_of_float(largest) >> 23 & 0xff);
  if (exponent == 0 || exponent == 0xff) return 1.0f;
  const int wanted = 2 * 127 + 14 - exponent;
  return float_of_bits(static_cast<uint32_t>(wanted < 27 ? 27 : wanted > 227 ? 227 : wanted) << 23);
}

// ---- the kernel ----

// What a thread holds.
template <int columns>
struct MapLane {
  // For whose z_1 there is room.
  static constexpr int units = (columns == 128 ? 256 : most_map_width) / warp_size;

  float z[2][units];  // of the rows of the warp's slots
  // Of each slot, the lane's column: where its coefficients are, how far from turn to turn, and what sums
  // are to be multiplied by.
  int values[2], step[2];
  float unscale[2];
  uint32_t a[2][2][4];   // coefficients of two turns, their large and their small parts
  float d[columns / 2];  // sums
};

// Maps by a warpgroup, one of a block's, whose shared memory has W_2 for `columns` units of a head.
//   shared(), index()        the block's shared memory; which of its groups it is
//   warps(f)                 f(warp) by each of the four; warp.index; warp.each(g): g(lane, index) by its lanes;
//                            warp.sync(): what was written before is seen by the warp's lanes after;
//                            warp.largest(g): of g(lane), to all
//   multiply(a, byte)        to every lane's d the product of a(lane) and the weights from `byte` on, as wgmma()
//   fence(), commit(), wait<pending>()
template <int columns, typename Group>
class MapBuilder {
 public:
  using Lane = MapLane<columns>;

  // kind: which `columns` units, of all heads'.
  DTAG_BOTH MapBuilder(const Group& group, const Job& job, const MapsLayout& at, int kind)
      : group_(group),
        job_(job),
        critic_(job.critic),
        at_(at),
        head_(kind * columns / width()),
        first_unit_(kind * columns) {}

  // The coefficients of a tile.
  DTAG_BOTH void prepare(int tile) {
    tile_ = tile;
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int index) DTAG_INLINED { begin(lane, index, warp.index); });
      observe(warp, critic_.observation_weights, observation_rows(critic_), [&](int s, int i) DTAG_INLINED {
        if (i >= critic_.observation_dim) return 0.0f;
        const float raw = job_.observations[row_there(warp.index, s) * critic_.observation_dim + i];
        return (raw - critic_.mean[i]) / critic_.std[i];
      });
      observe(warp, critic_.action_weights, critic_.layout.actions, [&](int s, int i) DTAG_INLINED {
        if (i >= critic_.action_dim) return 0.0f;
        const float raw = job_.actions[row_there(warp.index, s) * job_.starts * critic_.action_dim + i];
        return into_box(job_.settings.low[i], job_.settings.high[i], raw);
      });
      DTAG_UNROLLED
      for (int s = 0; s < 2; ++s) {
        const float scale = scale_for(warp.largest([&](const Lane& lane) DTAG_INLINED {
          float largest = 0.0f;
          DTAG_UNROLLED
          for (int u = 0; u < Lane::units; ++u) largest = fmaxf(largest, fabsf(lane.z[s][u]));
          return largest;
        }));
        warp.each([&](Lane& lane, int index) DTAG_INLINED { put(lane, index, warp.index, s, scale); });
      }
      warp.sync();
    });
  }

  // Their product with the weights.
  DTAG_BOTH void multiply() {
    const float slope = critic_.negative_slope;
    scale_sums([](float) DTAG_INLINED { return 0.0f; });
    if (slope != 0.0f) {
      multiply(~0u);
      scale_sums([slope](float sum) DTAG_INLINED { return sum * slope; });
    }
    multiply(0u);
  }

  // It, to the maps of the tile's rows.
  DTAG_BOTH void give() {
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](const Lane& lane, int index) DTAG_INLINED {
        DTAG_UNROLLED
        for (int s = 0; s < 2; ++s) give(lane, index, warp.index, s);
      });
    });
  }

 private:
  DTAG_BOTH int width() const { return critic_.layout.width; }
  DTAG_BOTH int slot_of(int warp, int s) const { return tile_ * slots_of_tile + 2 * warp + s; }
  DTAG_BOTH int row_of(int warp, int s) const { return slot_of(warp, s) / at_.slots; }
  // Of slots beyond the last row's: that one.
  DTAG_BOTH int64_t row_there(int warp, int s) const {
    const int rows = static_cast<int>(job_.rows), row = row_of(warp, s);
    return row < rows ? row : rows - 1;
  }
  // A lane's, of the slot's row.
  DTAG_BOTH int column_of(int index, int warp, int s) const {
    return slot_of(warp, s) % at_.slots * 8 + index / 4;
  }
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

  DTAG_BOTH void begin(Lane& lane, int index, int warp) const {
    DTAG_UNROLLED
    for (int s = 0; s < 2; ++s) {
      const int column = column_of(index, warp, s), part = index % 4 * 16;
      lane.values[s] = column == 0 ? area(warp) + at_.values + s * (width() / depth) * 64 + part
                                   : at_.terms + column * 64 + part;
      lane.step[s] = column == 0 ? 64 : at_.slots * 8 * 64;
      lane.unscale[s] = critic_.unscale[head_ * at_.slots * 8 + column];
    }
    DTAG_UNROLLED
    for (int u = 0; u < Lane::units; u += 4) {
      float bias[4] = {};
      const int unit = unit_of(index, u);
      if (unit < width()) load(critic_.first_bias + head_ * width() + unit, bias);
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) lane.z[0][u + i] = lane.z[1][u + i] = bias[i];
    }
  }

  // Add inputs to z_1, in the order of the rows of their weights [E, P / 64, rows, 64], as the walk does.
  template <typename Warp, typename Input>
  DTAG_BOTH void observe(Warp& warp, const float* weights, int rows, Input input) const {
    float* const inputs = in_shared<float>(area(warp.index) + at_.inputs);
    for (int first = 0; first < rows; first += warp_size) {
      warp.sync();  // all have done with those before
      warp.each([&](Lane&, int index) DTAG_INLINED {
        for (int s = 0; s < 2; ++s) inputs[s * warp_size + index] = input(s, first + index);
      });
      warp.sync();
      const int count = rows - first < warp_size ? rows - first : warp_size;
      warp.each([&](Lane& lane, int index) DTAG_INLINED {
        DTAG_UNROLLED
        for (int u = 0; u < Lane::units; u += 4) {
          if (unit_of(index, u) >= width()) break;
          const int unit = head_ * width() + unit_of(index, u);
          const float* const from =
              weights + unit + (unit / group_units * (rows - 1) + first) * group_units;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
          for (int k = 0; k < count; ++k) {
            float w[4];
            load(from + k * group_units, w);
            DTAG_UNROLLED
            for (int s = 0; s < 2; ++s) {
              const float x = inputs[s * warp_size + k];
              DTAG_UNROLLED
              for (int i = 0; i < 4; ++i) lane.z[s][u + i] = fmaf(x, w[i], lane.z[s][u + i]);
            }
          }
        }
      });
    }
  }

  // z_1 as coefficients of c, and which units pass.
  DTAG_BOTH void put(Lane& lane, int index, int warp, int s, float scale) const {
    const int turns = width() / depth;
    uint32_t* const values = in_shared<uint32_t>(area(warp) + at_.values + s * turns * 64);
    uint32_t* const masks = in_shared<uint32_t>(area(warp) + at_.masks + s * turns * 32);
    if (column_of(index, warp, s) == 0) lane.unscale[s] *= 1.0f / scale;
    DTAG_UNROLLED
    for (int u = 0; u < Lane::units; u += 2) {
      const int unit = unit_of(index, u);
      if (unit >= width()) break;
      // Pairs t and t + 4 of eight are neighbours, as a lane takes them.
      const int pair = unit % depth / 2, at = (unit / depth * 4 + pair % 4) * 2 + pair / 4;
      uint32_t* const value = values + at + at / 2 * 2;
      split({lane.z[s][u] * scale, lane.z[s][u + 1] * scale}, value[0], value[2]);
      masks[at] = (is_active(lane.z[s][u]) ? 0xffffu : 0) | (is_active(lane.z[s][u + 1]) ? 0xffff0000u : 0);
    }
  }

  template <typename F>
  DTAG_BOTH void scale_sums(F f) {
    group_.warps([&](auto& warp) DTAG_INLINED {
      warp.each([&](Lane& lane, int) DTAG_INLINED {
        DTAG_UNROLLED
        for (int i = 0; i < columns / 2; ++i) lane.d[i] = f(lane.d[i]);
      });
    });
  }

  // By units that pass or, inverted, by those that do not.
  DTAG_BOTH void multiply(uint32_t inverted) {
    const int turns = width() / depth;
    for (int first = 0; first < turns; first += 2) {
      DTAG_UNROLLED
      for (int side = 0; side < 2; ++side) {
        const int turn = first + side;
        group_.warps([&](auto& warp) DTAG_INLINED {
          warp.each([&](Lane& lane, int index) DTAG_INLINED {
            fetch(lane, index, warp.index, turn, inverted, lane.a[side]);
          });
        });
        const int together = slab / depth;
        const int large = at_.weights + turn / together * 2 * columns * 128 + turn % together * 32;
        const int small = large + columns * 128;
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

  // A turn's coefficients, where their units pass.
  DTAG_BOTH void fetch(const Lane& lane, int index, int warp, int turn, uint32_t inverted,
                       uint32_t (&a)[2][4]) const {
    DTAG_UNROLLED
    for (int s = 0; s < 2; ++s) {
      int value[4], mask[2];
      load_four(in_shared<int>(lane.values[s] + turn * lane.step[s]), value);
      load_two(in_shared<int>(area(warp) + at_.masks + (s * (width() / depth) + turn) * 32 + index % 4 * 8), mask);
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        const uint32_t passes = static_cast<uint32_t>(mask[half]) ^ inverted;
        a[0][2 * half + s] = static_cast<uint32_t>(value[half]) & passes;
        a[1][2 * half + s] = static_cast<uint32_t>(value[2 + half]) & passes;
      }
    }
  }

  DTAG_BOTH void give(const Lane& lane, int index, int warp, int s) const {
    const int columns_of_map = 1 + critic_.layout.actions;
    const int column = column_of(index, warp, s);
    const int64_t row = row_of(warp, s);
    if (row >= job_.rows || column >= columns_of_map) return;
    const int first = first_unit_ + index % 4 * 2;
    float* const map = job_.maps + row * floats_of_maps(critic_) + column * group_units;
    DTAG_UNROLLED
    for (int i = 0; i < columns / 8; ++i) {
      const int unit = first + 8 * i;
      float bias[2] = {}, sum[2];
      if (column == 0) load(critic_.second_bias + unit, bias);
      DTAG_UNROLLED
      for (int k = 0; k < 2; ++k) sum[k] = fmaf(lane.d[4 * i + 2 * s + k], lane.unscale[s], bias[k]);
      store_shared(map + unit / group_units * columns_of_map * group_units + unit % group_units, sum);
    }
  }

  Group group_;
  const Job& job_;
  const PackedCritic& critic_;
  const MapsLayout& at_;
  int head_, first_unit_;  // of all heads' units
  int tile_ = 0;
};

// What a block does: it has W_2 for some units of a head, and takes tile after tile.
//   kind()             which units it has
//   index(), count()   of the blocks of a kind
//   threads(f)         f(thread, count) by each of them
//   copy(byte, from)   send 16 bytes to shared memory
//   wait()             for what was sent to be seen by all, tensor cores too
//   groups(f)          f(builder, index) by each of its warpgroups, of which there are groups_of()
template <int columns, typename Block>
DTAG_BOTH void build_maps(Block& block, const Job& job, const MapsLayout& at) {
  const PackedCritic& critic = job.critic;
  const int width = critic.layout.width;
  const int first_unit = block.kind() * columns;
  const auto* const halves = static_cast<const uint16_t*>(critic.halves);
  block.threads([&](int thread, int count) DTAG_INLINED {
    const int pieces = width / 8;  // of a unit, 16 bytes each
    for (int i = thread; i < 2 * columns * pieces; i += count) {
      const int piece = i % pieces, unit = i / pieces % columns, part = i / pieces / columns;
      const int to = piece / 8 * 2 * columns * 128 + part * columns * 128;
      const int from = (first_unit / width * 2 + part) * width + first_unit % width + unit;
      block.copy(at.weights + to + static_cast<int>(swizzled(static_cast<uint32_t>(unit * 128 + piece % 8 * 16))),
                 halves + from * width + piece * 8);
    }
    const int terms = (at.warps - at.terms) / 16;
    const auto* const from = static_cast<const uint16_t*>(critic.terms) + first_unit / width * terms * 8;
    for (int i = thread; i < terms; i += count) block.copy(at.terms + 16 * i, from + 8 * i);
  });
  const int tiles = tiles_of(job);
  const int stride = block.count() * block.groups_of();
  for (int at_first = block.index(), first = at_first; at_first == first || at_first < tiles; at_first += stride) {
    // A tile a group, of blocks side by side: few are spread over all blocks.
    const auto tile_of = [&](int group) DTAG_INLINED { return at_first + group * block.count(); };
    block.groups([&](auto& builder, int group) DTAG_INLINED {
      if (tile_of(group) < tiles) builder.prepare(tile_of(group));
    });
    if (at_first == first) block.wait();
    block.groups([&](auto& builder, int group) DTAG_INLINED {
      if (tile_of(group) >= tiles) return;
      builder.multiply();
      builder.give();
    });
  }
}

}  // namespace dtag::cuda
