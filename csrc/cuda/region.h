// The linear region around a base action (docs/linear-region-walk.md), by a team of threads: each
// holds `units` hidden units of one head.
//
//   z_1 = p + W_1a d,  d = action - base     p and the observation's share of it in shared memory
//   z_2 = c + M d                            c and M in the registers of the units' thread
//   q   = w . act(z_2) + b, grad = M^T (w * act'(z_2))
//
// c and M are sums of rows of W_2^T, each by 1 + A coefficients: of the rows of all active units, at
// first, and of those of the units that change their sign, later (listed.h). With one hidden layer z_1
// is all there is.
#pragma once

#include "job.h"
#include "memory.h"
#include "step.h"
#include "team.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class Region {
 public:
  static constexpr int units = Team::units;
  using Unit = typename Team::Unit;
  using Weight = typename Precision::Weight;

  DTAG_BOTH Region(const Team& team, const Job& job)
      : team_(team),
        job_(job),
        critic_(job.critic),
        at_(job.shared),
        deep_(critic_.hidden_layers == 2),
        sums_(at_.sums),
        both_sums_(anew(2 * at_.sums + critic_.heads * at_.warps_per_head * stride)) {}

 protected:
  static constexpr int stride = term_stride(actions);
  // Whether every thread has registers for whole actions. Otherwise a warp's lanes have them, a
  // dimension each.
  static constexpr bool whole = Team::roomy && actions <= 8;
  static constexpr bool keeps_first = whole && actions <= 6;  // W_1a

  DTAG_BOTH int width() const { return critic_.layout.width; }
  // Whether there are two hidden layers: known of what has maps.
  DTAG_BOTH bool deep() const { return Team::queued || deep_; }
  // The first of a thread's units within its head.
  DTAG_BOTH int in_head(const Seat& seat) const { return seat.first - seat.head * width(); }
  // The first of a thread's units in the first of `rows` rows of an array [E, P / 64, rows, 64]: a
  // group's rows lie together, so that they are as far apart in every critic.
  template <int group = group_units>
  DTAG_BOTH static int by_groups(const Seat& seat, int rows) {
    return seat.first + seat.first / group * group * (rows - 1);
  }
  // The first of a thread's units in one of the arrays [E, P] of shared memory.
  DTAG_BOTH float* own(int array, const Seat& seat) const {
    return team_.shared() + array + seat.first;
  }

  // Send for a row: a dimension of the observation a thread, as far as that goes.
  DTAG_BOTH void send_for_observation() {
    team_.each([&](Unit& thread, const Seat& seat) {
      const int i = seat.head * at_.threads_per_head + seat.thread;
      if (i >= critic_.observation_dim) return;
      thread.raw = job_.observations[row_ * critic_.observation_dim + i];
      thread.mean = critic_.mean[i];
      thread.std = critic_.std[i];
    });
  }
  // Send for what does not depend on the observation; where there are registers for it, before that
  // is there.
  DTAG_BOTH void send_for_weights(bool of_observation) {
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      if (of_observation) {
        send_for_rows(0, thread, seat);
        load(critic_.first_bias + seat.first, thread.kept);
      }
      load(critic_.output + seat.first, thread.output);
      if constexpr (keeps_first)
        for (int a = 0; a < actions; ++a) load_first(seat, a, thread.first[a]);
    });
  }
  // Of W_1s^T, those from `first` on.
  DTAG_BOTH void send_for_rows(int first, Unit& thread, const Seat& seat) const {
    const int rows = observation_rows(critic_);
    const float* const from =
        critic_.observation_weights + by_groups(seat, rows) + first * group_units;
    DTAG_UNROLLED
    for (int i = 0; i < Unit::rows_sent_for; i += 4)
      if (first + i < rows) {
        DTAG_UNROLLED
        for (int k = i; k < i + 4; ++k)
          load(from + k * group_units, thread.sent_for[k], far_units * rows);
      }
  }

  // The observation's share of z_1.
  DTAG_BOTH void observe(bool first) {
    if (!first) team_.sync();  // all have done with the row before
    team_.each([&](Unit& thread, const Seat& seat) {
      const float* const raw = job_.observations + row_ * critic_.observation_dim;
      float* const standardised = team_.shared() + at_.observation;
      const int threads = critic_.heads * at_.threads_per_head;
      int i = seat.head * at_.threads_per_head + seat.thread;
      if (i >= observation_rows(critic_)) return;
      const bool real = i < critic_.observation_dim;
      standardised[i] = real ? (thread.raw - thread.mean) / thread.std : 0.0f;
      while ((i += threads) < observation_rows(critic_)) {
        const bool real = i < critic_.observation_dim;
        standardised[i] = real ? (raw[i] - critic_.mean[i]) / critic_.std[i] : 0.0f;
      }
    });
    team_.sync();
    if constexpr (!Team::roomy) send_for_weights(true);
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      const float* const standardised = team_.shared() + at_.observation;
      const int rows = observation_rows(critic_);
      for (int first = 0; first < rows; first += Unit::rows_sent_for) {
        DTAG_UNROLLED
        for (int i = 0; i < Unit::rows_sent_for; i += 4) {
          if (first + i >= rows) break;
          float x[4];
          load_four(standardised + first + i, x);
          DTAG_UNROLLED
          for (int k = 0; k < 4; ++k) {
            DTAG_UNROLLED
            for (int u = 0; u < units; ++u)
              thread.kept[u] = fmaf(x[k], thread.sent_for[i + k][u], thread.kept[u]);
          }
        }
        if (first + Unit::rows_sent_for < rows)
          send_for_rows(first + Unit::rows_sent_for, thread, seat);
      }
      store_shared(own(at_.share, seat), thread.kept, far_units);
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
  // z_1 at the base of the region, of the thread's units, or of four of them.
  template <int count>
  DTAG_BOTH void get_base(const Unit& thread, const Seat& seat, float (&into)[count], int from = 0) const {
    if constexpr (Team::roomy)
      for (int u = 0; u < count; ++u) into[u] = thread.base[from + u];
    else
      load_shared(own(at_.base, seat) + to_unit(from), into, far_units);
  }
  // w, of the thread's units.
  DTAG_BOTH void get_output(const Unit& thread, const Seat& seat, float (&into)[units]) const {
    if constexpr (Team::roomy)
      for (int u = 0; u < units; ++u) into[u] = thread.output[u];
    else
      load(critic_.output + seat.first, into);
  }
  // Of W_1a, the thread's units of a dimension, or four of them.
  template <int count>
  DTAG_BOTH void load_first(const Seat& seat, int a, float (&into)[count], int from = 0) const {
    const float* const first = critic_.action_weights + by_groups(seat, actions) + a * group_units;
    load(first + to_unit(from) * actions, into, far_units * actions);
  }

  // Make the action the base: z_1 there. With one hidden layer that is the map.
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
      load_shared(own(at_.share, seat), share, far_units);
      first_layer(share, base, seat, thread, thread.kept);
      if constexpr (Team::roomy)
        for (int u = 0; u < units; ++u) thread.base[u] = thread.kept[u];
      else
        store_shared(own(at_.base, seat), thread.kept, far_units);
      if (!deep()) {
        for (int u = 0; u < units; ++u) thread.map[0][u] = thread.kept[u];
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a) load_first(seat, a, thread.map[1 + a]);
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
  // not, since a sign of z_1 is another one there; all that was written is seen by all after. draws: a
  // number too, which is on its way meanwhile.
  DTAG_BOTH bool probe(bool draws) {
    team_.draw(draws, job_.queue);
    gather_move();
    team_.each([&](Unit& thread, const Seat& seat) {
      float base[units];
      get_base(thread, seat, base);
      first_layer(base, move_, seat, thread, thread.kept);
    });
    sum_up();
    team_.put_drawn(draws);
    return team_.any([&](Unit& thread, const Seat&) {
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
    team_.vote(at_.votes, [&](const Unit& thread, int u) {
      const bool active = is_active(thread.kept[u]);
      return from_nothing ? active || leaky : active != ((thread.signs >> u & 1) != 0);
    });
    team_.sync();
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = Team::crowded ? anew(here) : here;
      const int warp = seat.thread / warp_size, lane = seat.thread % warp_size;
      int marked = 0, before = count_marked(seat.head, warp);
      thread.count = count_marked(seat.head, at_.warps_per_head);
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) {
        marked |= static_cast<int>(thread.votes[u] >> lane & 1) << u;
        before += bits_of(thread.votes[u] & ((1u << lane) - 1));
      }
      thread.marked = before << units | marked;
    });
    return count_marked(0, critic_.heads * at_.warps_per_head);
  }
  // Of so many warps, from one of the head's on.
  DTAG_BOTH int count_marked(int e, int warps) const {
    return team_.count_votes(at_.votes + e * at_.warps_per_head, warps);
  }

  // Each warp's sums of q and its gradient at base + move, by the map.
  DTAG_BOTH void evaluate_in_region() {
    if constexpr (!whole) gather_move();
    sum_up();
  }
  DTAG_BOTH void sum_up() {
    team_.reduce(sums_,
                 [&](const Unit& thread, const Seat& seat, float (&sum)[1 + actions]) {
                   float output[units];
                   get_output(thread, seat, output);
                   evaluate_units<actions, units>(thread.map, move_, output,
                                                  critic_.negative_slope, sum);
                 });
  }
  // Of those sums, over the warps of a head; two by themselves whose units have one of the lean kernel.
  DTAG_BOTH float summed(int e, int i) const {
    constexpr int together = units_of_lean(actions) / Team::units;
    const float* const sums = team_.shared() + sums_ + e * at_.warps_per_head * stride + i;
    float sum = 0.0f;
    for (int warp = 0; warp < at_.warps_per_head; warp += together) {
      float part = sums[warp * stride];
      if (together > 1 && warp + 1 < at_.warps_per_head) part += sums[(warp + 1) * stride];
      sum = warp == 0 ? part : sum + part;
    }
    return sum;
  }

  Team team_;
  const Job& job_;
  const PackedCritic& critic_;
  const SharedLayout& at_;
  int64_t row_ = -1;      // none was taken
  bool deep_;            // deep()
  int sums_;             // where in shared memory the last sums of warps are
  int both_sums_;        // there, and where those before are, together
  float move_[actions];  // action - base
  float action_[whole ? actions : 1], base_[whole ? actions : 1];
};

}  // namespace dtag::cuda
