// What threads of dense tiles do with words and bytes: two numbers of bfloat16 in a word, and copies to
// shared memory that are waited for later.
#pragma once

#include <cmath>
#include <cstring>

#include "half.h"
#include "job.h"

namespace dtag::cuda {

#ifndef __CUDACC__
// Rounded to nearest, even on a tie; a NaN is 0x7fff.
inline uint32_t bfloat16_of(float x) {
  const uint32_t word = bits_of_float(x);
  return x != x ? 0x7fffu : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}
#endif

// Both rounded to bfloat16, the first one in the lower half.
DTAG_BOTH uint32_t pair_of(float first, float second) {
#ifdef __CUDACC__
  uint32_t pair = 0;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#endif
  return pair;
#else
  return bfloat16_of(first) | bfloat16_of(second) << 16;
#endif
}
// The same of max(x, 0); a NaN stays one.
DTAG_BOTH uint32_t positive_pair_of(float first, float second) {
#ifdef __CUDACC__
  uint32_t pair = 0;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#endif
  return pair;
#else
  return pair_of(first <= 0.0f ? 0.0f : first, second <= 0.0f ? 0.0f : second);
#endif
}
// Ones in the half of a word whose number is not zero: of two of bfloat16, none of them negative.
DTAG_BOTH uint32_t nonzero_halves(uint32_t pair) {
  const uint32_t signs = pair + 0x7fff7fffu;
#ifdef __CUDA_ARCH__
  uint32_t halves;  // of either number the sign of its higher byte, two bytes of it
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(halves) : "r"(signs));
  return halves;
#else
  return (signs >> 15 & 1) * 0xffffu | (signs >> 31) * 0xffff0000u;
#endif
}

// Ones in the half of a word whose number has its sign set.
DTAG_BOTH uint32_t negative_halves(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t halves;  // of each number its highest byte's sign, two bytes of it
  asm("prmt.b32 %0, %1, %2, 0xffbb;" : "=r"(halves) : "r"(bits_of_float(first)), "r"(bits_of_float(second)));
  return halves;
#else
  return (bits_of_float(first) >> 31) * 0xffffu | (bits_of_float(second) >> 31) * 0xffff0000u;
#endif
}

// min(x, 0), or NaN.
DTAG_BOTH float negative_part(float x) {
#ifdef __CUDA_ARCH__
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(x), "f"(0.0f));
  return least;
#else
  return x > 0.0f ? 0.0f : x;
#endif
}

// Eight bytes to shared memory.
DTAG_BOTH void store_two(char* to, const uint32_t (&words)[2]) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
#else
  std::memcpy(to, words, 8);
#endif
}

// Sixteen bytes to shared memory; they are there after copies_wait.
DTAG_BOTH void copy_later(void* to, const void* from) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
#else
  std::memcpy(to, from, 16);
#endif
}
// What was sent for since the last time is one group.
DTAG_BOTH void copies_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until the thread's copies are there, all but its last `pending` groups.
template <int pending>
DTAG_BOTH void copies_wait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace dtag::cuda
