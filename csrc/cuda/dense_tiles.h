// The full network for 64 rows at a time by tensor cores of bfloat16 (wgmma.cuh): one head by two warpgroups,
// 256 threads, which hold what they need of the rows' numbers in registers from step to step: each of half of
// the columns of every layer, and of two rows two columns of every eight, as tensor cores leave their sums. So
// actions, z_1, z_2 and gradients are where the next product, or the next step, needs them.
//
//   take      the observation's share of z_1, once a tile
//   forward   z_1 = share + W_1a a; h_1 = relu(z_1) to shared memory, from where h_1 W_2^T takes it; from its sums
//             q, and g_2 = w * relu'(z_2)
//   back      g_2 likewise, and g_2 W_2: its sums where z_1 passes, times W_1a, are the gradient
//   send      q and the gradient, of either warpgroup's columns, to all warpgroups of both heads
//   climb     ensemble, update, projection and selection, for two rows by the four threads that have them, in every
//             warpgroup alike
//
// Weights, h_1 and g_2 are rounded to bfloat16; everything else is float32, or a product by tensor cores of numbers in
// two half floats each, which is about as exact. A row that meets a number that is not finite, or that half floats
// cannot take, is marked, and done again by the walk's kernel (Job::marked).
#pragma once

#include "dense_network.h"

namespace dtag::cuda {

// heads: of the critic, as many blocks in a cluster.
template <int heads, typename Group>
class DenseTiles : public DenseNetwork<Group> {
 public:
  using Base = DenseNetwork<Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

  // A starting point of each row.
  DTAG_BOTH void send_for(int tile, int start) {
    tile_ = tile;
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const int64_t row = first_row() + at.row(r);
        const float* const from = job_.actions + (row * job_.starts + start) * critic_.action_dim;
        DTAG_UNROLLED
        for (int c = 0; c < 2; ++c) {
          const int k = at.dimension() + c;
          thread.initial[2 * r + c] = row < job_.rows && k < critic_.action_dim ? from[k] : 0.0f;
        }
      }
    });
  }

  // To it.
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

  // The head's q at the actions and, if it climbs, its gradient; to all who climb. What is sent goes to one of
  // two places by turns: it is seen before the same place is sent to again.
  DTAG_BOTH void evaluate(bool climbs, int turn) {
    this->forward(turn == 0);
    if (climbs)
      this->evaluate_gradient();
    else
      this->evaluate_q();
    this->sum_up();
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      const int source = head_ * At::groups + at.group();
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const int to = (sent_by(turn, source) * At::rows + at.row(r)) * At::most_actions + 2 * at.pair();
        const float gradient[2] = {thread.gradient[0][0][2 * r], thread.gradient[0][0][2 * r + 1]};
        store_shared(floats(At::sent) + to, gradient);
        if constexpr (heads == 2) group_.give(turn, At::sent + 4 * to, gradient);
      }
      const int to = sent_by(turn, source) * At::group_threads + at.in_group();
      floats(At::sent_values)[to] = thread.own_q;
      if constexpr (heads == 2) group_.give(turn, At::sent_values + 4 * to, thread.own_q);
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

  // The starting points compete for their row's place in the result, as in Walk::compete; here a number that
  // is not finite was marked.
  DTAG_BOTH void compete(int start) {
    const bool best = job_.settings.select == Select::best;
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      load_shared(climbing(at, best ? best_point : current_point), thread.proposal);
      measure_way(thread, at);
    });
    sum_lengths();
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) compete(thread, at, r, start, best);
    });
  }

  // Whether the critic is finite: else all rows are left to another kernel.
  DTAG_BOTH bool finite() const { return notes().finite != 0; }

  // Mark the rows that failed, or all.
  DTAG_BOTH void mark() {
    group_.each([&](Thread& thread, const Place& at) {
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) thread.length[r] = !finite() || notes().failed[at.thread][r] ? 1.0f : 0.0f;
    });
    sum_lengths();
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      if (head_ > 0 || at.group() > 0 || at.pair() > 0) return;
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const int64_t row = first_row() + at.row(r);
        if (row >= job_.rows) continue;
        job_.result.flips[row] = 0;
        job_.result.dense_steps[row] =
            thread.length[r] > 0.0f ? marked_row : job_.starts * job_.settings.steps;
      }
    });
  }

 private:
  using Base::climbing;
  using Base::critic_;
  using Base::first_row;
  using Base::floats;
  using Base::group_;
  using Base::head_;
  using Base::job_;
  using Base::notes;
  using Base::take_action;
  using Base::tile_;

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

  // Which of the parts of what is sent: of a turn, by a warpgroup of either head.
  DTAG_BOTH static int sent_by(int turn, int source) { return turn % 2 * At::most_sources + source; }

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

  DTAG_BOTH void compete(const Thread& thread, const Place& at, int r, int start, bool best) {
    TileNotes& of = notes();
    const int t = at.thread;
    const float q = best ? of.best_q[t][r] : of.q[t][r], q_initial = of.q_initial[t][r];
    const bool highest_initial = start == 0 || q_initial > of.result_initial[t][r];
    const bool highest = start == 0 || q > of.result_q[t][r];
    if (highest_initial) of.result_initial[t][r] = q_initial;
    if (highest) of.result_q[t][r] = q;
    const int64_t row = first_row() + at.row(r);
    if (head_ > 0 || at.group() > 0 || row >= job_.rows) return;
    const Result& result = job_.result;
    const bool writes = at.pair() == 0;
    if (writes && highest_initial) result.q_initial[row] = q_initial;
    if (!highest) return;
    DTAG_UNROLLED
    for (int c = 0; c < 2; ++c) {
      const int k = at.dimension() + c;
      if (k < critic_.action_dim) result.actions[row * critic_.action_dim + k] = thread.proposal[2 * r + c];
    }
    if (!writes) return;
    result.q[row] = q;
    result.best_step[row] = best ? of.best_step[t][r] : job_.settings.steps;
    result.start[row] = start;
    result.distance[row] = sqrtf(thread.length[r]);
  }
};

// What a cluster does: takes tile after tile.
//   index(), count()   of clusters
//   blocks(f)          f(tiles) by the block of each head
//   meet()             wait until all are there that will be sent to
template <typename Cluster>
DTAG_BOTH void refine_tiles(Cluster& cluster, const Job& job) {
  cluster.blocks([](auto& block) DTAG_INLINED { block.start(); });
  cluster.meet();
  int turn = 0;
  for (int tile = cluster.index(); int64_t{tile} * TileLayout::rows < job.rows; tile += cluster.count()) {
    cluster.blocks([&](auto& block) DTAG_INLINED {
      block.send_for(tile, 0);
      block.take(tile == cluster.index());
    });
    for (int start = 0; start < job.starts; ++start) {
      bool finite = true;
      cluster.blocks([&](auto& block) DTAG_INLINED { finite = block.finite(); });
      if (!finite) {
        cluster.blocks([](auto& block) DTAG_INLINED { block.wait_for_weights(); });
        break;
      }
      cluster.blocks([&](auto& block) DTAG_INLINED {
        if (start > 0) block.send_for(tile, start);
        block.set_out();
      });
      for (int step = 0; step <= job.settings.steps; ++step, ++turn) {
        const bool climbs = step < job.settings.steps;
        cluster.blocks([&](auto& block) DTAG_INLINED { block.evaluate(climbs, turn); });
        cluster.blocks([&](auto& block) DTAG_INLINED { block.climb(step, climbs, turn); });
      }
      cluster.blocks([&](auto& block) DTAG_INLINED { block.compete(start); });
    }
    cluster.blocks([&](auto& block) DTAG_INLINED { block.mark(); });
  }
}

}  // namespace dtag::cuda
