// From the heads' values to the ensemble's Q, and its derivative by each of them.
#pragma once

#include <cmath>

#include "refine.h"
#include "target.h"

namespace dtag {
inline namespace DTAG_TARGET {

// Q of the heads' values q [E]; factor [E] = dQ/dq. A NaN counts as the lowest value of all.
inline float combine(const Options& options, const float* q, int heads, float* factor) {
  if (options.ensemble == Ensemble::min) {
    int lowest = 0;  // the first of equal ones
    for (int e = 1; e < heads; ++e)
      if (q[e] < q[lowest] || (std::isnan(q[e]) && !std::isnan(q[lowest]))) lowest = e;
    for (int e = 0; e < heads; ++e) factor[e] = e == lowest ? 1.0f : 0.0f;
    return q[lowest];
  }
  const auto count = static_cast<float>(heads);
  float mean = 0.0f;
  for (int e = 0; e < heads; ++e) mean += q[e];
  mean /= count;
  for (int e = 0; e < heads; ++e) factor[e] = 1.0f / count;
  if (options.ensemble == Ensemble::mean) return mean;

  float variance = 0.0f;
  float rounding = 0.0f;  // what the residuals add up to; 0 but for the mean's rounding
  for (int e = 0; e < heads; ++e) {
    variance += (q[e] - mean) * (q[e] - mean);
    rounding += (q[e] - mean) / count;
  }
  variance /= count;
  if (variance == 0.0f) return mean;  // the deviation's gradient is taken as 0 there
  const float deviation = std::sqrt(variance);
  // Where the heads nearly agree the rounding is no longer small beside the residuals: centre them.
  for (int e = 0; e < heads; ++e)
    factor[e] -= options.lcb_k * (q[e] - mean - rounding) / (count * deviation);
  return mean - options.lcb_k * deviation;
}

}  // namespace DTAG_TARGET
}  // namespace dtag
