// Sets of units as bits of words.
#pragma once

#include <cstdint>

#include "../target.h"

namespace dtag {
inline namespace DTAG_TARGET {

inline uint32_t bits_of(int32_t word) { return static_cast<uint32_t>(word); }
inline int32_t word(uint32_t bits) { return static_cast<int32_t>(bits); }

// The lowest `count` bits of `all`; none if count is negative.
inline uint32_t first_bits(int count, int all) {
  return count <= 0 ? 0 : (1u << (count < all ? count : all)) - 1;
}

inline int popcount(uint32_t x) {
#if defined(__GNUC__)
  return __builtin_popcount(x);
#else
  int count = 0;
  for (; x != 0; x &= x - 1) ++count;
  return count;
#endif
}

}  // namespace DTAG_TARGET
}  // namespace dtag
