// The updates of torch.optim's optimisers, maximising, with their default constants (momentum,
// which has none there, is 0.9). The state belongs to one starting point.
#pragma once

#include <cmath>

#include "refine.h"
#include "target.h"

namespace dtag {
inline namespace DTAG_TARGET {

// action [n] += the update number `step` (1, 2, ...) for the gradient [n]. `first` [n] is the
// momentum buffer or Adam's first moment, `second` [n] the mean square; both start as zeros.
inline void add_update(const Options& options, int step, const float* gradient, int n, float* first,
                       float* second, float* action) {
  constexpr float epsilon = 1e-8f;
  const auto step_size = static_cast<float>(options.step_size);
  switch (options.optimizer) {
    case Optimizer::sgd:
      for (int k = 0; k < n; ++k) action[k] += step_size * gradient[k];
      return;
    case Optimizer::momentum:
      for (int k = 0; k < n; ++k) {
        first[k] = 0.9f * first[k] + gradient[k];
        action[k] += step_size * first[k];
      }
      return;
    case Optimizer::rmsprop: {
      constexpr double alpha = 0.99;
      for (int k = 0; k < n; ++k) {
        second[k] = static_cast<float>(alpha) * second[k] +
                    static_cast<float>(1 - alpha) * (gradient[k] * gradient[k]);
        action[k] += step_size * gradient[k] / (std::sqrt(second[k]) + epsilon);
      }
      return;
    }
    case Optimizer::adam: {
      constexpr double beta1 = 0.9, beta2 = 0.999;
      const auto scale = static_cast<float>(options.step_size / (1 - std::pow(beta1, step)));
      const auto correction = static_cast<float>(1 - std::pow(beta2, step));
      for (int k = 0; k < n; ++k) {
        first[k] = static_cast<float>(beta1) * first[k] +
                   static_cast<float>(1 - beta1) * gradient[k];
        second[k] = static_cast<float>(beta2) * second[k] +
                    static_cast<float>(1 - beta2) * (gradient[k] * gradient[k]);
        action[k] += scale * first[k] / (std::sqrt(second[k] / correction) + epsilon);
      }
      return;
    }
  }
}

}  // namespace DTAG_TARGET
}  // namespace dtag
