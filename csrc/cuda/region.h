// The linear region around a base action (docs/linear-region-walk.md), by a team of threads: each
// holds `units` hidden units of one head.
//
//   z_1 = p + W_1a d,  d = action - base     p and the observation's share of it in shared memory
//   z_2 = c + M d                            c and M in the registers of the units' thread
//   q   = w . act(z_2) + b, grad = M^T (w * act'(z_2))
//
// c and M are built from the active rows of W_2^T, each read once and added to 1 + A sums, and are
// corrected by the row of each unit that changes its sign. With one hidden layer z_1 is all there is.
#pragma once

#include "job.h"
#include "memory.h"
#include "step.h"
#include "team.h"
#include "tiles.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class Region {
 public:
  static constexpr int units = Team::units;
  using Unit = Thread<actions, units>;
  using Weight = typename Precision::Weight;

  DTAG_BOTH Region(const Team& team, const Job& job)
      : team_(team), job_(job), critic_(job.critic), at_(job.shared) {}

  DTAG_BOTH void take_map(const float* handover) {  // [E, P / 64, 1 + actions, 64]
    team_.each([&](Unit& thread, int e, int t) { take_map_of(thread, handover, e, t); });
  }

 protected:
  DTAG_BOTH void take_map_of(Unit& thread, const float* map, int e, int t) const {
    const float* const from = map + by_groups<1 + actions>(e, t);
    for (int u = 0; u < units; ++u) thread.c[u] = from[unit_at(u)];
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a)
      for (int u = 0; u < units; ++u) thread.m[a][u] = from[(1 + a) * group_units + unit_at(u)];
  }

  DTAG_BOTH int width() const { return critic_.layout.width; }
  // The first of a thread's units in an array [E, P].
  DTAG_BOTH int unit(int e, int t) const { return e * width() + Place<units>(t).unit(); }
  // The same in the first of `rows` rows of an array [E, P / 64, rows, 64]: a group's rows lie
  // together, so that they are as far apart in every critic.
  template <int rows>
  DTAG_BOTH int by_groups(int e, int t) const {
    const Place<units> place(t);
    return (e * (width() / group_units) + place.group) * rows * group_units + place.within;
  }
  // The first of a thread's units in one of the arrays [E, P] of shared memory.
  DTAG_BOTH float* own(int array, int e, int t) const {
    return team_.shared() + array + unit(e, t);
  }
  DTAG_BOTH int words_at(int side) const { return at_.words + side * word_count(); }
  DTAG_BOTH const uint32_t* words(int side) const {
    return reinterpret_cast<const uint32_t*>(team_.shared() + words_at(side));
  }
  DTAG_BOTH int word_count() const { return critic_.heads * at_.words_per_head; }
  DTAG_BOTH int partial() const {
    return at_.partial + parity_ * (critic_.heads * at_.warps_per_head * (1 + actions));
  }

  DTAG_BOTH void observe() {
    team_.sync_block();  // all have done with the row before
    const float* const raw = job_.observations + row_ * critic_.observation_dim;
    team_.share(critic_.observation_dim, [&](int i) {
      (team_.shared() + at_.observation)[i] = (raw[i] - critic_.mean[i]) / critic_.std[i];
    });
    team_.sync_block();
    team_.each([&](Unit&, int e, int t) {
      float share[units];
      load<units>(critic_.first_bias + unit(e, t), share);
      const float* const standardised = team_.shared() + at_.observation;
      const float* weights = critic_.observation_weights +
                             e * critic_.observation_dim * width() + Place<units>(t).unit();
      for (int i = 0; i < critic_.observation_dim; ++i, weights += width()) {
        float w[units];
        load<units>(weights, w);
        DTAG_UNROLLED
        for (int u = 0; u < units; ++u) share[u] = fmaf(standardised[i], w[u], share[u]);
      }
      for (int u = 0; u < units; ++u) own(at_.share, e, t)[unit_at(u)] = share[u];
    });
  }

  // A field of all dimensions' lanes, to every thread.
  template <typename Field>
  DTAG_BOTH void gather(float (&into)[actions], Field field) const {
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) into[a] = team_.pick(a, field);
  }

  // start + W_1a x for the thread's units
  DTAG_BOTH void first_layer(const float* start, const float (&x)[actions], int e, int t,
                             float (&z)[units]) const {
    for (int u = 0; u < units; ++u) z[u] = start[unit_at(u)];
    const float* const weights = critic_.action_weights + by_groups<actions>(e, t);
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) {
      float w[units];
      load<units>(weights + a * group_units, w);
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) z[u] = fmaf(x[a], w[u], z[u]);
    }
  }

  DTAG_BOTH void stand_at_base() {
    team_.lanes([&](Lane& lane, int) {
      lane.base = lane.action;
      lane.move = 0.0f;
    });
  }

  // Make the action the base: z_1 there, for all to see, and its signs. With one hidden layer that
  // is the map.
  DTAG_BOTH void look_from_base() {
    team_.sync();  // all have done with the signs of the region before
    stand_at_base();
    float base[actions];
    gather(base, [](const Lane& lane) { return lane.base; });
    team_.each([&](Unit& thread, int e, int t) {
      first_layer(own(at_.share, e, t), base, e, t, thread.kept);
      for (int u = 0; u < units; ++u) own(at_.base, e, t)[unit_at(u)] = thread.kept[u];
      if (critic_.hidden_layers == 1) {
        for (int u = 0; u < units; ++u) thread.c[u] = thread.kept[u];
        const float* const weights = critic_.action_weights + by_groups<actions>(e, t);
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a)
          load<units>(weights + a * group_units, thread.m[a]);
      }
    });
    team_.vote(words_at(side_), at_.words_per_head, [&](const Unit& thread, int, int, int u) {
      return is_active(thread.kept[u]);
    });
    team_.sync();
  }

  // The units by which the map changes: all that pass, where it is built from nothing, or those whose
  // sign has changed.
  DTAG_BOTH uint32_t changing(bool from_nothing, int index) const {
    return from_nothing ? passing(index) : words(side_)[index] ^ words(1 - side_)[index];
  }
  // The units of word `index` of all heads' words whose slope is not 0.
  DTAG_BOTH uint32_t passing(int index) const {
    return critic_.negative_slope == 0.0f ? words(side_)[index] : 0xffffffffu;
  }

  // Bring the maps to the signs of the region.
  DTAG_BOTH void bring_maps(bool from_nothing) {
    if constexpr (Precision::tiles)
      if (from_nothing) return build_by_tiles();
    add_rows(from_nothing);
  }

  // Build the maps by tensor cores.
  DTAG_BOTH void build_by_tiles() {
    const int at_passing = at_.passing;
    const auto word_of = [&](int e, int k) { return e * at_.words_per_head + k / 64 * 2 + k % 2; };
    team_.each([&](Unit&, int e, int t) {  // the units that pass, in the order of words and bits
      for (int u = 0; u < units; ++u) {
        const int k = Place<units>(t).unit() + unit_at(u);
        const int bit = k % group_units / 2;
        const uint32_t word = passing(word_of(e, k));
        if ((word >> bit & 1) == 0) continue;
        int before = bits_of(word & ((1u << bit) - 1));
        for (int i = e * at_.words_per_head; i < word_of(e, k); ++i) before += bits_of(passing(i));
        reinterpret_cast<int*>(team_.shared())[at_passing + e * width() + before] = k;
      }
    });
    team_.sync_block();
    const auto unit_passing = [&](int e, int n) {
      return reinterpret_cast<const int*>(team_.shared())[at_passing + e * width() + n];
    };
    multiply_by_tiles<1 + actions>(
        team_,
        [&](int e) {
          int count = 0;
          for (int i = 0; i < at_.words_per_head; ++i)
            count += bits_of(passing(e * at_.words_per_head + i));
          return count;
        },
        [&](int e, int n) {
          return static_cast<const float*>(critic_.transposed) +
                 (e * width() + unit_passing(e, n)) * width();
        },
        [&](int e, int n, int column) {
          const int k = unit_passing(e, n);
          const bool active = words(side_)[word_of(e, k)] >> k % group_units / 2 & 1;
          const float x =
              column == 0
                  ? team_.shared()[at_.base + e * width() + k]
                  : critic_.action_rows[(e * width() + k) * row_stride(actions) + column - 1];
          return (active ? 1.0f : critic_.negative_slope) * x;
        },
        [&](int e, int unit, int column, float sum) {
          const int group = e * (width() / group_units) + unit / group_units;
          const int to = (group * (1 + actions) + column) * group_units + unit % group_units;
          team_.shared()[at_.map + to] = sum;
        });
    team_.sync_block();
    team_.each([&](Unit& thread, int e, int t) {
      float bias[units];
      load<units>(critic_.second_bias + unit(e, t), bias);
      take_map_of(thread, team_.shared() + at_.map, e, t);
      for (int u = 0; u < units; ++u) thread.c[u] += bias[u];
    });
  }

  // For each unit that changes, its row of W_2^T. Several rows are under way at once, since each takes
  // hundreds of cycles to come.
  DTAG_BOTH void add_rows(bool from_nothing) {
    constexpr int ahead = Team::rows_ahead;
    const float on = from_nothing ? 1.0f : 1.0f - critic_.negative_slope;
    const float off = from_nothing ? critic_.negative_slope : critic_.negative_slope - 1.0f;
    team_.each([&](Unit& thread, int e, int t) {
      const Weight* const rows = static_cast<const Weight*>(critic_.transposed) +
                                 e * width() * width() + Place<units>(t).unit();
      const float* const action_rows =
          critic_.action_rows + e * width() * row_stride(actions);
      const float* const at_base = team_.shared() + at_.base + e * width();
      if (from_nothing) {
        load<units>(critic_.second_bias + unit(e, t), thread.c);
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a)
          for (int u = 0; u < units; ++u) thread.m[a][u] = 0.0f;
      }
      int word = 0;
      uint32_t left = 0, signs = 0;
      int found;
      do {
        found = 0;
        int k[ahead];
        uint32_t positive = 0;
        float weights[ahead][units];
        DTAG_UNROLLED
        for (int i = 0; i < ahead; ++i) {
          while (left == 0 && word < at_.words_per_head) {
            const int index = e * at_.words_per_head + word++;
            left = changing(from_nothing, index);
            signs = words(side_)[index];
          }
          if (left != 0) {
            const int bit = lowest_bit(left);
            left &= left - 1;
            k[i] = unit_of(word - 1, bit);
            positive |= (signs >> bit & 1) << i;
            stream<units>(rows + k[i] * width(), weights[i]);
            ++found;
          }
        }
        DTAG_UNROLLED
        for (int i = 0; i < ahead; ++i) {
          if (i < found) {
            float row[actions];
            load_row<actions>(action_rows + k[i] * row_stride(actions), row);
            add_unit<actions, units>(positive >> i & 1 ? on : off, at_base[k[i]], row, weights[i],
                                     thread.c, thread.m);
          }
        }
      } while (found == ahead);
    });
  }

  // The signs at base + move, to the other words: how many of all heads differ.
  DTAG_BOTH int look() {
    float d[actions];
    gather(d, [](const Lane& lane) { return lane.move; });
    team_.each([&](Unit& thread, int e, int t) {
      first_layer(own(at_.base, e, t), d, e, t, thread.kept);
    });
    team_.vote(words_at(1 - side_), at_.words_per_head, [&](const Unit& thread, int, int, int u) {
      return is_active(thread.kept[u]);
    });
    team_.sync();
    return team_.count_bits(word_count(), [&](int index) { return changing(false, index); });
  }

  // Each warp's sums of q and its gradient, at base + move.
  DTAG_BOTH void evaluate_in_region() {
    float d[actions];
    gather(d, [](const Lane& lane) { return lane.move; });
    team_.reduce(partial(), at_.warps_per_head,
                 [&](const Unit& thread, int e, int t, float (&sum)[1 + actions]) {
                   float output[units];
                   load<units>(critic_.output + unit(e, t), output);
                   evaluate_units<actions, units>(thread.c, thread.m, d, output,
                                                  critic_.negative_slope, sum);
                 });
  }

  Team team_;
  const Job& job_;
  const PackedCritic& critic_;
  const SharedLayout& at_;
  int64_t row_ = 0;
  int side_ = 0;    // which words hold the signs of the region
  int parity_ = 0;  // which partial sums are the last
};

}  // namespace dtag::cuda
