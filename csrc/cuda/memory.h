// Reads of weights: neighbours at once, and those that stream so that they push nothing else out of
// the first-level cache.
#pragma once

#include <cstring>
#include <type_traits>

#include "job.h"
#include "team.h"

namespace dtag::cuda {

// `bytes` further on. Not negative, which takes fewer instructions to add.
template <typename Number>
DTAG_BOTH const Number* beyond(const Number* from, int bytes) {
  return reinterpret_cast<const Number*>(reinterpret_cast<const char*>(from) +
                                         static_cast<uint32_t>(bytes));
}

// Numbers that many rows need again. A thread's units, from the first on: pairs of neighbours, 32
// units apart (team.h).
template <int count>
DTAG_BOTH void load(const float* from, float (&into)[count]) {
#ifdef __CUDA_ARCH__
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    const float2 v = __ldg(reinterpret_cast<const float2*>(from + unit_at(i)));
    into[i] = v.x, into[i + 1] = v.y;
  }
#else
  for (int i = 0; i < count; ++i) into[i] = from[unit_at(i)];
#endif
}

// The weights of a thread's units in a row of a matrix between the hidden layers, as they lie in
// memory, so that those under way take no more registers than that. They are evicted first: what they
// are needed for again, soon, is the rows of other blocks on the same multiprocessor.
template <typename Weight, int units>
struct Weights;

template <int units>
struct Weights<float, units> {
  float numbers[units];

  DTAG_BOTH void stream(const float* from) {
#ifdef __CUDA_ARCH__
    if constexpr (units == 1) {
      asm("ld.global.nc.L1::evict_first.f32 %0, [%1];" : "=f"(numbers[0]) : "l"(from));
      return;
    }
#pragma unroll
    for (int i = 0; i + 1 < units; i += 2)
      asm("ld.global.nc.L1::evict_first.v2.f32 {%0, %1}, [%2];"
          : "=f"(numbers[i]), "=f"(numbers[i + 1])
          : "l"(from + unit_at(i)));
#else
    for (int i = 0; i < units; ++i) numbers[i] = from[unit_at(i)];
#endif
  }

  // From shared memory.
  DTAG_BOTH void take(const float* from) {
    DTAG_UNROLLED
    for (int i = 0; i < units; i += 2) {
#ifdef __CUDA_ARCH__
      const float2 v = *reinterpret_cast<const float2*>(from + unit_at(i));
      numbers[i] = v.x, numbers[i + 1] = v.y;
#else
      numbers[i] = from[unit_at(i)], numbers[i + 1] = from[unit_at(i) + 1];
#endif
    }
  }

  DTAG_BOTH float operator[](int u) const { return numbers[u]; }
};

// Of bfloat16, two in a word.
DTAG_BOTH float from_bfloat16(uint32_t high) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(high);
#else
  float value;
  std::memcpy(&value, &high, sizeof(value));
  return value;
#endif
}

template <>
struct Weights<uint16_t, 1> {
  uint16_t number;

  DTAG_BOTH void stream(const uint16_t* from) {
#ifdef __CUDA_ARCH__
    asm("ld.global.nc.L1::evict_first.u16 %0, [%1];" : "=h"(number) : "l"(from));
#else
    number = *from;
#endif
  }

  DTAG_BOTH float operator[](int) const { return from_bfloat16(static_cast<uint32_t>(number) << 16); }
};

template <int units>
struct Weights<uint16_t, units> {
  uint32_t pairs[units / 2];

  DTAG_BOTH void stream(const uint16_t* from) {
#ifdef __CUDA_ARCH__
#pragma unroll
    for (int i = 0; i < units; i += 2)
      asm("ld.global.nc.L1::evict_first.b32 %0, [%1];"
          : "=r"(pairs[i / 2])
          : "l"(from + unit_at(i)));
#else
    take(from);
#endif
  }

  DTAG_BOTH void take(const uint16_t* from) {
    DTAG_UNROLLED
    for (int i = 0; i < units; i += 2) {
#ifdef __CUDA_ARCH__
      pairs[i / 2] = *reinterpret_cast<const uint32_t*>(from + unit_at(i));
#else
      std::memcpy(&pairs[i / 2], from + unit_at(i), sizeof(uint32_t));
#endif
    }
  }

  DTAG_BOTH float operator[](int u) const {
    return from_bfloat16(u % 2 == 0 ? pairs[u / 2] << 16 : pairs[u / 2] & 0xffff0000u);
  }
};

// Four aligned neighbours of a matrix that streams.
DTAG_BOTH void stream_four(const float* from, float (&into)[4]) {
#ifdef __CUDA_ARCH__
  asm("ld.global.nc.L1::evict_first.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(into[0]), "=f"(into[1]), "=f"(into[2]), "=f"(into[3])
      : "l"(from));
#else
  for (int i = 0; i < 4; ++i) into[i] = from[i];
#endif
}

// Four aligned neighbours in shared memory, of float or int.
template <typename Number>
DTAG_BOTH void load_four(const Number* from, Number* into) {
#ifdef __CUDA_ARCH__
  using Four = std::conditional_t<std::is_same_v<Number, float>, float4, int4>;
  const Four v = *reinterpret_cast<const Four*>(from);
  into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
#else
  for (int i = 0; i < 4; ++i) into[i] = from[i];
#endif
}
DTAG_BOTH void store_four(float* to, const float* from) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
#else
  for (int i = 0; i < 4; ++i) to[i] = from[i];
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

}  // namespace dtag::cuda
