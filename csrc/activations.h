// Activations: each gives its value and its slope at z. Comparisons are written so that a NaN
// stays a NaN, and so that ReLU'(0) = 0.
#pragma once

#include <cmath>

#include "refine.h"
#include "target.h"

namespace dtag {
inline namespace DTAG_TARGET {

struct ValueAndSlope {
  float value;
  float slope;
};

inline float sigmoid(float z) { return 1.0f / (1.0f + std::exp(-z)); }

template <Activation activation>
inline ValueAndSlope activate(float z, float negative_slope) {
  if constexpr (activation == Activation::relu) {
    return {z <= 0.0f ? 0.0f : z, z <= 0.0f ? 0.0f : 1.0f};
  } else if constexpr (activation == Activation::leaky_relu) {
    return {z > 0.0f ? z : z * negative_slope, z > 0.0f ? 1.0f : negative_slope};
  } else if constexpr (activation == Activation::tanh) {
    const float t = std::tanh(z);
    return {t, 1.0f - t * t};
  } else if constexpr (activation == Activation::gelu) {
    // z * Phi(z), Phi the normal distribution function
    constexpr float sqrt_half = 0.70710678118654752f;
    constexpr float density_at_0 = 0.39894228040143268f;
    const float phi = 0.5f * (1.0f + std::erf(z * sqrt_half));
    return {z * phi, phi + z * density_at_0 * std::exp(-0.5f * z * z)};
  } else if constexpr (activation == Activation::silu) {
    const float s = sigmoid(z);
    return {z * s, s * (1.0f + z * (1.0f - s))};
  } else if constexpr (activation == Activation::mish) {
    // z * t with t = tanh(log(1 + e)) = n / (n + 2), e = exp(z), n = e * (e + 2); n would overflow
    // long after t has become 1.
    if (z > 20.0f) return {z, 1.0f};
    const float e = std::exp(z);
    const float n = e * (e + 2.0f);
    const float t = n / (n + 2.0f);
    const float one_minus_t = 2.0f / (n + 2.0f);
    return {z * t, t + z * (e / (1.0f + e)) * one_minus_t * (1.0f + t)};
  } else {
    static_assert(activation == Activation::elu);
    return {z <= 0.0f ? std::expm1(z) : z, z <= 0.0f ? std::exp(z) : 1.0f};
  }
}

template <Activation activation>
void activate_all(const float* z, int n, float negative_slope, float* value, float* slope) {
  for (int j = 0; j < n; ++j) {
    const ValueAndSlope at = activate<activation>(z[j], negative_slope);
    value[j] = at.value;
    slope[j] = at.slope;
  }
}

// value [n] and slope [n] at z [n]; value may be z itself.
inline void activate_all(Activation activation, const float* z, int n, float negative_slope,
                         float* value, float* slope) {
  switch (activation) {
    case Activation::relu:
      return activate_all<Activation::relu>(z, n, negative_slope, value, slope);
    case Activation::leaky_relu:
      return activate_all<Activation::leaky_relu>(z, n, negative_slope, value, slope);
    case Activation::tanh:
      return activate_all<Activation::tanh>(z, n, negative_slope, value, slope);
    case Activation::gelu:
      return activate_all<Activation::gelu>(z, n, negative_slope, value, slope);
    case Activation::silu:
      return activate_all<Activation::silu>(z, n, negative_slope, value, slope);
    case Activation::mish:
      return activate_all<Activation::mish>(z, n, negative_slope, value, slope);
    case Activation::elu:
      return activate_all<Activation::elu>(z, n, negative_slope, value, slope);
  }
}

}  // namespace DTAG_TARGET
}  // namespace dtag
