// The rows of W_2^T that make or change a region's map (region.h): they are listed in shared memory, with
// the coefficients by which they are added to c and M, and the list is added up.
#pragma once

#include "job.h"
#include "memory.h"
#include "region.h"
#include "step.h"
#include "team.h"

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

  // Of a row whose map a cluster builds: send for what a block needs to build its part; with the first
  // row for the slice of W_2^T that all of them need.
  DTAG_BOTH void send_for_part(int part, bool first) {
    if (!this->deep() || job_.dense) return;
    team_.each([&](Unit& thread, const Seat& seat) {
      thread.bias = critic_.second_bias[seat.head * width() + Share(*this, part, seat).unit];
    });
    if (!first || at_.slice_groups == 0) return;
    const int group = width() * group_bytes;
    team_.send(slice_of(0, 0), static_cast<const char*>(critic_.sliced) + first_group(part) * group,
               at_.slice_groups * group, critic_.heads, width() / warp_size * group);
  }
  // Before the block may end, whether it builds or not.
  DTAG_BOTH void await_slice() {
    if (at_.slice_groups > 0 && !job_.dense) team_.await_sent();
  }

  // Add the listed rows to a thread's share of the map.
  DTAG_BOTH void add_part(int part) {
    team_.sync();
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const Share share(*this, part, seat);
      DTAG_UNROLLED
      for (int i = 0; i < Share::columns; ++i)
        thread.share[i][0] = i == 0 && share.column == 0 ? thread.bias : 0.0f;
      if (at_.slice_groups > 0) {
        const char* const rows = slice_of(seat.head, share.unit / warp_size - first_group(part));
        add_near_rows(seat.head, share.column, thread.count,
                      reinterpret_cast<const Weight*>(rows) + share.unit % warp_size, thread.share);
      } else {
        add_rows<8, 4>(seat.head, share.column, thread.count, weights_of(seat.head) + share.unit,
                       thread.share);
      }
    });
  }

  // The share, to the block that walks: give(where in its shared memory, number).
  template <typename Give>
  DTAG_BOTH void give_part(int part, Give give) {
    team_.each([&](const Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const Share share(*this, part, seat);
      const int group = seat.head * (width() / group_units) + share.unit / group_units;
      const int to = at_.map + (group * (1 + actions) + share.column) * group_units +
                     share.unit % group_units;
      DTAG_UNROLLED
      for (int i = 0; i < Share::columns; ++i)
        if (share.column + i <= actions && (share.column == 0 || share.column + i >= Share::columns))
          give(to + i * group_units, thread.share[i][0]);
    });
  }

  DTAG_BOTH int map_bytes() const {
    return critic_.heads * width() * (1 + actions) * static_cast<int>(sizeof(float));
  }

  // What a kernel before this one left of the row: the observation's share of z_1, and the map.
  DTAG_BOTH void take_given(int64_t next) {
    wait_for_kernel_before();
    const float* const shares = job_.maps + row_ * floats_of_maps(critic_);
    team_.each([&](Unit& thread, const Seat& here) {
      const float* const map = shares + critic_.heads * width() +
                               this->template by_groups<units_together>(anew(here), 1 + actions);
      DTAG_UNROLLED
      for (int i = 0; i <= actions; ++i)
        load_given(map + i * units_together, thread.map[i], far_units * (1 + actions));
    });
    team_.sync();  // all have done with the row before
    constexpr int line = 32;  // floats that come together
    team_.each([&](Unit&, const Seat& here) {
      const Seat seat = anew(here);
      float share[units];
      load_given(shares + seat.first, share, far_units);
      const int64_t floats = floats_of_maps(critic_);
      for (int64_t i = line * (seat.head * at_.threads_per_head + seat.thread); i < floats;
           i += line * critic_.heads * at_.threads_per_head)
        bring_near(job_.maps + next * floats + i);
      store_shared(own(at_.share, seat), share, far_units);
    });
  }

  // From there to the threads of the units.
  DTAG_BOTH void take_map() {
    team_.each([&](Unit& thread, const Seat& here) {
      const float* const from = team_.shared() + at_.map + this->by_groups(anew(here), 1 + actions);
      DTAG_UNROLLED
      for (int i = 0; i <= actions; ++i)
        load_shared(from + i * group_units, thread.map[i], far_units * (1 + actions));
    });
  }

 protected:
  using Base::at_;
  using Base::critic_;
  using Base::in_head;
  using Base::job_;
  using Base::keeps_first;
  using Base::load_first;
  using Base::own;
  using Base::row_;
  using Base::signs_of;
  using Base::team_;
  using Base::width;

  static constexpr int most = SharedLayout::listed_together;

  DTAG_BOTH int* list_of(int e) const {
    return reinterpret_cast<int*>(team_.shared()) + at_.listed +
           e * (at_.capacity + 2 * most);
  }
  DTAG_BOTH float* terms_of(int e) const {
    return team_.shared() + at_.terms + e * at_.capacity * stride;
  }
  DTAG_BOTH int row_bytes() const { return width() * static_cast<int>(sizeof(Weight)); }
  // W_2^T of a head.
  DTAG_BOTH const Weight* weights_of(int e) const {
    return static_cast<const Weight*>(critic_.transposed) + e * width() * width();
  }
  // The slice has the units by warps of threads.
  static constexpr int group_bytes = warp_size * static_cast<int>(sizeof(Weight));
  DTAG_BOTH char* slice_of(int e, int group) const {
    return reinterpret_cast<char*>(team_.shared() + at_.slice) +
           (e * at_.slice_groups + group) * width() * group_bytes;
  }
  // Of those that a part of the map is of.
  DTAG_BOTH int first_group(int part) const { return part * at_.warps_per_head / 2; }
  // From a row of W_2^T to the next where a part of the map is built.
  DTAG_BOTH int part_bytes() const { return at_.slice_groups > 0 ? group_bytes : row_bytes(); }
  // What a thread builds of a map that a cluster builds: half of the columns of a unit of its head. A
  // warp's threads have the same columns, whose coefficients they read together.
  struct Share {
    static constexpr int columns = Unit::columns_of_share;
    int unit, column;  // the first one

    DTAG_BOTH Share(const Listed& listed, int part, const Seat& seat) {
      const int index = part * listed.at_.threads_per_head + seat.thread;
      const int warp = index / warp_size;
      column = warp % 2 * (stride - columns);
      unit = warp / 2 * warp_size + index % warp_size;
    }
  };

  // Of so many marked units of a head, how many are in a list from the one of index `first` on.
  DTAG_BOTH int count_listed(int marked, int first) const {
    const int left = marked - first;
    return left < 0 ? 0 : left < at_.capacity ? left : at_.capacity;
  }

  // List the marked units, from the one of index `first` on: their rows and coefficients. Behind them
  // the list is filled up, to listed_together, with a row that counts for nothing. The signs are the
  // region's from then on.
  DTAG_BOTH void list(bool from_nothing, int first, int row_bytes) {
    const float slope = critic_.negative_slope;
    const float on = anew(from_nothing ? 1.0f : 1.0f - slope);
    const float off = anew(from_nothing ? slope : slope - 1.0f);
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const int e = seat.head, t = seat.thread;
      thread.signs = signs_of(thread);
      const int count = count_listed(thread.count, first);
      if (t < 2 * most) {
        list_of(e)[count + t] = 0;
        if (count + t < (count + most - 1) / most * most)
          for (int i = 0; i < stride; ++i) terms_of(e)[(count + t) * stride + i] = 0.0f;
      }
      if (thread.marked % (1 << units) == 0) return;
      int next = (thread.marked >> units) - first;  // in the list
      const int row = in_head(seat) * row_bytes;
      // Few units and terms at a time, of which there are registers.
      constexpr int together = Team::crowded && units > 4 ? 4 : units;
      DTAG_UNROLLED
      for (int from = 0; from < units; from += together) {
        bool listed[together];
        float* to[together];
        float change[together];
        DTAG_UNROLLED
        for (int u = 0; u < together; ++u) {
          const bool marked = (thread.marked >> (from + u) & 1) != 0;
          listed[u] = marked && next >= 0 && next < at_.capacity;
          if constexpr (Team::roomy)
            store_if(listed[u], list_of(e) + next, row + to_unit(from + u) * row_bytes);
          else if (listed[u])
            list_of(e)[next] = row + to_unit(from + u) * row_bytes;
          to[u] = terms_of(e) + next * stride;
          change[u] = is_active(thread.kept[from + u]) ? on : off;
          if (marked) ++next;
        }
#ifdef __CUDA_ARCH__
#pragma unroll(Team::crowded ? 1 : stride / 4)
#endif
        for (int part = 0; part < stride; part += 4) {
          float by[4][together] = {};
          DTAG_UNROLLED
          for (int k = part; k < part + 4 && k <= actions; ++k)
            if (k == 0)
              this->get_base(thread, seat, by[0], from);
            else if (keeps_first)
              for (int u = 0; u < units; ++u) by[k - part][u] = thread.first[k - 1][u];
            else
              load_first(seat, k - 1, by[k - part], from);
          DTAG_UNROLLED
          for (int u = 0; u < together; ++u) {
            float term[4];
            for (int i = 0; i < 4; ++i) term[i] = change[u] * by[i][u];
            if constexpr (Team::roomy)
              store_if(listed[u], to[u] + part, term);
            else if (listed[u])
              store_shared(to[u] + part, term);
          }
        }
      }
    });
  }

  // The signs are the region's from then on.
  DTAG_BOTH void take_signs() {
    team_.each([](Unit& thread, const Seat&) { thread.signs = signs_of(thread); });
  }

  // c and M before any row is added.
  DTAG_BOTH void begin_map() {
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      load(critic_.second_bias + seat.first, thread.map[0]);
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a)
        DTAG_UNROLLED
        for (int u = 0; u < units; ++u) thread.map[1 + a][u] = 0.0f;
    });
  }

  // Bring c and M to the signs of the region, by what is marked.
  DTAG_BOTH void bring_map(bool from_nothing) {
    if (from_nothing) begin_map();
    for (int first = 0; first < width(); first += at_.capacity) {
      if (first > 0) team_.sync();
      list(from_nothing, first, row_bytes());
      team_.sync();
      add_listed(first);
    }
  }

  // Add the listed rows to the maps of the threads' units.
  DTAG_BOTH void add_listed(int first) {
    constexpr int ahead = Team::roomy ? 3 : units == units_of_lean(actions) && !Team::crowded ? 2 : 1;
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      add_rows<4, ahead>(seat.head, 0, count_listed(thread.count, first),
                         weights_of(seat.head) + in_head(seat), thread.map);
    });
  }

  template <int lot>
  DTAG_BOTH static void load_rows(const int* from, int (&row)[lot]) {
    static_assert(SharedLayout::listed_together % lot == 0 && lot % 4 == 0, "lists hold whole lots");
    DTAG_UNROLLED
    for (int i = 0; i < lot; i += 4) load_four(from + i, row + i);
  }

  // Add the listed rows of a head to columns of the map, from `column` on, of units: `rows` is where the
  // first of them is in the first row.
  // They take hundreds of cycles to come: `ahead` lots of `lot` are under way, and as soon as a lot was
  // added the one so many on is sent for.
  template <int lot, int ahead, int columns, int count>
  DTAG_BOTH void add_rows(int e, int column, int listed_rows, const Weight* rows,
                          float (&map)[columns][count]) const {
    constexpr int read = columns == 1 + actions ? stride : columns;  // terms, with what fills them up
    const int* const listed = list_of(e);
    const float* const terms = terms_of(e) + column;
    const int lots = (listed_rows + lot - 1) / lot;
    Weights<Weight, count> weights[ahead][lot];
    DTAG_UNROLLED
    for (int side = 0; side < ahead; ++side) {
      DTAG_UNROLLED
      for (int i = 0; i < lot; ++i)
        weights[side][i] = {};  // else what was there before takes registers until then
      if (side < lots) {
        int row[lot];
        load_rows<lot>(listed + side * lot, row);
        DTAG_UNROLLED
        for (int i = 0; i < lot; ++i) weights[side][i].stream(beyond(rows, row[i]));
      }
    }
    for (int at = 0; at < lots; at += ahead) {
      DTAG_UNROLLED
      for (int side = 0; side < ahead; ++side) {
        if (at + side >= lots) break;
        const int next = at + side + ahead;
        int row[lot];
        if (next < lots) load_rows<lot>(listed + next * lot, row);
        DTAG_UNROLLED
        for (int i = 0; i < lot; ++i) {
          float term[read];
          load_shared(terms + ((at + side) * lot + i) * stride, term);
          add_row(term, weights[side][i], map);
        }
        if (next < lots) {
          DTAG_UNROLLED
          for (int i = 0; i < lot; ++i) weights[side][i].stream(beyond(rows, row[i]));
        }
      }
    }
  }

  // The same of rows in shared memory, without a branch: what comes next is read while a row is added.
  template <int columns, int count>
  DTAG_BOTH void add_near_rows(int e, int column, int listed_rows, const Weight* rows,
                               float (&map)[columns][count]) const {
    constexpr int lot = most / 2;
    const int* listed = list_of(e);
    const float* terms = terms_of(e) + column;
    int row[lot];
    Weights<Weight, count> weights[2][lot];
    float term[2][lot][columns];
    load_rows<lot>(listed, row);
    DTAG_UNROLLED
    for (int i = 0; i < lot; ++i) {
      weights[0][i].read(beyond(rows, row[i]));
      load_shared(terms + i * stride, term[0][i]);
    }
    load_rows<lot>(listed + lot, row);
    for (int at = 0; at < listed_rows; at += most) {
      DTAG_UNROLLED
      for (int side = 0; side < 2; ++side) {
        DTAG_UNROLLED
        for (int i = 0; i < lot; ++i) {
          weights[1 - side][i].read(beyond(rows, row[i]));
          load_shared(terms + ((1 + side) * lot + i) * stride, term[1 - side][i]);
          add_row(term[side][i], weights[side][i], map);
        }
        load_rows<lot>(listed + (2 + side) * lot, row);
      }
      listed += most;
      terms += most * stride;
    }
  }
};

}  // namespace dtag::cuda
