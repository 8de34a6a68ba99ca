// One row's walk through the critic's linear regions (docs/linear-region-walk.md), by a team of
// threads (team.h): a thread holds `units` hidden units of one head, a lane one dimension of the
// action. What is the same for all is computed by all; branches depend on nothing else.
//
//   place     z_1, c = z_2 and M = dz_2/da at the base: active rows of W_2^T, each added to 1 + A
//             vectors that stay in registers
//   probe     the signs of z_1 at base + d and, as if none had changed, q and its gradient of every
//             head: 1 + A sums over the units, one reduction, one wait
//   follow    where signs have changed, a correction of c and M for each, and the sums once more
//   climb     ensemble, update, projection and selection
//
// A row that meets a number that is not finite is done again by the full network alone.
#pragma once

#include "following.h"
#include "job.h"
#include "step.h"
#include "team.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class Walk : public Following<actions, Precision, Team> {
 public:
  using Base = Following<actions, Precision, Team>;
  using Base::Base;

  // Take a row, while `next` will be taken soon, by whomever: its observation's share of z_1. If its first map is to
  // be built apart, by a cluster, list the rows of W_2^T that it is made of: be ready for add_part().
  DTAG_BOTH void take(int64_t row, int64_t next, bool apart, int part) {
    const bool first = row_ < 0;
    // Of given maps the last ones first: of many these are near yet.
    given_ = Team::queued || (!apart && job_.maps != nullptr);
    row_ = given_ ? job_.rows - 1 - row : row;
    taken_ = row < job_.rows;
    built_ = stands_ = drawn_ = false;
    if (!taken_) return;
    // What the row before left would take registers until it is written over.
    team_.each([](auto& thread, const Seat&) { thread = {}; });
    team_.lanes([](Lane& lane, int) { lane = {}; });
    if (!Team::queued && !given_) send_for_observation();
    if constexpr (Team::roomy) send_for_weights(!given_);
    const Settings& settings = job_.settings;
    team_.lanes([&](Lane& lane, int k) {
      if constexpr (Team::crowded) return;  // they are read anew
      lane.bias = k < critic_.heads ? critic_.output_bias[k] : 0.0f;
      lane.low = settings.low[k];
      lane.high = settings.high[k];
    });
    send_for(0);
    const int finite = *critic_.finite;
    if (apart) send_for_part(part, first);
    failed_ = false;
    usual_ = critic_.heads == 2 && at_.warps_per_head == usual_warps &&
             settings.ensemble == Ensemble::min && settings.optimizer == Optimizer::sgd &&
             settings.gradient == Gradient::raw && settings.max_distance < 0.0f;
    if (usual_)
      for (int e = 0; e < 2; ++e) bias_[e] = critic_.output_bias[e];
    build_cost_ = -1.0f;
    if (Team::queued || given_)
      this->take_given(next < job_.rows ? job_.rows - 1 - next : row_);
    else
      observe(first);
    finite_ = anew(finite) != 0;  // not looked at before, which would be to wait for it
    walks_ = !job_.dense && finite_;
    usual_ = usual_ && walks_;
    set_out();
    if (!apart || !walks_ || !deep()) return;
    place(false);
    list(true, 0, part_bytes());
    built_ = true;
  }
  DTAG_BOTH bool builds() const { return built_; }

  // Where the map came from the cluster.
  using Base::add_part;
  using Base::await_slice;
  using Base::give_part;
  using Base::map_bytes;
  using Base::take_map;

  // Everything else, up to the result.
  DTAG_BOTH void finish() {
    if (!taken_) return;
    set_counts(0);
    while (!refine()) {
      walks_ = usual_ = stands_ = failed_ = false;
      send_for(0);
      set_out();
    }
    if (!walks_) set_counts(job_.starts * job_.settings.steps);
  }

  // After that: a number that nobody else has, of the row to take next. It was drawn before the last look
  // at the row, so that it is there by now and long rows keep none waiting; or is now.
  DTAG_BOTH int draw() {
    if (!drawn_) {
      team_.draw(true, job_.queue);
      team_.put_drawn(true);
      team_.sync();
    }
    return team_.drawn();
  }

 private:
  static constexpr int usual_warps = 256 / (Team::units * warp_size);

  using Base::action_;
  using Base::at_;
  using Base::build_cost_;
  using Base::built_;
  using Base::critic_;
  using Base::deep;
  using Base::drawn_;
  using Base::evaluate_sums;
  using Base::given_;
  using Base::job_;
  using Base::list;
  using Base::observe;
  using Base::part_bytes;
  using Base::place;
  using Base::row_;
  using Base::send_for_observation;
  using Base::send_for_part;
  using Base::send_for_weights;
  using Base::stands_;
  using Base::stride;
  using Base::summed;
  using Base::sums_;
  using Base::team_;
  using Base::walks_;

  // ---- the row ----

  // A starting point; then, to stand there.
  DTAG_BOTH void send_for(int start) {
    const float* const from =
        job_.actions + (row_ * job_.starts + start) * critic_.action_dim;
    team_.lanes([&](Lane& lane, int k) { lane.initial = k < critic_.action_dim ? from[k] : 0.0f; });
  }
  DTAG_BOTH void set_out() {
    team_.lanes([&](Lane& lane, int k) {
      if (k < critic_.action_dim) lane.initial = boxed(lane, k, lane.initial);
      lane.action = lane.best = lane.initial;
      lane.first = lane.second = 0.0f;
    });
    spread_action();
  }

  // In the lane's dimension.
  DTAG_BOTH float boxed(const Lane& lane, int k, float x) const {
    if constexpr (!Team::crowded) return into_box(lane.low, lane.high, x);
    // Lanes that read different constants read one after the other.
    return k < actions ? into_box(job_.settings.low[k], job_.settings.high[k], x) : x;
  }

  // From the lanes to every thread, if they have it whole.
  DTAG_BOTH void spread_action() {
    if constexpr (Base::whole)
      this->gather(action_, [](const Lane& lane) { return lane.action; });
  }

  // ---- values ----

  // The ensemble's Q at the action.
  DTAG_BOTH void evaluate() {
    team_.lanes([&](Lane& lane, int k) {
      const float bias = Team::crowded && k < critic_.heads ? critic_.output_bias[k] : lane.bias;
      lane.q = k < critic_.heads ? summed(k, 0) + bias : 0.0f;
    });
    combined_ = combine(job_.settings.ensemble, job_.settings.lcb_k, critic_.heads,
                        [&](int e) { return value_of(e); });
    if (walks_) failed_ = !team_.all_lanes([](const Lane& lane) { return is_finite(lane.q); });
  }
  DTAG_BOTH float value_of(int e) const {
    return team_.pick(e, [](const Lane& lane) { return lane.q; });
  }

  // ---- the climb ----

  // From every starting point; false if the walk met a number that is not finite.
  DTAG_BOTH bool refine() {
    for (int start = 0; start < job_.starts; ++start) {
      if (start > 0) {
        send_for(start);
        set_out();
      }
      climb(start + 1 == job_.starts);
      if (failed_) return false;
      compete(start);
    }
    return true;
  }

  DTAG_BOTH void climb(bool last) {
    const int draws_at = last ? job_.settings.steps : -1;
    step_ = best_step_ = 0;
    zero_ = 0.0f;
    best_q_ = minus_infinity();
    if constexpr (Base::whole)
      for (int a = 0; a < actions; ++a) best_[a] = action_[a];
    do
      evaluate_sums(step_ == 0, Team::queued && step_ == draws_at);
    while (usual_ ? step_usually() : step());
    if constexpr (Base::whole)
      team_.lanes([&](Lane& lane, int k) {
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a)
          if (a == k) lane.action = action_[a], lane.best = best_[a];
      });
  }

  // See what the sums make of the action and take a step from it; false if that was the last.
  DTAG_BOTH bool step() {
    evaluate();
    keep_better(combined_.q);
    return step_ < job_.settings.steps && !failed_ && move();
  }

  // The same for plain gradient steps with the lower of two heads of 256 units.
  DTAG_BOTH bool step_usually() {
    const float* const sums = team_.shared() + sums_;
    if constexpr (Base::whole) {
      float of[2][stride];
      DTAG_UNROLLED
      for (int e = 0; e < 2; ++e) {
        float part[usual_warps][stride];
        DTAG_UNROLLED
        for (int warp = 0; warp < usual_warps; ++warp)
          load_shared(sums + (e * usual_warps + warp) * stride, part[warp]);
        DTAG_UNROLLED
        for (int i = 0; i <= actions; ++i)
          of[e][i] = sum_of_warps([&](int warp) { return part[warp][i]; });
      }
      const bool second = lower_of(of[0][0] + bias_[0], of[1][0] + bias_[1]);
      keep_better(combined_.q);
      if (step_ >= job_.settings.steps || failed_) return false;
      // A number that is not finite is seen by the next look at q, which does not wait for it now.
      float moved = 0.0f;
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) {
        const float gradient = second ? of[1][1 + a] : of[0][1 + a];
        action_[a] = clamped(job_.settings.low[a], job_.settings.high[a],
                             action_[a] + job_.settings.step_size * gradient);
        moved = fmaf(gradient, 0.0f, moved);
        zero_ = fmaf(action_[a], 0.0f, zero_);
      }
      zero_ += moved;
      ++step_;
      return true;
    } else {
      const auto summed_usually = [&](int e, int i) {
        return sum_of_warps(
            [&](int warp) { return sums[(e * usual_warps + warp) * stride + i]; });
      };
      const bool second =
          lower_of(summed_usually(0, 0) + bias_[0], summed_usually(1, 0) + bias_[1]);
      keep_better(combined_.q);
      if (step_ >= job_.settings.steps || failed_) return false;
      team_.lanes([&](Lane& lane, int k) {
        const int i = k < actions ? 1 + k : 0;
        // Both are read, so that it does not have to be known before which of them counts.
        const float gradient[2] = {summed_usually(0, i), summed_usually(1, i)};
        lane.gradient = k >= critic_.action_dim ? 0.0f : second ? gradient[1] : gradient[0];
        lane.proposal = lane.action + job_.settings.step_size * lane.gradient;
      });
      return accept();
    }
  }
  template <typename Of>
  DTAG_BOTH static float sum_of_warps(Of of) {
    if constexpr (usual_warps == 4) return (of(0) + of(1)) + (of(2) + of(3));
    if constexpr (usual_warps == 2) return of(0) + of(1);
    return of(0);
  }
  // Whether of two heads' values the second counts; q is set, and whether both are finite.
  DTAG_BOTH bool lower_of(float first, float second) {
    const bool is_second = second < first || (second != second && first == first);
    combined_.q = is_second ? second : first;
    failed_ = !is_finite(first) || !is_finite(second) || zero_ != 0.0f;
    return is_second;
  }

  DTAG_BOTH void keep_better(float q) {
    if (step_ == 0) q_initial_ = q;
    if (!is_finite(q) || !(q > best_q_)) return;
    best_q_ = q;
    best_step_ = step_;
    if constexpr (Base::whole)
      for (int a = 0; a < actions; ++a) best_[a] = action_[a];
    else
      team_.lanes([&](Lane& lane, int) { lane.best = lane.action; });
  }

  // Take a step; false, and nothing changes, if the gradient or the next candidate is not finite.
  DTAG_BOTH bool move() {
    const Settings& settings = job_.settings;
    // Heads that do not count are left out, where zero times their numbers is sure to be zero.
    const bool finite = Team::crowded ? *critic_.finite != 0 : finite_;
    const bool one = combined_.lowest >= 0 && finite;
    const int first = one ? combined_.lowest : 0, last = one ? first + 1 : critic_.heads;
    team_.lanes([](Lane& lane, int) { lane.gradient = 0.0f; });
    for (int e = first; e < last; ++e) {
      const float by = one ? 1.0f : factor(combined_, e, value_of(e));
      team_.lanes([&](Lane& lane, int k) {
        if (k < critic_.action_dim) lane.gradient += by * summed(e, 1 + k);
      });
    }
    if (settings.gradient == Gradient::unit) {
      const float length =
          sqrtf(team_.sum_lanes([](const Lane& lane) { return lane.gradient * lane.gradient; }));
      if (length != 0.0f) team_.lanes([&](Lane& lane, int) { lane.gradient /= length; });
    }
    const Rates rates(settings, step_ + 1);
    team_.lanes([&](Lane& lane, int) {
      lane.proposal = lane.action + update(settings.optimizer, rates, lane.gradient, lane.first,
                                           lane.second);
    });
    if (settings.max_distance >= 0.0f) {
      const float length = sqrtf(team_.sum_lanes([](const Lane& lane) {
        return (lane.proposal - lane.initial) * (lane.proposal - lane.initial);
      }));
      if (!(length <= settings.max_distance)) {
        const float shrink = settings.max_distance / length;
        team_.lanes([&](Lane& lane, int) {
          lane.proposal = lane.initial + (lane.proposal - lane.initial) * shrink;
        });
      }
    }
    return accept();
  }

  // Go to the proposal, in the box; false, and nothing changes, if it or the gradient is not finite.
  DTAG_BOTH bool accept() {
    team_.lanes([&](Lane& lane, int k) { lane.proposal = boxed(lane, k, lane.proposal); });
    const bool finite = team_.all_lanes([](const Lane& lane) {
      return is_finite(lane.gradient) && is_finite(lane.proposal);
    });
    if (!finite) {
      failed_ = walks_;
      return false;
    }
    team_.lanes([](Lane& lane, int) { lane.action = lane.proposal; });
    spread_action();
    ++step_;
    return true;
  }

  // The starting points compete for the row's place in the result: the highest finite Q wins, the
  // first one on a tie.
  DTAG_BOTH void compete(int start) {
    const bool never_finite = best_q_ == minus_infinity();
    const bool best = job_.settings.select == Select::best;
    const float q = never_finite ? q_initial_ : best ? best_q_ : combined_.q;
    const Result& result = job_.result;
    // Read and written by one warp alone.
    bool highest_initial = true, highest = true;
    if (start > 0)
      team_.once([&](const Lane&, int) {
        highest_initial = or_minus_infinity(q_initial_) > or_minus_infinity(result.q_initial[row_]);
        highest = or_minus_infinity(q) > or_minus_infinity(result.q[row_]);
      });
    const int step = never_finite ? 0 : best ? best_step_ : step_;
    team_.lanes([&](Lane& lane, int) {
      lane.proposal = never_finite ? lane.initial : best ? lane.best : lane.action;
    });
    const float distance = sqrtf(team_.sum_lanes([](const Lane& lane) {
      return (lane.proposal - lane.initial) * (lane.proposal - lane.initial);
    }));
    team_.sync_lanes();  // all of them have read
    team_.once([&](const Lane& lane, int k) {
      if (k == 0 && highest_initial) result.q_initial[row_] = q_initial_;
      if (!highest) return;
      if (k < critic_.action_dim) result.actions[row_ * critic_.action_dim + k] = lane.proposal;
      if (k > 0) return;
      result.q[row_] = q;
      result.best_step[row_] = step;
      result.start[row_] = start;
      result.distance[row_] = distance;
    });
  }

  // What walking counts is kept in the result itself, by the thread that writes there.
  DTAG_BOTH void set_counts(int64_t full_steps) {
    team_.once([&](const Lane&, int k) {
      if (k > 0) return;
      job_.result.flips[row_] = 0;
      job_.result.dense_steps[row_] = full_steps;
    });
  }

  bool taken_ = false;
  bool failed_ = false;  // a number was not finite: what the walk found is not to be used
  bool finite_ = false;  // all weights and biases
  bool usual_ = false;   // what step_usually() is for
  float bias_[2] = {};   // of its heads
  float zero_ = 0.0f;    // or NaN, after a gradient or an action that was not finite
  float best_[Base::whole ? actions : 1] = {};  // the best candidate of this starting point
  Combined combined_;    // at the action
  int step_ = 0, best_step_ = 0;
  float best_q_ = 0.0f, q_initial_ = 0.0f;
};

}  // namespace dtag::cuda
