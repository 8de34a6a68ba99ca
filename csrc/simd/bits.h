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

inline int lowest_bit(uint32_t x) {
#if defined(__GNUC__)
  return __builtin_ctz(x);
#else
  int position = 0;
  while ((x >> position & 1) == 0) ++position;
  return position;
#endif
}

// Appends the positions of the bits, plus `from`, to index; returns its new length.
inline int list_bits(uint32_t x, int from, int32_t* index, int count) {
  for (; x != 0; x &= x - 1) index[count++] = from + lowest_bit(x);
  return count;
}

}  // namespace DTAG_TARGET
}  // namespace dtag
