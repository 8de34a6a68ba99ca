// The linear region around a base action (docs/linear-region-walk.md), by a team of threads: each
// holds `units` hidden units of one head.
//
//   z_1 = p + W_1a d,  d = action - base     p and the observation's share of it in shared memory
//   z_2 = c + M d                            c and M in the registers of the units' thread
//   q   = w . act(z_2) + b, grad = M^T (w * act'(z_2))
//
// c and M are sums of rows of W_2^T, each by 1 + A coefficients: of the rows of all active units, at
// first, and of those of the units that change their sign, later. Both are listed in shared memory,
// and the list is added up. With one hidden layer z_1 is all there is.
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
      : team_(team),
        job_(job),
        critic_(job.critic),
        at_(job.shared),
        deep_(critic_.hidden_layers == 2),
        sums_(at_.sums),
        both_sums_(anew(2 * at_.sums + critic_.heads * at_.warps_per_head * stride)) {}

  // Add those of the listed rows that are in part `part` of W_2^T, which lies in shared memory:
  // staged [E, staged_rows, P].
  DTAG_BOTH void add_staged(const Weight* staged, int part) {
    const int first = part * staged_rows * row_bytes(), end = first + staged_rows * row_bytes();
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const int* const listed = list_of(seat.head);
      const float* const terms = terms_of(seat.head);
      const Weight* const rows = staged + seat.head * staged_rows * width() + in_head(seat);
      int n = thread.next, row = listed[n];
      while (row < end) {
        Weights<Weight, units> weights;
        weights.take(beyond(rows, row - first));
        float term[stride];
        load_terms(terms + n * stride, term);
        row = listed[++n];
        add_row<actions, units>(term, weights, thread.c, thread.m);
      }
      thread.next = n;
    });
  }

 protected:
  static constexpr int stride = term_stride(actions);
  static constexpr int no_more = 0x7fffffff;  // beyond every row
  // Whether every thread has registers for whole actions. Otherwise a warp's lanes have them, a
  // dimension each.
  static constexpr bool whole = Team::roomy && actions <= 8 && !Precision::tiles;
  static constexpr bool keeps_first = whole && actions <= 6;  // W_1a

  DTAG_BOTH int width() const { return critic_.layout.width; }
  // The first of a thread's units within its head.
  DTAG_BOTH int in_head(const Seat& seat) const { return seat.first - seat.head * width(); }
  // The same in the first of `rows` rows of an array [E, P / 64, rows, 64]: a group's rows lie
  // together, so that they are as far apart in every critic.
  template <int rows>
  DTAG_BOTH static int by_groups(const Seat& seat) {
    return seat.first + seat.first / group_units * group_units * (rows - 1);
  }
  // The first of a thread's units in one of the arrays [E, P] of shared memory.
  DTAG_BOTH float* own(int array, const Seat& seat) const {
    return team_.shared() + array + seat.first;
  }
  DTAG_BOTH int* list_of(int e) const {
    return reinterpret_cast<int*>(team_.shared()) + at_.listed +
           e * (at_.capacity + SharedLayout::listed_together);
  }
  DTAG_BOTH float* terms_of(int e) const {
    return team_.shared() + at_.terms + e * at_.capacity * stride;
  }
  DTAG_BOTH int row_bytes() const { return width() * static_cast<int>(sizeof(Weight)); }
  // By an offset of a list. Not negative, which takes fewer instructions to add.
  template <typename Number>
  DTAG_BOTH static const Number* beyond(const Number* rows, int bytes) {
    return reinterpret_cast<const Number*>(reinterpret_cast<const char*>(rows) +
                                           static_cast<uint32_t>(bytes));
  }
  DTAG_BOTH static void load_terms(const float* from, float (&term)[stride]) {
    DTAG_UNROLLED
    for (int i = 0; i < stride; i += 4) load_four(from + i, term + i);
  }
  DTAG_BOTH void observe() {
    team_.sync_block();  // all have done with the row before
    const float* const raw = job_.observations + row_ * critic_.observation_dim;
    team_.share(critic_.observation_dim, [&](int i) {
      (team_.shared() + at_.observation)[i] = (raw[i] - critic_.mean[i]) / critic_.std[i];
    });
    team_.sync_block();
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      constexpr int ahead = 12;  // rows of weights under way
      const int dimensions = critic_.observation_dim;
      float share[units];
      load<units>(critic_.first_bias + seat.first, share);
      load<units>(critic_.output + seat.first, thread.output);
      if constexpr (keeps_first)
        for (int a = 0; a < actions; ++a) load_first(seat, a, thread.first[a]);
      const float* const standardised = team_.shared() + at_.observation;
      const float* const weights =
          critic_.observation_weights + seat.head * dimensions * width() + in_head(seat);
      for (int first = 0; first < dimensions; first += ahead) {
        float w[ahead][units];
        DTAG_UNROLLED
        for (int i = 0; i < ahead; ++i) {
          const int row = first + i < dimensions ? first + i : dimensions - 1;
          load<units>(weights + row * width(), w[i]);
        }
        DTAG_UNROLLED
        for (int i = 0; i < ahead; ++i)
          if (first + i < dimensions) {
            DTAG_UNROLLED
            for (int u = 0; u < units; ++u)
              share[u] = fmaf(standardised[first + i], w[i][u], share[u]);
          }
      }
      for (int u = 0; u < units; ++u) own(at_.share, seat)[unit_at(u)] = share[u];
    });
  }

  // A field of all dimensions' lanes, to every thread.
  template <typename Field>
  DTAG_BOTH void gather(float (&into)[actions], Field field) const {
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) into[a] = team_.pick(a, field);
  }

  // start + W_1a x for the thread's units
  DTAG_BOTH void first_layer(const float (&start)[units], const float (&x)[actions], const Seat& seat,
                             const Unit& thread, float (&z)[units]) const {
    DTAG_UNROLLED
    for (int u = 0; u < units; ++u) z[u] = start[u];
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) {
      float w[units];
      if constexpr (keeps_first)
        for (int u = 0; u < units; ++u) w[u] = thread.first[a][u];
      else
        load_first(seat, a, w);
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) z[u] = fmaf(x[a], w[u], z[u]);
    }
  }
  // Of W_1a, the thread's units of a dimension.
  DTAG_BOTH void load_first(const Seat& seat, int a, float (&into)[units]) const {
    load<units>(critic_.action_weights + by_groups<actions>(seat) + a * group_units, into);
  }

  // Make the action the base: z_1 there, and its signs. With one hidden layer that is the map.
  DTAG_BOTH void look_from_base() {
    float base[actions];
    gather_action(base);
    team_.lanes([](Lane& lane, int) { lane.base = lane.action; });
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) {
      move_[a] = 0.0f;
      if constexpr (whole) base_[a] = base[a];
    }
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      float share[units];
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) share[u] = own(at_.share, seat)[unit_at(u)];
      first_layer(share, base, seat, thread, thread.kept);
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) thread.base[u] = thread.kept[u];
      if (!deep_) {
        for (int u = 0; u < units; ++u) thread.c[u] = thread.kept[u];
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a) load_first(seat, a, thread.m[a]);
      }
    });
  }

  // To every thread.
  DTAG_BOTH void gather_action(float (&into)[actions]) const {
    if constexpr (whole)
      for (int a = 0; a < actions; ++a) into[a] = action_[a];
    else
      gather(into, [](const Lane& lane) { return lane.action; });
  }
  DTAG_BOTH void gather_move() {
    if constexpr (whole)
      for (int a = 0; a < actions; ++a) move_[a] = action_[a] - base_[a];
    else
      gather(move_, [](const Lane& lane) { return lane.action - lane.base; });
  }

  // As if the region reached to base + move: each warp's sums of q and its gradient. Whether it does
  // not, since a sign of z_1 is another one there; all that was written is seen by all after.
  DTAG_BOTH bool probe() {
    gather_move();
    team_.each([&](Unit& thread, const Seat& seat) {
      first_layer(thread.base, move_, seat, thread, thread.kept);
    });
    sum_up();
    return team_.any(at_.changed, [&](Unit& thread, const Seat&) {
      return signs_of(thread) != thread.signs;
    });
  }

  DTAG_BOTH static uint32_t signs_of(const Unit& thread) {
    uint32_t signs = 0;
    DTAG_UNROLLED
    for (int u = 0; u < units; ++u) signs |= (is_active(thread.kept[u]) ? 1u : 0u) << u;
    return signs;
  }

  // Mark the units by which the map changes: those whose sign changes or, where it is made from
  // nothing, those whose slope is not 0. How many there are in all heads.
  DTAG_BOTH int mark(bool from_nothing) {
    const bool leaky = critic_.negative_slope != 0.0f;
    team_.vote(at_.words, at_.words_per_head, [&](const Unit& thread, int u) {
      const bool active = is_active(thread.kept[u]);
      return from_nothing ? active || leaky : active != ((thread.signs >> u & 1) != 0);
    });
    team_.sync();
    return team_.count_bits(critic_.heads * at_.words_per_head, [&](int i) { return word(0, i); });
  }
  DTAG_BOTH uint32_t word(int e, int i) const {
    return reinterpret_cast<const uint32_t*>(team_.shared())[at_.words + e * at_.words_per_head + i];
  }
  // Of the marked units of a head, from the one of index `first` on, how many there are in a list.
  DTAG_BOTH int count_listed(int e, int first) const {
    const int left =
        team_.count_bits(at_.words_per_head, [&](int i) { return word(e, i); }) - first;
    return left < 0 ? 0 : left < at_.capacity ? left : at_.capacity;
  }

  // List the marked units, from the one of index `first` on: their rows and coefficients. Behind them
  // the list is filled up, to listed_together, with row `filler`, which counts for nothing. The signs
  // are the region's from then on.
  DTAG_BOTH void list(bool from_nothing, int first, int filler) {
    const float slope = critic_.negative_slope;
    const float on = from_nothing ? 1.0f : 1.0f - slope, off = from_nothing ? slope : slope - 1.0f;
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      constexpr int together = SharedLayout::listed_together;
      const int e = seat.head, t = seat.thread;
      const int warp = t / warp_size, lane = t % warp_size;
      uint32_t words[units], mine = 0;
      for (int u = 0; u < units; ++u) {
        words[u] = word(e, warp * units + u);
        mine |= words[u] >> lane & 1;
      }
      thread.signs = signs_of(thread);
      const int count = count_listed(e, first);
      if (t < together) {
        list_of(e)[count + t] = filler;
        if (count + t < (count + together - 1) / together * together)
          for (int i = 0; i < stride; ++i) terms_of(e)[(count + t) * stride + i] = 0.0f;
      }
      if (mine == 0) return;
      int before = -first;
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
      for (int other = 0; other < warp; ++other)
        for (int u = 0; u < units; ++u) before += bits_of(word(e, other * units + u));
      DTAG_UNROLLED
      for (int pair = 0; pair < units; pair += 2) {
        int n[2];  // in the list, or -1
        float change[2];
        DTAG_UNROLLED
        for (int i = 0; i < 2; ++i) {
          const int u = pair + i;
          n[i] = before + count_before<units>(words, lane, u);
          if ((words[u] >> lane & 1) == 0 || n[i] >= at_.capacity) n[i] = -1;
          change[i] = is_active(thread.kept[u]) ? on : off;
          if (n[i] >= 0) list_of(e)[n[i]] = (in_head(seat) + unit_at(u)) * row_bytes();
        }
        DTAG_UNROLLED
        for (int part = 0; part < stride; part += 4) {  // few at a time, of which there are registers
          float term[2][4] = {};
          DTAG_UNROLLED
          for (int k = part; k < part + 4 && k <= actions; ++k) {
            float by[2];
            if (k == 0 || keeps_first)
              for (int i = 0; i < 2; ++i)
                by[i] = k == 0 ? thread.base[pair + i] : thread.first[k == 0 ? 0 : k - 1][pair + i];
            else
              load<2>(critic_.action_weights + by_groups<actions>(seat) + (k - 1) * group_units +
                          unit_at(pair), by);
            for (int i = 0; i < 2; ++i) term[i][k - part] = change[i] * by[i];
          }
          for (int i = 0; i < 2; ++i)
            if (n[i] >= 0) store_four(terms_of(e) + n[i] * stride + part, term[i]);
        }
      }
    });
  }

  // c and M before any row is added.
  DTAG_BOTH void begin_map() {
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      load<units>(critic_.second_bias + seat.first, thread.c);
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a)
        DTAG_UNROLLED
        for (int u = 0; u < units; ++u) thread.m[a][u] = 0.0f;
      thread.next = 0;
    });
  }

  // Bring c and M to the signs of the region, by what is marked.
  DTAG_BOTH void bring_map(bool from_nothing) {
    if (from_nothing && !Precision::tiles) begin_map();
    for (int first = 0; first < width(); first += at_.capacity) {
      if (first > 0) team_.sync_block();
      list(from_nothing, first, 0);
      team_.sync_block();
      if constexpr (Precision::tiles)
        if (from_nothing) {
          build_by_tiles();
          continue;
        }
      add_listed(first);
    }
  }

  // Build the map by tensor cores. They take all that is marked at once: where there are kernels for
  // them the list has room for it.
  DTAG_BOTH void build_by_tiles() {
    multiply_by_tiles<1 + actions>(
        team_, [&](int e) { return count_listed(e, 0); },
        [&](int e, int n) {
          return beyond(static_cast<const float*>(critic_.transposed) + e * width() * width(),
                        list_of(e)[n]);
        },
        [&](int e, int n, int column) { return terms_of(e)[n * stride + column]; },
        [&](int e, int unit, int column, float sum) {
          const int group = e * (width() / group_units) + unit / group_units;
          const int to = (group * (1 + actions) + column) * group_units + unit % group_units;
          team_.shared()[at_.map + to] = sum;
        });
    team_.sync_block();
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      float bias[units];
      load<units>(critic_.second_bias + seat.first, bias);
      const float* const from = team_.shared() + at_.map + by_groups<1 + actions>(seat);
      for (int u = 0; u < units; ++u) thread.c[u] = from[unit_at(u)] + bias[u];
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a)
        for (int u = 0; u < units; ++u) thread.m[a][u] = from[(1 + a) * group_units + unit_at(u)];
    });
  }

  // Add the listed rows. A row takes hundreds of cycles to come: `ahead` lots of them are under way,
  // and as soon as a row was added the one so many lots on is sent for.
  DTAG_BOTH void add_listed(int first) {
    constexpr int lot = SharedLayout::listed_together;
    constexpr int ahead = Team::roomy && !Precision::tiles ? 3 : 1;
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const int* const listed = list_of(seat.head);
      const float* const terms = terms_of(seat.head);
      const Weight* const rows = static_cast<const Weight*>(critic_.transposed) +
                                 seat.head * width() * width() + in_head(seat);
      const int lots = (count_listed(seat.head, first) + lot - 1) / lot;
      Weights<Weight, units> weights[ahead][lot];
      DTAG_UNROLLED
      for (int side = 0; side < ahead; ++side) {
        int row[lot];
        if (side < lots) load_four(listed + side * lot, row);
        DTAG_UNROLLED
        for (int i = 0; i < lot; ++i) {
          weights[side][i] = {};  // else what was there before takes registers until then
          if (side < lots) weights[side][i].stream(beyond(rows, row[i]));
        }
      }
      for (int at = 0; at < lots; at += ahead) {
        DTAG_UNROLLED
        for (int side = 0; side < ahead; ++side) {
          if (at + side >= lots) break;
          const int next = at + side + ahead;
          int row[lot];
          if (next < lots) load_four(listed + next * lot, row);
          DTAG_UNROLLED
          for (int i = 0; i < lot; ++i) {
            float term[stride];
            load_terms(terms + ((at + side) * lot + i) * stride, term);
            add_row<actions, units>(term, weights[side][i], thread.c, thread.m);
          }
          if (next < lots) {
            DTAG_UNROLLED
            for (int i = 0; i < lot; ++i) weights[side][i].stream(beyond(rows, row[i]));
          }
        }
      }
    });
  }

  // Each warp's sums of q and its gradient at base + move, by the map.
  DTAG_BOTH void evaluate_in_region() {
    if constexpr (!whole) gather_move();
    sum_up();
  }
  DTAG_BOTH void sum_up() {
    team_.reduce(sums_,
                 [&](const Unit& thread, const Seat&, float (&sum)[1 + actions]) {
                   evaluate_units<actions, units>(thread.c, thread.m, move_, thread.output,
                                                  critic_.negative_slope, sum);
                 });
  }

  Team team_;
  const Job& job_;
  const PackedCritic& critic_;
  const SharedLayout& at_;
  int64_t row_ = 0;
  bool deep_;            // two hidden layers
  int sums_;             // where in shared memory the last sums of warps are
  int both_sums_;        // there, and where those before are, together
  float move_[actions];  // action - base
  float action_[whole ? actions : 1], base_[whole ? actions : 1];
};

}  // namespace dtag::cuda
