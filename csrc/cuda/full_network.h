// The full network at the action, by the same threads: for rows that the regions do not suit, and for
// numbers that are not finite.
#pragma once

#include "job.h"
#include "memory.h"
#include "region.h"
#include "step.h"

namespace dtag::cuda {

template <int actions, typename Precision, typename Team>
class FullNetwork : public Region<actions, Precision, Team> {
 public:
  using Base = Region<actions, Precision, Team>;
  using Base::Base;
  using typename Base::Unit;
  using typename Base::Weight;
  static constexpr int units = Base::units;

 protected:
  using Base::at_;
  using Base::critic_;
  using Base::first_layer;
  using Base::gather;
  using Base::partial;
  using Base::team_;
  using Base::unit;
  using Base::width;
  using Base::own;

  // sum over i < n of x[i] * rows[i, the thread's units]
  DTAG_BOTH void full_product(const void* matrix, int row, int n, const float* x, int t,
                              float (&sum)[units]) const {
    const Weight* const rows = 
        static_cast<const Weight*>(matrix) + row * width() + Place<units>(t).unit();
#ifdef __CUDA_ARCH__
#pragma unroll Team::rows_ahead
#endif
    for (int i = 0; i < n; ++i) {
      float w[units];
      stream<units>(rows + i * width(), w);
      DTAG_UNROLLED
      for (int u = 0; u < units; ++u) sum[u] = fmaf(x[i], w[u], sum[u]);
    }
  }

  // The same by the full network, at the action. Padding stays out of it: where a number is not
  // finite its zeros would become NaN.
  DTAG_BOTH void evaluate_full() {
    const float negative_slope = critic_.negative_slope;
    const bool two = critic_.hidden_layers == 2;
    float x[actions];
    gather(x, [](const Lane& lane) { return lane.action; });
    team_.each([&](Unit& thread, int e, int t) {
      float z[units];
      first_layer(own(at_.share, e, t), x, e, t, z);
      for (int u = 0; u < units; ++u) {
        const bool real = Place<units>(t).unit() + unit_at(u) < critic_.first_units;
        thread.kept[u] = real ? slope_at(z[u], negative_slope) : 0.0f;
        thread.top[u] = real ? activation(z[u], negative_slope) : 0.0f;
        own(at_.hidden, e, t)[unit_at(u)] = thread.top[u];
      }
    });
    team_.sync_block();
    if (two) {
      team_.each([&](Unit& thread, int e, int t) {
        float z[units], output[units];
        load<units>(critic_.second_bias + unit(e, t), z);
        load<units>(critic_.output + unit(e, t), output);
        full_product(critic_.transposed, e * width(), critic_.first_units,
                     team_.shared() + at_.hidden + e * width(), t, z);
        for (int u = 0; u < units; ++u) {
          const bool real = Place<units>(t).unit() + unit_at(u) < critic_.top_units;
          own(at_.slope, e, t)[unit_at(u)] = real ? output[u] * slope_at(z[u], negative_slope) : 0.0f;
          thread.top[u] = real ? activation(z[u], negative_slope) : 0.0f;
        }
      });
      team_.sync_block();
    }
    team_.reduce(partial(), at_.warps_per_head, [&](const Unit& thread, int e, int t,
                                                   float (&sum)[1 + actions]) {
      float back[units], output[units], slope[units], top[units];
      load<units>(critic_.output + unit(e, t), output);
      for (int u = 0; u < units; ++u) back[u] = two ? 0.0f : output[u];
      if (two)
        full_product(critic_.weight, e * critic_.top_units, critic_.top_units,
                     team_.shared() + at_.slope + e * width(), t, back);
      for (int u = 0; u < units; ++u) {
        const int k = Place<units>(t).unit() + unit_at(u);
        top[u] = k < critic_.top_units ? output[u] : 0.0f;
        slope[u] = k < critic_.first_units ? back[u] * thread.kept[u] : 0.0f;
      }
      sum[0] = sum_pairs<units>([&](int u) { return top[u]; },
                                [&](int u) { return thread.top[u]; });
      const float* const weights = critic_.action_weights + this->template by_groups<actions>(e, t);
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) {
        float w[units];
        load<units>(weights + a * group_units, w);
        sum[1 + a] =
            sum_pairs<units>([&](int u) { return slope[u]; }, [&](int u) { return w[u]; });
      }
    });
  }
};

}  // namespace dtag::cuda
