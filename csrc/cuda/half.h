// Half floats, and numbers of float32 as two of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "job.h"

namespace dtag::cuda {

DTAG_BOTH uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
DTAG_BOTH float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

#ifndef __CUDA_ARCH__
inline uint16_t to_half(float x) {
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // beyond 65504
  if (size < 0x38800000)  // below 2^-14
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyintf(float_of_bits(size) * 0x1p24f)));
  return static_cast<uint16_t>(sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10)));
}
#endif
DTAG_BOTH float from_half(uint16_t half) {
#ifdef __CUDA_ARCH__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
#else
  const uint32_t size = half & 0x7fff;
  const float x = size < 0x400    ? static_cast<float>(size) * 0x1p-24f
                  : size < 0x7c00 ? float_of_bits((size << 13) + (112u << 23))
                                  : float_of_bits(0x7f800000 | (size & 0x3ff) << 13);
  return half & 0x8000 ? -x : x;
#endif
}

// A pair of numbers in two pairs of half floats, whose sums they are but for some 2^-22; the first in the
// lower half of each word.
DTAG_BOTH void split(float first, float second, uint32_t& large, uint32_t& small) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(large) : "f"(second), "f"(first));
  const float rest = first - from_half(static_cast<uint16_t>(large));
  const float rest_of_second = second - from_half(static_cast<uint16_t>(large >> 16));
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(small) : "f"(rest_of_second), "f"(rest));
#else
  const uint16_t a = to_half(first), b = to_half(second);
  large = a | static_cast<uint32_t>(b) << 16;
  small = to_half(first - from_half(a)) | static_cast<uint32_t>(to_half(second - from_half(b))) << 16;
#endif
}

// A power of two by which numbers as large as this become some 2^14, but by 2^100 at most.
DTAG_BOTH float scale_for(float largest) {
  const int exponent = static_cast<int>(bits_of_float(largest) >> 23 & 0xff);
  if (exponent == 0 || exponent == 0xff) return 1.0f;
  const int wanted = 2 * 127 + 14 - exponent;
  return float_of_bits(static_cast<uint32_t>(wanted < 27 ? 27 : wanted > 227 ? 227 : wanted) << 23);
}
DTAG_BOTH float inverse_of_power(float power) {
  return float_of_bits((2u * 127 << 23) - bits_of_float(power));
}

}  // namespace dtag::cuda
