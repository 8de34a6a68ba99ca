// How the regions follow the action: corrected where signs change, built anew, or left aside for a step
// that the full network takes, whichever costs less; as ../simd/walk.h does.
#pragma once

#include "full_network.h"
#include "job.h"
#include "step.h"
#include "team.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class Following : public FullNetwork<actions, Precision, Team> {
 public:
  using Base = FullNetwork<actions, Precision, Team>;
  using Base::Base;

 protected:
  using Base::both_sums_;
  using Base::bring_map;
  using Base::critic_;
  using Base::deep;
  using Base::evaluate_full;
  using Base::evaluate_in_region;
  using Base::job_;
  using Base::look_from_base;
  using Base::mark;
  using Base::probe;
  using Base::row_;
  using Base::sums_;
  using Base::take_signs;
  using Base::team_;

  // Place the regions around the action: all but the map. What that costs, and so how patient to be,
  // is counted the first time. marked: whether others may still be reading what was marked before.
  DTAG_BOTH void place(bool marked) {
    look_from_base();
    corrections_ = 0;
    lost_ = 0.0f;
    if (deep()) {
      if (marked) team_.sync();
      const int built = mark(true);
      if (placed()) return;
      build_cost_ = row_cost(1 + actions) * static_cast<float>(built);
      patience_ = build_cost_;
    } else {
      build_cost_ = 0.0f;
    }
  }

  DTAG_BOTH bool placed() const { return build_cost_ >= 0.0f; }

  // Of a step by the full network: its rows forwards and backwards.
  DTAG_BOTH float full_cost() const {
    return row_cost(1) *
           static_cast<float>(critic_.heads * (critic_.first_units + critic_.top_units));
  }

  // Each warp's sums of q and its gradient at the action, seen by all. draws: a number too, if it can.
  DTAG_BOTH void evaluate_sums(bool entering, bool draws) {
    sums_ = both_sums_ - sums_;  // the others, which nobody reads any more
    full_ = !walks_;
    if (stands_) {
      drawn_ = drawn_ || draws;
      if (!probe(draws) || !deep()) return;
      follow(entering);
    } else if (walks_) {
      if (Team::queued || !built_) {
        place(false);
        if (Team::queued || given_)
          take_signs();
        else if (deep())
          bring_map(true);
        given_ = false;
      }
      stands_ = true;
    }
    if (full_)
      evaluate_full();
    else
      evaluate_in_region();
    team_.sync();
  }

  // Signs have changed: bring the regions to the action, or decide to do without them there.
  DTAG_BOTH void follow(bool entering) {
    const int changes = mark(false);
    const float cost = row_cost(1 + actions) * static_cast<float>(changes);
    bool places;
    if (cost >= fminf(build_cost_, full_cost())) {
      places = entering || build_cost_ <= full_cost();
      if (!places && lost_ < patience_) {
        lost_ += full_cost();
        full_ = true;
        add_to(job_.result.dense_steps, 1);
        return;
      }
      if (!places) patience_ *= 2.0f;
      places = true;
    } else {
      corrections_ += changes;
      // Each correction rounds. After this many a map is built anew, for some twice what they cost: with
      // four times as many, long walks erred by thrice as much as the reference.
      places = 4 * corrections_ > critic_.heads * critic_.first_units;
    }
    if (places)
      place(true);
    else
      add_to(job_.result.flips, changes);
    bring_map(places);
  }

  DTAG_BOTH void add_to(int64_t* counts, int count) {
    team_.once([&](const Lane&, int k) {
      if (k == 0) add(counts + row_, count);
    });
  }

  bool walks_ = false;  // or the full network takes every step
  bool full_ = false;   // the full network takes this step
  bool built_ = false;  // the first map was built by a cluster
  bool given_ = false;  // it was built before the kernel, and is there
  bool stands_ = false;  // there are regions, with their map
  bool drawn_ = false;   // the number of a row was drawn, after this one
  int corrections_ = 0;  // since the regions were placed
  float build_cost_ = -1.0f;  // negative: there are no regions
  float patience_ = 0.0f, lost_ = 0.0f;
};

}  // namespace dtag::cuda
