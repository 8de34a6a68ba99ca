// The mathematics of a step, for one dimension of the action or one hidden unit at a time: plain
// functions that a thread of the device calls, and tests on the host.
//
// They say the same as ../optimizer.h, ../projection.h, ../ensemble.h and ../climb.h do for a whole
// action in one thread.
#pragma once

#include <cmath>
#include <cstring>

#include "job.h"

namespace dtag::cuda {

DTAG_BOTH bool is_finite(float x) { return x * 0.0f == 0.0f; }
DTAG_BOTH float minus_infinity() { return -HUGE_VALF; }
DTAG_BOTH float or_minus_infinity(float q) { return is_finite(q) ? q : minus_infinity(); }

// ---- a hidden unit ----

// ReLU'(0) = 0; a NaN stays a NaN.
DTAG_BOTH bool is_active(float z) { return !(z <= 0.0f); }
DTAG_BOTH float slope_at(float z, float negative_slope) {
  return is_active(z) ? 1.0f : negative_slope;
}
DTAG_BOTH float activation(float z, float negative_slope) {
  return is_active(z) ? z : negative_slope == 0.0f ? 0.0f : z * negative_slope;
}
// w * act'(z); times z it is w * act(z).
DTAG_BOTH float effective_weight(float w, float z, float negative_slope) {
  return is_active(z) ? w : w * negative_slope;
}

// What a first-layer unit adds to the maps above it where its slope changes: its row of W_2^T, to each
// column by a term. To c it is the change times z_1 at the base, to M's columns the change times its
// weights for the action.
template <int columns, int units, typename Weights, int terms>
DTAG_BOTH void add_row(const float (&term)[terms], const Weights& weights,
                       float (&map)[columns][units]) {
  static_assert(columns <= terms, "a term a column");
  DTAG_UNROLLED
  for (int i = 0; i < columns; ++i) {
    DTAG_UNROLLED
    for (int u = 0; u < units; ++u) map[i][u] = fmaf(term[i], weights[u], map[i][u]);
  }
}

// The sum of x(u) * y(u) over a thread's units; twice as many as others hold by halves, as two of these
// add it up, and the lanes of a warp what their threads found.
template <int actions, int units, int first = 0, typename X, typename Y>
DTAG_BOTH float sum_units(X x, Y y) {
  if constexpr (units > units_per_thread(actions)) {
    constexpr int half = units / 2;
    return sum_units<actions, half, first>(x, y) + sum_units<actions, half, first + half>(x, y);
  } else {
    float sum = x(first) * y(first);
    DTAG_UNROLLED
    for (int u = first + 1; u < first + units; ++u) sum = fmaf(x(u), y(u), sum);
    return sum;
  }
}

// A thread's share of q, sum[0], and of its gradient at base + d: sum over its units of
// w act(c + M d). map: c, then M's columns.
template <int actions, int units>
DTAG_BOTH void evaluate_units(const float (&map)[1 + actions][units], const float (&d)[actions],
                              const float (&output)[units], float negative_slope,
                              float (&sum)[1 + actions]) {
  float effective[units];
  float z[units];
  DTAG_UNROLLED
  for (int u = 0; u < units; ++u) {
    z[u] = map[0][u];
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) z[u] = fmaf(map[1 + a][u], d[a], z[u]);
    effective[u] = effective_weight(output[u], z[u], negative_slope);
  }
  sum[0] = sum_units<actions, units>([&](int u) { return effective[u]; }, [&](int u) { return z[u]; });
  DTAG_UNROLLED
  for (int a = 0; a < actions; ++a)
    sum[1 + a] =
        sum_units<actions, units>([&](int u) { return effective[u]; }, [&](int u) { return map[1 + a][u]; });
}

// ---- the heads ----

// The ensemble's Q, and what its derivative by each head's q is made of.
struct Combined {
  float q;
  int lowest;     // of "min": the head that counts
  float mean;     // of the others: (q_e - mean - rounding) * spread is taken off 1 / E
  float rounding;
  float spread;
  float share;    // 1 / E
};

// q_of(e): the value of head e. A NaN counts as the lowest value of all.
template <typename Values>
DTAG_BOTH Combined combine(Ensemble ensemble, float lcb_k, int heads, Values q_of) {
  if (ensemble == Ensemble::min) {
    Combined found{q_of(0), 0, 0.0f, 0.0f, 0.0f, 0.0f};
    for (int e = 1; e < heads; ++e) {
      const float q = q_of(e);
      if (q < found.q || (q != q && found.q == found.q)) {
        found.q = q;
        found.lowest = e;
      }
    }
    return found;
  }
  const float count = static_cast<float>(heads);
  float mean = 0.0f;
  for (int e = 0; e < heads; ++e) mean += q_of(e);
  mean /= count;
  Combined found{mean, -1, mean, 0.0f, 0.0f, 1.0f / count};
  if (ensemble == Ensemble::mean) return found;
  float variance = 0.0f;
  float rounding = 0.0f;  // what the residuals add up to; 0 but for the mean's rounding
  for (int e = 0; e < heads; ++e) {
    const float residual = q_of(e) - mean;
    variance += residual * residual;
    rounding += residual / count;
  }
  variance /= count;
  if (variance == 0.0f) return found;  // the deviation's gradient is taken as 0 there
  const float deviation = sqrtf(variance);
  found.q = mean - lcb_k * deviation;
  // Where the heads nearly agree the rounding is no longer small beside the residuals: centre them.
  found.rounding = rounding;
  found.spread = lcb_k / (count * deviation);
  return found;
}

// dQ/dq_e
DTAG_BOTH float factor(const Combined& combined, int e, float q) {
  if (combined.lowest >= 0) return e == combined.lowest ? 1.0f : 0.0f;
  if (combined.spread == 0.0f) return combined.share;
  return combined.share - combined.spread * (q - combined.mean - combined.rounding);
}

// ---- a dimension of the action ----

DTAG_BOTH float into_box(float low, float high, float x) {
  if (x < low) x = low;
  if (x > high) x = high;
  return x;
}

// The same but for a NaN, which becomes a number.
DTAG_BOTH float clamped(float low, float high, float x) { return fminf(fmaxf(x, low), high); }

// What changes from step to step of an optimiser, the same in every dimension.
struct Rates {
  float scale;              // of the update
  float correction = 1.0f;  // of Adam's second moment

  // Of step 1, 2, ...
  DTAG_BOTH Rates(const Settings& settings, int step) : scale(settings.step_size) {
    if (settings.optimizer != Optimizer::adam) return;
    // 1 - beta^step = -expm1(step log beta)
    constexpr float log_beta1 = -0.10536051565782631f, log_beta2 = -0.0010005003335835335f;
    scale = settings.step_size / -expm1f(static_cast<float>(step) * log_beta1);
    correction = -expm1f(static_cast<float>(step) * log_beta2);
  }
};

// The update for a gradient; `first` is the momentum buffer or Adam's first moment, `second` the
// mean square, and both start as 0.
DTAG_BOTH float update(Optimizer optimizer, const Rates& rates, float gradient, float& first,
                       float& second) {
  constexpr float epsilon = 1e-8f;
  switch (optimizer) {
    case Optimizer::sgd:
      return rates.scale * gradient;
    case Optimizer::momentum:
      first = 0.9f * first + gradient;
      return rates.scale * first;
    case Optimizer::rmsprop: {
      constexpr double alpha = 0.99;
      second = static_cast<float>(alpha) * second +
               static_cast<float>(1 - alpha) * (gradient * gradient);
      return rates.scale * gradient / (sqrtf(second) + epsilon);
    }
    case Optimizer::adam: {
      constexpr double beta1 = 0.9, beta2 = 0.999;
      first = static_cast<float>(beta1) * first + static_cast<float>(1 - beta1) * gradient;
      second = static_cast<float>(beta2) * second +
               static_cast<float>(1 - beta2) * (gradient * gradient);
      return rates.scale * first / (sqrtf(second / rates.correction) + epsilon);
    }
  }
  return 0.0f;
}

// ---- when a walk gives way ----

// Of a row of weights added to `columns` vectors: reading it takes as long as eight multiplications.
DTAG_BOTH float row_cost(int columns) { return columns < 8 ? 8.0f : static_cast<float>(columns); }

}  // namespace dtag::cuda
