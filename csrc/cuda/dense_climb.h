// How dense tiles climb: for two rows and two dimensions of their actions a thread; see dense_tiles.h.
#pragma once

#include "dense_network.h"

namespace dtag::cuda {

// What climbing keeps of a thread's two rows and two dimensions, in shared memory since the network takes all
// registers.
enum Climbing { current_point, initial_point, best_point, first_moment, second_moment };

// heads: of the critic.
template <int heads, typename Group>
class DenseClimb : public DenseNetwork<Group> {
 public:
  using Base = DenseNetwork<Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

  // To the starting points that were sent for.
  DTAG_BOTH void set_out() {
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      float point[4];
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const int k = at.dimension() + i % 2;
        const bool real = first_row() + at.row(i / 2) < job_.rows && k < critic_.action_dim;
        point[i] = real ? into_box(job_.settings.low[k], job_.settings.high[k], thread.initial[i]) : 0.0f;
      }
      const float zeros[4] = {};
      for (const Climbing what : {current_point, initial_point, best_point}) store_shared(climbing(at, what), point);
      store_shared(climbing(at, first_moment), zeros);
      store_shared(climbing(at, second_moment), zeros);
      take_action(thread, at, point);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        notes().best_q[at.thread][r] = minus_infinity();
        notes().best_step[at.thread][r] = 0;
      }
    });
  }

  // See what the heads make of the actions and, if so, take a step.
  DTAG_BOTH void climb(int step, bool climbs, int turn) {
    const Settings& settings = job_.settings;
    group_.sync();
    if constexpr (heads == 2) group_.receive(turn);
    if (heads == 2 && settings.ensemble == Ensemble::min && settings.optimizer == Optimizer::sgd &&
        settings.gradient == Gradient::raw && settings.max_distance < 0.0f)
      return climb_usually(step, climbs, turn);
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      see(thread, at, step, turn);
      if (climbs && settings.gradient == Gradient::unit) measure(thread, thread.total);
    });
    if (!climbs) return;
    if (settings.gradient == Gradient::unit) {
      sum_lengths();
      group_.each([&](Thread& thread, const Place&) {
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i) {
          const float length = sqrtf(thread.length[i / 2]);
          if (length != 0.0f) thread.total[i] /= length;
        }
      });
    }
    group_.each([&](Thread& thread, const Place& at) { propose(thread, at, step + 1); });
    if (settings.max_distance >= 0.0f) {
      group_.each([&](Thread& thread, const Place& at) { measure_way(thread, at); });
      sum_lengths();
      group_.each([&](Thread& thread, const Place&) {
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i) {
          const float length = sqrtf(thread.length[i / 2]);
          if (length <= settings.max_distance) continue;
          const float shrink = settings.max_distance / length;
          thread.proposal[i] = thread.initial[i] + (thread.proposal[i] - thread.initial[i]) * shrink;
        }
      });
    }
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const int k = at.dimension() + i % 2;
        thread.proposal[i] = into_box(settings.low[k], settings.high[k], thread.proposal[i]);
        if (!is_finite(thread.total[i]) || !is_finite(thread.proposal[i])) notes().failed[at.thread][i / 2] = 1;
      }
      store_shared(climbing(at, current_point), thread.proposal);
      take_action(thread, at, thread.proposal);
    });
  }

 protected:
  using Base::critic_;
  using Base::first_row;
  using Base::floats;
  using Base::group_;
  using Base::job_;
  using Base::notes;
  using Base::take_action;

  // Where climbing keeps a thread's four numbers.
  DTAG_BOTH float* climbing(const Place& at, Climbing what) const {
    return floats(At::climbs) + 4 * (what * At::threads + at.thread);
  }

  // Which of the parts of what is sent: of a turn, by a warpgroup of either head.
  DTAG_BOTH static int sent_by(int turn, int source) { return turn % 2 * At::most_sources + source; }

  // How far the proposals are from where their rows set out, a thread's part of it.
  DTAG_BOTH void measure_way(Thread& thread, const Place& here) {
    const Place at = anew(here);
    load_shared(climbing(at, initial_point), thread.initial);
    float way[4];
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i) way[i] = thread.proposal[i] - thread.initial[i];
    measure(thread, way);
  }
  DTAG_BOTH static void measure(Thread& thread, const float (&way)[4]) {
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r)
      thread.length[r] = way[2 * r] * way[2 * r] + way[2 * r + 1] * way[2 * r + 1];
  }

  // Over the four threads of two rows; squares.
  DTAG_BOTH void sum_lengths() {
    DTAG_UNROLLED
    for (int distance = 1; distance < 4; distance *= 2)
      group_.template exchange<2>(
          distance,
          [](Thread& thread, const Place&, float(&give)[2]) {
            for (int r = 0; r < 2; ++r) give[r] = thread.length[r];
          },
          [](Thread& thread, const Place&, const float(&got)[2]) {
            for (int r = 0; r < 2; ++r) thread.length[r] += got[r];
          });
  }

 private:
  // The same for plain gradient steps with the lower of two heads, at once: what is read is sent for first.
  DTAG_BOTH void climb_usually(int step, bool climbs, int turn) {
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      const Settings& settings = job_.settings;
      float action[4], gradient[2][4], q[2][2];
      load_shared(climbing(at, current_point), action);
      DTAG_UNROLLED
      for (int e = 0; e < 2; ++e) take_sums(at, turn, e, gradient[e], q[e]);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const bool second = q[1][r] < q[0][r];
        note(at, r, step, second ? q[1][r] : q[0][r], action);
        float zero = q[0][r] * 0.0f + q[1][r] * 0.0f;  // or NaN
        if (climbs) {
          DTAG_UNROLLED
          for (int i = 2 * r; i < 2 * r + 2; ++i) {
            const int k = at.dimension() + i % 2;
            zero += gradient[0][i] * 0.0f + gradient[1][i] * 0.0f;
            action[i] += settings.step_size * (second ? gradient[1][i] : gradient[0][i]);
            action[i] = into_box(settings.low[k], settings.high[k], action[i]);
            zero += action[i] * 0.0f;
          }
        }
        if (zero != 0.0f) notes().failed[at.thread][r] = 1;
      }
      if (!climbs) return;
      store_shared(climbing(at, current_point), action);
      take_action(thread, at, action);
    });
  }

  // Of a head, the gradient and q of a thread's rows.
  DTAG_BOTH void take_sums(const Place& at, int turn, int e, float (&gradient)[4], float (&q)[2]) const {
    float parts[At::groups][4], parts_of_q[At::groups][2];
    DTAG_UNROLLED
    for (int group = 0; group < At::groups; ++group) {
      const int from = sent_by(turn, e * At::groups + group);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        load_two(floats(At::sent) + (from * At::rows + at.row(r)) * At::most_actions + at.dimension(),
                 parts[group] + 2 * r);
        // By one of the two threads that sent it.
        parts_of_q[group][r] =
            floats(At::sent_values)[from * At::group_threads + at.in_group() - at.pair() + 2 * r];
      }
    }
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r) q[r] = (parts_of_q[0][r] + parts_of_q[1][r]) + notes().output_bias[e];
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i) gradient[i] = parts[0][i] + parts[1][i];
  }

  // A row's q at its action, and whether it is the best one yet.
  DTAG_BOTH void note(const Place& at, int r, int step, float q, const float (&action)[4]) const {
    TileNotes& of = notes();
    const int t = at.thread;
    of.q[t][r] = q;
    if (step == 0) of.q_initial[t][r] = q;
    if (!(q > of.best_q[t][r])) return;
    of.best_q[t][r] = q;
    of.best_step[t][r] = step;
    store_shared(climbing(at, best_point) + 2 * r, {action[2 * r], action[2 * r + 1]});
  }

  // The ensemble's q at the rows' actions, and its gradients.
  DTAG_BOTH void see(Thread& thread, const Place& here, int step, int turn) {
    const Place at = anew(here);
    const Settings& settings = job_.settings;
    float q[heads][2], gradient[heads][4], action[4];
    load_shared(climbing(at, current_point), action);
    DTAG_UNROLLED
    for (int e = 0; e < heads; ++e) take_sums(at, turn, e, gradient[e], q[e]);
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r) {
      const Combined combined = combine(settings.ensemble, settings.lcb_k, heads, [&](int e) {
        return heads == 1 || e == 0 ? q[0][r] : q[heads - 1][r];
      });
      thread.total[2 * r] = thread.total[2 * r + 1] = 0.0f;
      DTAG_UNROLLED
      for (int e = 0; e < heads; ++e) {
        if (!is_finite(q[e][r])) notes().failed[at.thread][r] = 1;
        const float by = factor(combined, e, q[e][r]);
        DTAG_UNROLLED
        for (int i = 2 * r; i < 2 * r + 2; ++i) thread.total[i] += by * gradient[e][i];
      }
      note(at, r, step, combined.q, action);
    }
  }

  DTAG_BOTH void propose(Thread& thread, const Place& here, int step) {
    const Place at = anew(here);
    const Rates rates(job_.settings, step);
    float first[4], second[4];
    load_shared(climbing(at, current_point), thread.proposal);
    // At once, and not by dimensions.
    if (job_.settings.optimizer == Optimizer::sgd) {
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) thread.proposal[i] += rates.scale * thread.total[i];
      return;
    }
    load_shared(climbing(at, first_moment), first);
    load_shared(climbing(at, second_moment), second);
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i)
      thread.proposal[i] += update(job_.settings.optimizer, rates, thread.total[i], first[i], second[i]);
    store_shared(climbing(at, first_moment), first);
    store_shared(climbing(at, second_moment), second);
  }
};

}  // namespace dtag::cuda
