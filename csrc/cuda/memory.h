// Reads of weights: neighbours at once, past the first-level cache where they stream.
#pragma once

#include <cstring>

#include "job.h"
#include "team.h"

namespace dtag::cuda {

DTAG_BOTH float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// Numbers that many rows need again: through the cache. A thread's units, from the first on: pairs of
// neighbours, 32 units apart (team.h); or one unit.
template <int count>
DTAG_BOTH void load(const float* from, float (&into)[count]) {
#ifdef __CUDA_ARCH__
  if constexpr (count == 1) {
    into[0] = __ldg(from);
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      const float2 v = __ldg(reinterpret_cast<const float2*>(from + unit_at(i)));
      into[i] = v.x, into[i + 1] = v.y;
    }
  }
#else
  for (int i = 0; i < count; ++i) into[i] = from[unit_at(i)];
#endif
}

// A row of W_1a.
template <int actions>
DTAG_BOTH void load_row(const float* from, float (&into)[actions]) {
#ifdef __CUDA_ARCH__
#pragma unroll
  for (int a = 0; a < actions; a += 4) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from + a));
    into[a] = v.x;
    if (a + 1 < actions) into[a + 1] = v.y;
    if (a + 2 < actions) into[a + 2] = v.z;
    if (a + 3 < actions) into[a + 3] = v.w;
  }
#else
  for (int a = 0; a < actions; ++a) into[a] = from[a];
#endif
}

// Weights between the hidden layers, which nothing but the second-level cache can hold.
template <int count>
DTAG_BOTH void stream(const float* from, float (&into)[count]) {
#ifdef __CUDA_ARCH__
  if constexpr (count == 1) {
    into[0] = __ldcg(from);
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      const float2 v = __ldcg(reinterpret_cast<const float2*>(from + unit_at(i)));
      into[i] = v.x, into[i + 1] = v.y;
    }
  }
#else
  for (int i = 0; i < count; ++i) into[i] = from[unit_at(i)];
#endif
}

template <int count>
DTAG_BOTH void stream(const uint16_t* from, float (&into)[count]) {
  uint16_t raw[count];
#ifdef __CUDA_ARCH__
  if constexpr (count == 1) {
    raw[0] = __ldcg(from);
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      const unsigned v = __ldcg(reinterpret_cast<const unsigned*>(from + unit_at(i)));
      raw[i] = v & 0xffff, raw[i + 1] = v >> 16;
    }
  }
#else
  for (int i = 0; i < count; ++i) raw[i] = from[unit_at(i)];
#endif
  DTAG_UNROLLED
  for (int i = 0; i < count; ++i) into[i] = from_bfloat16(raw[i]);
}

// Four aligned neighbours.
DTAG_BOTH void stream_four(const float* from, float (&into)[4]) {
#ifdef __CUDA_ARCH__
  const float4 v = __ldcg(reinterpret_cast<const float4*>(from));
  into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
#else
  for (int i = 0; i < 4; ++i) into[i] = from[i];
#endif
}

// By the one thread that uses the counter; without waiting for what it was.
DTAG_BOTH void add(int64_t* counter, int count) {
#ifdef __CUDA_ARCH__
  atomicAdd(reinterpret_cast<unsigned long long*>(counter),
            static_cast<unsigned long long>(count));
#else
  *counter += count;
#endif
}

DTAG_BOTH int bits_of(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

DTAG_BOTH int lowest_bit(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __ffs(static_cast<int>(word)) - 1;
#else
  return __builtin_ctz(word);
#endif
}

}  // namespace dtag::cuda
