// The full network for 64 rows at a time by tensor cores of bfloat16 (wgmma.cuh): one head by two warpgroups,
// 256 threads, which hold what they need of the rows' numbers in registers from step to step: each of half of
// the columns of every layer.
//
//   take      the observation's share of z_1, once a tile
//   forward   h_1 = relu(z_1) to shared memory, from where h_1 W_2^T takes it; from its sums q, and g_2 =
//             w * relu'(z_2)
//   back      g_2 likewise, and g_2 W_2: its sums where z_1 passes, times W_1a, are the gradient
//   send      q and the gradient, of either warpgroup's columns, to all warpgroups of both heads
//   climb     ensemble, update, projection and selection, for each row by two threads of every warpgroup alike
//
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
      store_shared(action_of(at, at.row(at.own())) + at.dimension(), point);
      notes().best_q[at.thread] = minus_infinity();
      notes().best_step[at.thread] = 0;
    });
    group_.sync();
  }

  // The head's q at the actions and, if it climbs, its gradient; to all who climb. What is sent goes to one of
  // two places by turns: it is seen before the same place is sent to again.
  DTAG_BOTH void evaluate(bool climbs, int turn) {
    this->forward();
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
      store_shared(action_of(at, at.row(at.own())) + at.dimension(), thread.proposal);
    });
    group_.sync_warps();
  }

  // The starting points compete for their row's place in the result, as in Walk::compete; here a number that
  // is not finite was marked.
  DTAG_BOTH void compete(int start) {
    const bool best = job_.settings.select == Select::best;
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      load_shared(best ? climbing(at, best_point) : action_of(at, at.row(at.own())) + at.dimension(),
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
      if (head_ > 0 || at.group() > 0 || row >= job_.rows) return;
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

  // Whether the critic is finite: else all rows are left to another kernel.
  DTAG_BOTH bool finite() const { return notes().finite != 0; }

  // Mark the rows that failed, or all.
  DTAG_BOTH void mark() {
    group_.each([&](Thread& thread, const Place& at) {
      thread.length = !finite() || notes().failed[at.thread] ? 1.0f : 0.0f;
    });
    sum_lengths();
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      const int64_t row = first_row() + at.row(at.own());
      if (head_ > 0 || at.group() > 0 || row >= job_.rows || at.dimension() > 0) return;
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

  // The same for plain gradient steps with the lower of two heads, at once: what is read is sent for first.
  DTAG_BOTH void climb_usually(int step, bool climbs, int turn) {
    group_.each([&](Thread&, const Place& here) {
      const Place at = anew(here);
      const Settings& settings = job_.settings;
      TileNotes& of = notes();
      const int t = at.thread;
      float* const action_at = action_of(at, at.row(at.own())) + at.dimension();
      float action[4], gradient[2][4], q[2];
      load_shared(action_at, action);
      DTAG_UNROLLED
      for (int e = 0; e < 2; ++e) take_sums(at, turn, e, gradient[e], q[e]);
      const float best_q = of.best_q[t];
      const bool second = q[1] < q[0];
      const float lower = second ? q[1] : q[0];
      of.q[t] = lower;
      if (step == 0) of.q_initial[t] = lower;
      if (lower > best_q) {
        of.best_q[t] = lower;
        of.best_step[t] = step;
        store_shared(climbing(at, best_point), action);
      }
      float zero = q[0] * 0.0f + q[1] * 0.0f;  // or NaN
      if (climbs) {
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i) {
          const int k = at.dimension() + i;
          zero += gradient[0][i] * 0.0f + gradient[1][i] * 0.0f;
          action[i] += settings.step_size * (second ? gradient[1][i] : gradient[0][i]);
          action[i] = into_box(settings.low[k], settings.high[k], action[i]);
          zero += action[i] * 0.0f;
        }
        store_shared(action_at, action);
      }
      if (zero != 0.0f) of.failed[t] = 1;
    });
    group_.sync_warps();
  }

  // Of a head, the gradient and q of a thread's row.
  DTAG_BOTH void take_sums(const Place& at, int turn, int e, float (&gradient)[4], float& q) const {
    float parts[At::groups][4], parts_of_q[At::groups];
    DTAG_UNROLLED
    for (int group = 0; group < At::groups; ++group) {
      const int from = sent_by(turn, e * At::groups + group);
      load_shared(floats(At::sent) + (from * At::rows + at.row(at.own())) * At::most_actions + at.dimension(),
                  parts[group]);
      parts_of_q[group] = floats(At::sent_values)[from * At::group_threads + at.in_group()];
    }
    q = (parts_of_q[0] + parts_of_q[1]) + notes().output_bias[e];
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i) gradient[i] = parts[0][i] + parts[1][i];
  }

  // Which of the parts of what is sent: of a turn, by a warpgroup of either head.
  DTAG_BOTH static int sent_by(int turn, int source) { return turn % 2 * At::most_sources + source; }

  // The ensemble's q at the row's action, and its gradient.
  DTAG_BOTH void see(Thread& thread, const Place& here, int step, int turn) {
    const Place at = anew(here);
    const Settings& settings = job_.settings;
    TileNotes& of = notes();
    const int t = at.thread;
    float q[heads], gradient[heads][4];
    DTAG_UNROLLED
    for (int e = 0; e < heads; ++e) take_sums(at, turn, e, gradient[e], q[e]);
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
    load_shared(action_of(at, at.row(at.own())) + at.dimension(), action);
    store_shared(climbing(at, best_point), action);
  }

  DTAG_BOTH void propose(Thread& thread, const Place& here, int step) {
    const Place at = anew(here);
    const Rates rates(job_.settings, step);
    float first[4], second[4];
    load_shared(action_of(at, at.row(at.own())) + at.dimension(), thread.proposal);
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
      if (!finite) break;
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
