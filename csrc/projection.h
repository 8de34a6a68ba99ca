// Into the ball around the starting point, then into the box. A NaN stays a NaN.
#pragma once

#include <cmath>

#include "refine.h"
#include "target.h"
#include "vector_loops.h"

namespace dtag {
inline namespace DTAG_TARGET {

inline void into_box(const Options& options, int n, float* action) {
  if (options.low == nullptr) return;
  for (int k = 0; k < n; ++k) {
    if (action[k] < options.low[k]) action[k] = options.low[k];
    if (action[k] > options.high[k]) action[k] = options.high[k];
  }
}

// initial [n], already in the box; move [n] is scratch.
inline void project(const Options& options, const float* initial, int n, float* move,
                    float* action) {
  if (options.max_distance >= 0.0f) {
    for (int k = 0; k < n; ++k) move[k] = action[k] - initial[k];
    const float length = std::sqrt(dot(move, move, n));
    if (!(length <= options.max_distance)) {
      const float shrink = options.max_distance / length;
      for (int k = 0; k < n; ++k) action[k] = initial[k] + move[k] * shrink;
    }
  }
  into_box(options, n, action);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
