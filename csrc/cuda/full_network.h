// The full network at the action, by the same threads: for rows that the regions do not suit, and for
// numbers that are not finite.
#pragma once

#include "job.h"
#include "listed.h"
#include "memory.h"
#include "step.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class FullNetwork : public Listed<actions, Precision, Team> {
 public:
  using Base = Listed<actions, Precision, Team>;
  using Base::Base;
  using typename Base::Unit;
  using typename Base::Weight;
  static constexpr int units = Base::units;

 protected:
  using Base::at_;
  using Base::critic_;
  using Base::deep;
  using Base::first_layer;
  using Base::gather_action;
  using Base::get_output;
  using Base::in_head;
  using Base::load_first;
  using Base::sums_;
  using Base::team_;
  using Base::width;
  using Base::own;

  // sum over i < n of x[i] * rows[i, the thread's units]
  DTAG_BOTH void full_product(const void* matrix, int row, int n, const float* x,
                              const Seat& seat, float (&sum)[units]) const {
    const Weight* const rows =
        static_cast<const Weight*>(matrix) + row * width() + in_head(seat);
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int i = 0; i < n; ++i) {
      Weights<Weight, units> w;
      w.stream(rows + i * width());
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) sum[u] = fmaf(x[i], w[u], sum[u]);
    }
  }

  // The same by the full network, at the action. Padding stays out of it: where a number is not
  // finite its zeros would become NaN.
  DTAG_BOTH void evaluate_full() {
    const float negative_slope = critic_.negative_slope;
    const bool two = deep();
    float x[actions];
    gather_action(x);
    team_.each([&](Unit& thread, const Seat& here) {
      const Seat seat = anew(here);
      float share[units], z[units];
      load_shared(own(at_.share, seat), share, far_units);
      first_layer(share, x, seat, thread, z);
      for (int u = 0; u < units; ++u) {
        const bool real = in_head(seat) + to_unit(u) < critic_.first_units;
        thread.kept[u] = real ? slope_at(z[u], negative_slope) : 0.0f;
        thread.top[u] = real ? activation(z[u], negative_slope) : 0.0f;
      }
      store_shared(own(at_.hidden, seat), thread.top, far_units);
    });
    team_.sync();
    if (two) {
      team_.each([&](Unit& thread, const Seat& here) {
        const Seat seat = anew(here);
        float z[units], output[units];
        load(critic_.second_bias + seat.first, z);
        get_output(thread, seat, output);
        full_product(critic_.transposed, seat.head * width(), critic_.first_units,
                     team_.shared() + at_.hidden + seat.head * width(), seat, z);
        for (int u = 0; u < units; ++u) {
          const bool real = in_head(seat) + to_unit(u) < critic_.top_units;
          thread.top[u] = real ? activation(z[u], negative_slope) : 0.0f;
          z[u] = real ? output[u] * slope_at(z[u], negative_slope) : 0.0f;
        }
        store_shared(own(at_.slope, seat), z, far_units);
      });
      team_.sync();
    }
    team_.reduce(sums_, [&](const Unit& thread, const Seat& here,
                                                   float (&sum)[1 + actions]) {
      const Seat seat = anew(here);
      float back[units], output[units], slope[units], top[units];
      get_output(thread, seat, output);
      for (int u = 0; u < units; ++u) back[u] = two ? 0.0f : output[u];
      if (two)
        full_product(critic_.weight, seat.head * critic_.top_units, critic_.top_units,
                     team_.shared() + at_.slope + seat.head * width(), seat, back);
      for (int u = 0; u < units; ++u) {
        const int k = in_head(seat) + to_unit(u);
        top[u] = k < critic_.top_units ? output[u] : 0.0f;
        slope[u] = k < critic_.first_units ? back[u] * thread.kept[u] : 0.0f;
      }
      sum[0] = sum_units<actions, units>([&](int u) { return top[u]; },
                                [&](int u) { return thread.top[u]; });
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) {
        float w[units];
        load_first(seat, a, w);
        sum[1 + a] =
            sum_units<actions, units>([&](int u) { return slope[u]; }, [&](int u) { return w[u]; });
      }
    });
  }
};

}  // namespace dtag::cuda
