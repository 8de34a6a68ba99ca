// The full network for 64 rows at a time by tensor cores of bfloat16 (wgmma.cuh): one head by two warpgroups,
// 256 threads, which hold what they need of the rows' numbers in registers from step to step: each of half of
// the columns of every layer, and of two rows two columns of every eight, as tensor cores leave their sums. So
// actions, z_1, z_2 and gradients are where the next product, or the next step, needs them.
//
//   take      the observation's share of z_1, once a tile
//   forward   z_1 = share + W_1a a; h_1 = relu(z_1) to shared memory, from where h_1 W_2^T takes it, for each
//             warpgroup's half of the columns; from its sums q, and g_2 = w * relu'(z_2)
//   back      g_2 W_2, of each warpgroup's half of g_2, which is in its registers: for 64 units of layer 1 at a time,
//             whose sums where h_1 is not zero, times W_1a, are a part of the gradient
//   send      q and the gradient, each warpgroup's part, to all warpgroups of both heads
//   climb     ensemble, update, projection and selection, for two rows by the four threads that have them, in every
//             warpgroup alike
//
// Weights, h_1 and g_2 are rounded to bfloat16; everything else is float32, or a product by tensor cores of numbers in
// two half floats each, which is about as exact. A row that meets a number that is not finite, or that half floats
// cannot take, is marked, and done again by the walk's kernel (Job::marked).
#pragma once

#include "dense_climb.h"

namespace dtag::cuda {

// heads: of the critic, as many blocks in a cluster.
template <int heads, typename Group>
class DenseTiles : public DenseClimb<heads, Group> {
 public:
  using Base = DenseClimb<heads, Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

  // A starting point of each row.
  DTAG_BOTH void send_for(int tile, int start) {
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const int64_t row = first_row(tile) + at.row(r);
        const float* const from = job_.actions + (row * job_.starts + start) * critic_.action_dim;
        DTAG_UNROLLED
        for (int c = 0; c < 2; ++c) {
          const int k = at.dimension() + c;
          thread.initial[2 * r + c] = row < job_.rows && k < critic_.action_dim ? from[k] : 0.0f;
        }
      }
    });
  }

  // The head's q at the actions and, if it climbs, its gradient; to all who climb. What is sent goes to one of
  // two places by turns: it is seen before the same place is sent to again.
  DTAG_BOTH void evaluate(bool climbs, int turn) {
    this->forward(turn == 0);
    const auto send_q = [&]() DTAG_INLINED {
      group_.each([&](Thread& thread, const Place& here) DTAG_INLINED {
        const Place at = anew(here);
        const int to = sent_by(turn, head_ * At::groups + at.group()) * At::group_threads + at.in_group();
        floats(At::sent_values)[to] = thread.own_q;
        if constexpr (heads == 2) group_.give(turn, At::sent_values + 4 * to, thread.own_q);
      });
    };
    if (climbs)
      this->evaluate_gradient(send_q);
    else
      this->evaluate_q(send_q);
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const int from = sent_by(turn, head_ * At::groups + at.group());
        const int to = (from * At::rows + at.row(r)) * At::most_actions + at.dimension();
        const float gradient[2] = {thread.gradient[0][2 * r], thread.gradient[0][2 * r + 1]};
        store_shared(floats(At::sent) + to, gradient);
        if constexpr (heads == 2) group_.give(turn, At::sent + 4 * to, gradient);
      }
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

  // What was taken: there is no register to keep it.
  DTAG_BOTH int tile() const { return group_.same(notes().tile); }

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
  using Base::measure_way;
  using Base::notes;
  using Base::sent_by;
  using Base::sum_lengths;

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
  int turn = 0, tile = cluster.index();
  while (int64_t{tile} * TileLayout::rows < job.rows) {
    cluster.blocks([&](auto& block) DTAG_INLINED {
      block.send_for(tile, 0);
      block.take(tile, tile == cluster.index());
    });
    for (int start = 0; start < job.starts; ++start) {
      bool finite = true;
      cluster.blocks([&](auto& block) DTAG_INLINED { finite = block.finite(); });
      if (!finite) {
        cluster.blocks([](auto& block) DTAG_INLINED { block.wait_for_weights(); });
        break;
      }
      cluster.blocks([&](auto& block) DTAG_INLINED {
        if (start > 0) block.send_for(block.tile(), start);
        block.set_out();
      });
      for (int step = 0; step <= job.settings.steps; ++step, ++turn) {
        const bool climbs = step < job.settings.steps;
        cluster.blocks([&](auto& block) DTAG_INLINED { block.evaluate(climbs, turn); });
        cluster.blocks([&](auto& block) DTAG_INLINED { block.climb(step, climbs, turn); });
      }
      cluster.blocks([&](auto& block) DTAG_INLINED { block.compete(start); });
    }
    cluster.blocks([&](auto& block) DTAG_INLINED {
      block.mark();
      tile = block.tile() + cluster.count();
    });
  }
}

}  // namespace dtag::cuda
