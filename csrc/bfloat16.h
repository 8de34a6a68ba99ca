// Numbers of 16 bits: the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

namespace dtag {
inline namespace DTAG_TARGET {

// The upper half of the nearest float that has zeros in the lower one; even on a tie.
inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : rounded);
}

inline float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace DTAG_TARGET
}  // namespace dtag
