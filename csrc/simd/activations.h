// Activations of whole vectors: value and slope at z, within a few units in the last place of
// float32 (of gelu: of its normal distribution function, absolutely). A NaN stays a NaN, and
// ReLU'(0) = 0.
#pragma once

#include "../refine.h"
#include "vec.h"

namespace dtag {
inline namespace DTAG_TARGET {

inline Vec negate(Vec a) { return zero() - a; }

// a polynomial in x with its coefficients from the constant one upwards
template <int n>
inline Vec polynomial(Vec x, const float (&coefficients)[n]) {
  Vec sum = broadcast(coefficients[n - 1]);
  for (int i = n - 2; i >= 0; --i) sum = fma(sum, x, broadcast(coefficients[i]));
  return sum;
}

// exp(x) = scale * (1 + rest), scale a power of two; x is at most 88, and taken as -87 below that.
struct Exponential {
  Vec scale;
  Vec rest;
};
inline Exponential exponential(Vec x) {
  constexpr float lowest = -87.0f;
  x = select(x < broadcast(lowest), broadcast(lowest), x);
  // x = n * log(2) + r. Adding 1.5 * 2^23 rounds to a whole number; log(2) comes in two parts, of
  // which the first has so few digits that its multiples are exact.
  const Vec magic = broadcast(12582912.0f);
  const Vec n = fma(x, broadcast(1.44269504f), magic) - magic;
  const Vec r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  constexpr float taylor[] = {1.0f / 2,   1.0f / 6,   1.0f / 24,
                              1.0f / 120, 1.0f / 720, 1.0f / 5040};
  return {power_of_two(n), fma(r * r, polynomial(r, taylor), r)};
}

// exp(x) for x <= 88; 0 below -87
inline Vec exp(Vec x) {
  const Exponential e = exponential(x);
  return select(x < broadcast(-87.0f), zero(), fma(e.scale, e.rest, e.scale));
}

// exp(x) - 1 for x <= 88
inline Vec expm1(Vec x) {
  const Exponential e = exponential(x);
  return fma(e.scale, e.rest, e.scale - broadcast(1.0f));
}

struct VecValueAndSlope {
  Vec value;
  Vec slope;
};

template <Activation activation>
inline VecValueAndSlope activate(Vec z, Vec negative_slope) {
  const Vec one = broadcast(1.0f);
  if constexpr (activation == Activation::relu) {
    const Mask off = z <= zero();
    return {select(off, zero(), z), select(off, zero(), one)};
  } else if constexpr (activation == Activation::leaky_relu) {
    const Mask on = zero() < z;
    return {select(on, z, z * negative_slope), select(on, one, negative_slope)};
  } else if constexpr (activation == Activation::tanh) {
    const Vec e = expm1(broadcast(-2.0f) * magnitude(z));
    const Vec t = negate(e) / (e + broadcast(2.0f));  // tanh(abs(z))
    return {select(z < zero(), negate(t), t), fma(negate(t), t, one)};
  } else if constexpr (activation == Activation::gelu) {
    // z * Phi(z), Phi the normal distribution function: Phi(-x) = density(x) * mills(x), x >= 0,
    // where mills is smooth and, as the density falls, may be approximate for large x.
    constexpr float mills[] = {4.99999996e-01f,  -3.98941795e-01f, 2.49991102e-01f,
                               -1.32916898e-01f, 6.22623906e-02f,  -2.60691793e-02f,
                               9.65980570e-03f,  -3.05535555e-03f, 7.79676687e-04f,
                               -1.49791873e-04f, 1.98931462e-05f,  -1.60367445e-06f,
                               5.85336586e-08f};
    const Vec x = magnitude(z);
    const Vec six = broadcast(6.0f);
    const Vec bell = exp(broadcast(-0.5f) * z * z);
    const Vec tail = bell * polynomial(select(six < x, six, x), mills);
    const Vec phi = select(zero() < z, one - tail, tail);
    return {z * phi, fma(z, broadcast(0.398942280f) * bell, phi)};
  } else if constexpr (activation == Activation::silu) {
    const Vec e = exp(negate(magnitude(z)));
    const Vec large = one / (one + e);
    const Vec small = e * large;
    const Mask negative = z < zero();
    const Vec s = select(negative, small, large);  // the sigmoid, and 1 - s its mirror image
    return {z * s, s * fma(z, select(negative, large, small), one)};
  } else if constexpr (activation == Activation::mish) {
    // z * t with t = tanh(log(1 + e)) = n / (n + 2), e = exp(z), n = e * (e + 2); n would overflow
    // long after t has become 1.
    const Mask linear = broadcast(20.0f) < z;
    const Vec e = exp(select(linear, zero(), z));
    const Vec two = broadcast(2.0f);
    const Vec n = e * (e + two);
    const Vec share = one / (n + two);
    const Vec t = n * share;
    const Vec sigmoid = e / (one + e);
    const Vec slope = fma(z * sigmoid * (two * share), one + t, t);
    return {select(linear, z, z * t), select(linear, one, slope)};
  } else {
    static_assert(activation == Activation::elu);
    const Mask on = zero() < z;
    const Vec e = expm1(select(on, zero(), z));
    return {select(on, z, e), select(on, one, e + one)};
  }
}

// value [n] and slope [n] at z [n], n a multiple of 16; value may be z itself.
template <Activation activation>
void activate_row(const float* z, int n, float negative_slope, float* value, float* slope) {
  const Vec negative = broadcast(negative_slope);
  for (int j = 0; j < n; j += Vec::lanes) {
    const VecValueAndSlope at = activate<activation>(load(z + j), negative);
    store(value + j, at.value);
    store(slope + j, at.slope);
  }
}

using ActivateRow = void (*)(const float*, int, float, float*, float*);
inline ActivateRow activate_row_of(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return activate_row<Activation::relu>;
    case Activation::leaky_relu:
      return activate_row<Activation::leaky_relu>;
    case Activation::tanh:
      return activate_row<Activation::tanh>;
    case Activation::gelu:
      return activate_row<Activation::gelu>;
    case Activation::silu:
      return activate_row<Activation::silu>;
    case Activation::mish:
      return activate_row<Activation::mish>;
    case Activation::elu:
      return activate_row<Activation::elu>;
  }
  return nullptr;
}

}  // namespace DTAG_TARGET
}  // namespace dtag
