// The rows of W_2^T that make or change a region's map (region.h): they are listed in shared memory, with
// the coefficients by which they are added to c and M, and the list is added up.
#pragma once

#include "job.h"
#include "memory.h"
#include "region.h"
#include "step.h"
#include "team.h"
#include "tiles.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class Listed : public Region<actions, Precision, Team> {
 public:
  using Base = Region<actions, Precision, Team>;
  using Base::Base;
  using typename Base::Unit;
  using typename Base::Weight;
  static constexpr int units = Base::units;
  static constexpr int stride = Base::stride;

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
      for (int at = n * stride; row < end; at += stride) {
        Weights<Weight, units> weights;
        weights.take(beyond(rows, row - first));
        float term[stride];
        load_terms(terms + at, term);
        row = listed[++n];
        add_row<actions, units>(term, weights, thread.c, thread.m);
      }
      thread.next = n;
    });
  }

  // Of a row whose map a cluster builds: add the listed rows to one unit a thread.
  DTAG_BOTH void add_part(int part) {
    constexpr int ahead = 8;
    team_.each([&](Unit& thread, const Seat& seat) {
      thread.c[0] = critic_.second_bias[seat.head * width() + unit_of_part(part, seat)];
    });
    team_.sync();
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      float c[1] = {thread.c[0]}, m[actions][1] = {};
      add_rows<ahead>(seat.head, unit_of_part(part, seat), 0, c, m);
      thread.c[0] = c[0];
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) thread.m[a][0] = m[a][0];
    });
  }

  // The unit's share of the map, to the shared memory of the block that walks.
  DTAG_BOTH void give_part(int part, float* shared) {
    team_.each([&](const Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const int unit = seat.head * width() + unit_of_part(part, seat);
      float* const to = shared + at_.map + unit / group_units * (1 + actions) * group_units +
                        unit % group_units;
      to[0] = thread.c[0];
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) to[(1 + a) * group_units] = thread.m[a][0];
    });
  }

  // From there to the threads of the units.
  DTAG_BOTH void take_map() {
    team_.each([&](Unit& thread, const Seat& here) {
      const float* const from =
          team_.shared() + at_.map + this->by_groups(anew(here), 1 + actions);
      for (int u = 0; u < units; ++u) thread.c[u] = from[u];
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a)
        for (int u = 0; u < units; ++u) thread.m[a][u] = from[(1 + a) * group_units + u];
    });
  }

 protected:
  using Base::at_;
  using Base::critic_;
  using Base::in_head;
  using Base::keeps_first;
  using Base::load_first;
  using Base::signs_of;
  using Base::team_;
  using Base::width;

  static constexpr int no_more = 0x7fffffff;  // beyond every row
  static constexpr int lot = SharedLayout::listed_together;

  DTAG_BOTH int* list_of(int e) const {
    return reinterpret_cast<int*>(team_.shared()) + at_.listed +
           e * (at_.capacity + 2 * lot);
  }
  DTAG_BOTH float* terms_of(int e) const {
    return team_.shared() + at_.terms + e * (at_.capacity + 1) * stride;
  }
  DTAG_BOTH int row_bytes() const { return width() * static_cast<int>(sizeof(Weight)); }
  DTAG_BOTH static void load_terms(const float* from, float (&term)[stride]) {
    DTAG_UNROLLED
    for (int i = 0; i < stride; i += 4) load_four(from + i, term + i);
  }
  // Of the marked units of a head, from the one of index `first` on, how many there are in a list.
  DTAG_BOTH int count_listed(int e, int first) const {
    const int left = this->count_marked(e, at_.warps_per_head) - first;
    return left < 0 ? 0 : left < at_.capacity ? left : at_.capacity;
  }

  // List the marked units, from the one of index `first` on: their rows and coefficients. Behind them
  // the list is filled up, to listed_together, with row `filler`, which counts for nothing. The signs
  // are the region's from then on.
  DTAG_BOTH void list(bool from_nothing, int first, int filler) {
    const float slope = critic_.negative_slope;
    const float on = anew(from_nothing ? 1.0f : 1.0f - slope);
    const float off = anew(from_nothing ? slope : slope - 1.0f);
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const int e = seat.head, t = seat.thread;
      thread.signs = signs_of(thread);
      const int count = count_listed(e, first);
      if (t < lot) {
        list_of(e)[count + t] = filler;
        if (count + t < (count + lot - 1) / lot * lot)
          for (int i = 0; i < stride; ++i) terms_of(e)[(count + t) * stride + i] = 0.0f;
      }
      if (thread.marked % (1 << units) == 0) return;
      int next = (thread.marked >> units) - first;  // in the list
      // What is not listed goes where nobody reads: to branch for it would take longer.
      float* to[units];
      float change[units];
      int row = in_head(seat) * row_bytes();
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) {
        const bool marked = (thread.marked >> u & 1) != 0;
        const bool listed = marked && next >= 0 && next < at_.capacity;
        list_of(e)[listed ? next : at_.capacity + lot] = row;
        to[u] = terms_of(e) + (listed ? next : at_.capacity) * stride;
        change[u] = is_active(thread.kept[u]) ? on : off;
        if (marked) ++next;
        row += row_bytes();
      }
      DTAG_UNROLLED
      for (int part = 0; part < stride; part += 4) {  // few at a time, of which there are registers
        float by[4][units] = {};
        DTAG_UNROLLED
        for (int k = part; k < part + 4 && k <= actions; ++k)
          if (k == 0)
            for (int u = 0; u < units; ++u) by[0][u] = this->base_of(thread, seat, u);
          else if (keeps_first)
            for (int u = 0; u < units; ++u) by[k - part][u] = thread.first[k - 1][u];
          else
            load_first(seat, k - 1, by[k - part]);
        DTAG_UNROLLED
        for (int u = 0; u < units; ++u) {
          float term[4];
          for (int i = 0; i < 4; ++i) term[i] = change[u] * by[i][u];
          store_four(to[u] + part, term);
        }
      }
    });
  }

  // c and M before any row is added.
  DTAG_BOTH void begin_map() {
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      load(critic_.second_bias + seat.first, thread.c);
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
      if (first > 0) team_.sync();
      list(from_nothing, first, 0);
      team_.sync();
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
    team_.sync();
    take_map();
    team_.each([&](Unit& thread, const Seat& here) {
      float bias[units];
      load(critic_.second_bias + anew(here).first, bias);
      for (int u = 0; u < units; ++u) thread.c[u] += bias[u];
    });
  }

  // Add the listed rows to the maps of the threads' units.
  DTAG_BOTH void add_listed(int first) {
    constexpr int ahead = Team::roomy ? 3 : 1;
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      add_rows<ahead>(seat.head, in_head(seat), first, thread.c, thread.m);
    });
  }

  // Add the listed rows of a head to the units from `unit` on. They take hundreds of cycles to come:
  // `ahead` lots of them are under way, and as soon as a lot was added the one so many on is sent for.
  template <int ahead, int count>
  DTAG_BOTH void add_rows(int e, int unit, int first, float (&c)[count],
                          float (&m)[actions][count]) const {
    const int* const listed = list_of(e);
    const float* const terms = terms_of(e);
    const Weight* const rows =
        static_cast<const Weight*>(critic_.transposed) + e * width() * width() + unit;
    const int lots = (count_listed(e, first) + lot - 1) / lot;
    Weights<Weight, count> weights[ahead][lot];
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
          add_row<actions, count>(term, weights[side][i], c, m);
        }
        if (next < lots) {
          DTAG_UNROLLED
          for (int i = 0; i < lot; ++i) weights[side][i].stream(beyond(rows, row[i]));
        }
      }
    }
  }

  // Of its head, the unit that a thread makes the map of in part `part` of a cluster.
  DTAG_BOTH int unit_of_part(int part, const Seat& seat) const {
    return part * critic_.layout.threads_per_head + seat.thread;
  }
};

}  // namespace dtag::cuda
