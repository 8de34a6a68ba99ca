// The full network for 64 rows at a time by tensor cores of bfloat16 (wgmma.cuh): one head by a warpgroup,
// 128 threads, which hold what they need of the rows' numbers in registers from step to step.
//
//   take      the observation's share of z_1, once a tile, to shared memory
//   forward   h_1 = relu(z_1), two columns at a time, right into the fragments of h_1 W_2^T; from its sums
//             q, and g_2 = w * relu'(z_2)
//   back      g_2 W_2: its sums where z_1 passes, times W_1a, are the gradient
//   send      q and the gradient to the block of the other head
//   climb     ensemble, update, projection and selection, for each row by two threads in both blocks alike
//
// g_2 W_2 is made a quarter of the columns after the other: one comes to the gradient while the next is made.
// Weights, h_1 and g_2 are rounded to bfloat16; everything else is float32. A row that meets a number that
// is not finite is marked, and done again by the walk's kernel (Job::marked).
#pragma once

#include "dense_network.h"

namespace dtag::cuda {

// What climbing keeps of a thread's row and four dimensions, in shared memory since the network takes all
// registers.
enum Climbing { initial_point, best_point, first_moment, second_moment };

// heads: of the critic, as many blocks in a cluster.
template <int actions, int heads, typename Group>
class DenseTiles : public DenseNetwork<actions, Group> {
 public:
  using Base = DenseNetwork<actions, Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

  // A starting point of each row.
  DTAG_BOTH void send_for(int tile, int start) {
    tile_ = tile;
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      const int64_t row = first_row() + at.row(at.own());
      const float* const from = job_.actions + (row * job_.starts + start) * critic_.action_dim;
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const int k = at.dimension() + i;
        thread.initial[i] = row < job_.rows && k < critic_.action_dim ? from[k] : 0.0f;
      }
    });
  }

  // To it.
  DTAG_BOTH void set_out() {
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      const int64_t row = first_row() + at.row(at.own());
      float point[4];
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const int k = at.dimension() + i;
        const bool real = row < job_.rows && k < critic_.action_dim;
        point[i] = real ? into_box(job_.settings.low[k], job_.settings.high[k], thread.initial[i]) : 0.0f;
      }
      const float zeros[4] = {};
      store_shared(climbing(at, initial_point), point);
      store_shared(climbing(at, best_point), point);
      store_shared(climbing(at, first_moment), zeros);
      store_shared(climbing(at, second_moment), zeros);
      store_shared(action_of(at.row(at.own())) + at.dimension(), point);
      notes().best_q[at.thread] = minus_infinity();
      notes().best_step[at.thread] = 0;
    });
    group_.sync_warps();
  }

  // The head's q at the actions and, if it climbs, its gradient; to the other block, if there is one. What is
  // sent goes to one of two places by turns: it is seen before the same place is sent to again.
  DTAG_BOTH void evaluate(bool climbs, int turn) {
    this->forward();
    if (climbs)
      this->evaluate_gradient();
    else
      this->evaluate_q();
    this->sum_up();
    if constexpr (heads == 2)
      group_.each([&](Thread& thread, const Place& here) {
        const Place at = anew(here);
        const int to = turn % 2 * At::threads + at.thread;
        group_.give(turn, At::sent + 16 * to, thread.own);
        group_.give(turn, At::sent_values + 4 * to, thread.own_q);
      });
  }

  // See what the heads make of the actions and, if so, take a step.
  DTAG_BOTH void climb(int step, bool climbs, int turn) {
    const Settings& settings = job_.settings;
    if constexpr (heads == 2) group_.receive(turn);
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      see(thread, at, step, turn % 2);
      if (!climbs || settings.gradient != Gradient::unit) return;
      thread.length = 0.0f;
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) thread.length += thread.total[i] * thread.total[i];
    });
    if (!climbs) return;
    if (settings.gradient == Gradient::unit) {
      sum_lengths();
      group_.each([&](Thread& thread, const Place&) {
        const float length = sqrtf(thread.length);
        if (length == 0.0f) return;
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i) thread.total[i] /= length;
      });
    }
    group_.each([&](Thread& thread, const Place& at) { propose(thread, at, step + 1); });
    if (settings.max_distance >= 0.0f) {
      group_.each([&](Thread& thread, const Place& at) { measure(thread, at); });
      sum_lengths();
      group_.each([&](Thread& thread, const Place&) {
        const float length = sqrtf(thread.length);
        if (length <= settings.max_distance) return;
        const float shrink = settings.max_distance / length;
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i)
          thread.proposal[i] = thread.initial[i] + (thread.proposal[i] - thread.initial[i]) * shrink;
      });
    }
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      bool finite = true;
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const int k = at.dimension() + i;
        thread.proposal[i] = into_box(settings.low[k], settings.high[k], thread.proposal[i]);
        finite = finite && is_finite(thread.total[i]) && is_finite(thread.proposal[i]);
      }
      if (!finite) notes().failed[at.thread] = 1;
      store_shared(action_of(at.row(at.own())) + at.dimension(), thread.proposal);
    });
    group_.sync_warps();
  }

  // The starting points compete for their row's place in the result, as in Walk::compete; here a number that
  // is not finite was marked.
  DTAG_BOTH void compete(int start) {
    const bool best = job_.settings.select == Select::best;
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      load_shared(best ? climbing(at, best_point) : action_of(at.row(at.own())) + at.dimension(),
                  thread.proposal);
      measure(thread, at);
    });
    sum_lengths();
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      TileNotes& of = notes();
      const int t = at.thread;
      const float q = best ? of.best_q[t] : of.q[t], q_initial = of.q_initial[t];
      const bool highest_initial = start == 0 || q_initial > of.result_initial[t];
      const bool highest = start == 0 || q > of.result_q[t];
      if (highest_initial) of.result_initial[t] = q_initial;
      if (highest) of.result_q[t] = q;
      const int64_t row = first_row() + at.row(at.own());
      if (head_ > 0 || row >= job_.rows) return;
      const Result& result = job_.result;
      const bool writes = at.dimension() == 0;
      if (writes && highest_initial) result.q_initial[row] = q_initial;
      if (!highest) return;
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const int k = at.dimension() + i;
        if (k < critic_.action_dim) result.actions[row * critic_.action_dim + k] = thread.proposal[i];
      }
      if (!writes) return;
      result.q[row] = q;
      result.best_step[row] = best ? of.best_step[t] : job_.settings.steps;
      result.start[row] = start;
      result.distance[row] = sqrtf(thread.length);
    });
  }

  // Mark the rows that failed, or all.
  DTAG_BOTH void mark(bool all) {
    group_.each([&](Thread& thread, const Place& at) {
      thread.length = all || notes().failed[at.thread] ? 1.0f : 0.0f;
    });
    sum_lengths();
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      const int64_t row = first_row() + at.row(at.own());
      if (head_ > 0 || row >= job_.rows || at.dimension() > 0) return;
      job_.result.flips[row] = 0;
      job_.result.dense_steps[row] =
          thread.length > 0.0f ? marked_row : job_.starts * job_.settings.steps;
    });
  }

 private:
  using Base::action_of;
  using Base::critic_;
  using Base::first_row;
  using Base::floats;
  using Base::group_;
  using Base::head_;
  using Base::job_;
  using Base::notes;
  using Base::tile_;

  DTAG_BOTH float* climbing(const Place& at, Climbing what) const {
    return floats(At::climbs) + 4 * (what * At::threads + at.thread);
  }

  // The ensemble's q at the row's action, and its gradient.
  DTAG_BOTH void see(Thread& thread, const Place& here, int step, int turn) {
    const Place at = anew(here);
    const Settings& settings = job_.settings;
    TileNotes& of = notes();
    const int t = at.thread;
    float q[heads], gradient[heads][4];
    DTAG_UNROLLED
    for (int e = 0; e < heads; ++e) q[e] = of.output_bias[e];
    if constexpr (heads == 2) {
      float other[4];
      load_shared(floats(At::sent) + 4 * (turn * At::threads + t), other);
      const float other_q = floats(At::sent_values)[turn * At::threads + t];
      DTAG_UNROLLED
      for (int e = 0; e < 2; ++e) {
        q[e] += e == head_ ? thread.own_q : other_q;
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i) gradient[e][i] = e == head_ ? thread.own[i] : other[i];
      }
    } else {
      q[0] += thread.own_q;
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) gradient[0][i] = thread.own[i];
    }
    const Combined combined = combine(settings.ensemble, settings.lcb_k, heads, [&](int e) {
      return heads == 1 || e == 0 ? q[0] : q[heads - 1];
    });
    bool finite = true;
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i) thread.total[i] = 0.0f;
    DTAG_UNROLLED
    for (int e = 0; e < heads; ++e) {
      finite = finite && is_finite(q[e]);
      const float by = factor(combined, e, q[e]);
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) thread.total[i] += by * gradient[e][i];
    }
    if (!finite) of.failed[t] = 1;
    of.q[t] = combined.q;
    if (step == 0) of.q_initial[t] = combined.q;
    if (!(combined.q > of.best_q[t])) return;
    of.best_q[t] = combined.q;
    of.best_step[t] = step;
    float action[4];
    load_shared(action_of(at.row(at.own())) + at.dimension(), action);
    store_shared(climbing(at, best_point), action);
  }

  DTAG_BOTH void propose(Thread& thread, const Place& here, int step) {
    const Place at = anew(here);
    const Rates rates(job_.settings, step);
    float first[4], second[4];
    load_shared(action_of(at.row(at.own())) + at.dimension(), thread.proposal);
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

  // How far the proposal is from where the row set out.
  DTAG_BOTH void measure(Thread& thread, const Place& here) {
    const Place at = anew(here);
    load_shared(climbing(at, initial_point), thread.initial);
    thread.length = 0.0f;
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i)
      thread.length += (thread.proposal[i] - thread.initial[i]) * (thread.proposal[i] - thread.initial[i]);
  }

  // Over both threads of a row; squares.
  DTAG_BOTH void sum_lengths() {
    group_.template exchange<1>(
        1, [](Thread& thread, const Place&, float(&give)[1]) { give[0] = thread.length; },
        [](Thread& thread, const Place&, const float(&got)[1]) { thread.length += got[0]; });
  }
};

// What a cluster does: takes tile after tile.
//   index(), count()   of clusters
//   blocks(f)          f(tiles) by the block of each head
//   meet()             wait until all are there that will be sent to
template <typename Cluster>
DTAG_BOTH void refine_tiles(Cluster& cluster, const Job& job) {
  const bool finite = *job.critic.finite != 0;
  const int tiles = static_cast<int>((job.rows + TileLayout::rows - 1) / TileLayout::rows);
  cluster.blocks([](auto& block) DTAG_INLINED { block.start(); });
  cluster.meet();
  int turn = 0;
  for (int tile = cluster.index(); tile < tiles; tile += cluster.count()) {
    cluster.blocks([&](auto& block) DTAG_INLINED {
      block.send_for(tile, 0);
      block.take(tile == cluster.index());
    });
    for (int start = 0; finite && start < job.starts; ++start) {
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
    cluster.blocks([&](auto& block) DTAG_INLINED { block.mark(!finite); });
  }
}

}  // namespace dtag::cuda
