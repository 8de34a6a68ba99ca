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

// Numbers of a thread's units that many rows need again; `far`: from four of them to four more.
DTAG_BOTH void load(const float* from, float (&into)[2], int = 0) {
#ifdef __CUDA_ARCH__
  const float2 v = __ldg(reinterpret_cast<const float2*>(from));
  into[0] = v.x, into[1] = v.y;
#else
  for (int i = 0; i < 2; ++i) into[i] = from[i];
#endif
}
DTAG_BOTH void load(const float* from, float (&into)[4], int = 0) {
#ifdef __CUDA_ARCH__
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
#else
  for (int i = 0; i < 4; ++i) into[i] = from[i];
#endif
}

DTAG_BOTH void load(const float* from, float (&into)[8], int far = far_units) {
  DTAG_UNROLLED
  for (int half = 0; half < 2; ++half) {
    float four[4];
    load(from + half * far, four);
    DTAG_UNROLLED
    for (int i = 0; i < 4; ++i) into[4 * half + i] = four[i];
  }
}

// Aligned neighbours in shared memory, of float or int.
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
template <typename Number>
DTAG_BOTH void load_two(const Number* from, Number* into) {
#ifdef __CUDA_ARCH__
  using Two = std::conditional_t<std::is_same_v<Number, float>, float2, int2>;
  const Two v = *reinterpret_cast<const Two*>(from);
  into[0] = v.x, into[1] = v.y;
#else
  into[0] = from[0], into[1] = from[1];
#endif
}
// As many as there is room for, an even number; `far`: from four of them to four more.
template <int count>
DTAG_BOTH void load_shared(const float* from, float (&into)[count], int far = 4) {
  static_assert(count % 2 == 0, "pairs");
  DTAG_UNROLLED
  for (int i = 0; i < count; i += count % 4 == 0 ? 4 : 2) {
    if constexpr (count % 4 == 0) {
      load_four(from + i / 4 * far, into + i);
    } else {
      load_two(from + i, into + i);
    }
  }
}
// To the shared memory of any block of a cluster.
template <int count>
DTAG_BOTH void store_shared(float* to, const float (&from)[count], int far = 4) {
#ifdef __CUDA_ARCH__
  if constexpr (count == 2) *reinterpret_cast<float2*>(to) = make_float2(from[0], from[1]);
  DTAG_UNROLLED
  for (int i = 0; i + 4 <= count; i += 4)
    *reinterpret_cast<float4*>(to + i / 4 * far) =
        make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
#else
  for (int i = 0; i < count; ++i) to[i / 4 * far + i % 4] = from[i];
#endif
}
// To global memory, with one instruction, which the compiler else takes apart.
DTAG_BOTH void store_four(float* to, const float (&from)[4]) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(from[0]), "f"(from[1]),
               "f"(from[2]), "f"(from[3])
               : "memory");
#else
  store_shared(to, from);
#endif
}
// To the block's own, if so: without a branch, which takes longer.
DTAG_BOTH void store_if(bool so, float* to, const float (&from)[4]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{ .reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.v4.f32 [%1], {%2, %3, %4, %5}; }" ::"r"(
          so ? 1 : 0),
      "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "f"(from[0]), "f"(from[1]),
      "f"(from[2]), "f"(from[3])
      : "memory");
#else
  if (so) store_shared(to, from);
#endif
}
DTAG_BOTH void store_if(bool so, int* to, int from) {
#ifdef __CUDA_ARCH__
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.s32 [%1], %2; }" ::"r"(so ? 1 : 0),
               "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "r"(from)
               : "memory");
#else
  if (so) *to = from;
#endif
}

// Four aligned neighbours of a matrix that streams.
DTAG_BOTH void stream_four(const float* from, float* into) {
#ifdef __CUDA_ARCH__
  asm("ld.global.nc.L1::evict_first.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(into[0]), "=f"(into[1]), "=f"(into[2]), "=f"(into[3])
      : "l"(from));
#else
  for (int i = 0; i < 4; ++i) into[i] = from[i];
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
    if constexpr (units == 1)
      asm("ld.global.nc.L1::evict_first.f32 %0, [%1];" : "=f"(numbers[0]) : "l"(from));
    if constexpr (units == 2)
      asm("ld.global.nc.L1::evict_first.v2.f32 {%0, %1}, [%2];"
          : "=f"(numbers[0]), "=f"(numbers[1])
          : "l"(from));
    DTAG_UNROLLED
    for (int u = 0; u + 4 <= units; u += 4) stream_four(from + to_unit(u), numbers + u);
#else
    for (int u = 0; u < units; ++u) numbers[u] = from[to_unit(u)];
#endif
  }

  // From shared memory.
  DTAG_BOTH void read(const float* from) {
    static_assert(units == 1, "a thread of a cluster");
    numbers[0] = *from;
  }

  DTAG_BOTH float operator[](int u) const { return numbers[u]; }
};

// Of bfloat16, two in a word.
template <int units>
struct Weights<uint16_t, units> {
  uint32_t words[(units + 1) / 2];

  DTAG_BOTH void stream(const uint16_t* from) {
#ifdef __CUDA_ARCH__
    if constexpr (units == 1) {
      uint16_t number;
      asm("ld.global.nc.L1::evict_first.u16 %0, [%1];" : "=h"(number) : "l"(from));
      words[0] = number;
    }
    if constexpr (units == 2)
      asm("ld.global.nc.L1::evict_first.b32 %0, [%1];" : "=r"(words[0]) : "l"(from));
    DTAG_UNROLLED
    for (int u = 0; u + 4 <= units; u += 4)
      asm("ld.global.nc.L1::evict_first.v2.b32 {%0, %1}, [%2];"
          : "=r"(words[u / 2]), "=r"(words[u / 2 + 1])
          : "l"(from + to_unit(u)));
#else
    for (int u = 0; u < units; u += 2)
      std::memcpy(words + u / 2, from + to_unit(u), sizeof(*from) * (units == 1 ? 1 : 2));
#endif
  }

  DTAG_BOTH void read(const uint16_t* from) {
    static_assert(units == 1, "a thread of a cluster");
    words[0] = *from;
  }

  DTAG_BOTH float operator[](int u) const {
    const uint32_t bits = u % 2 == 0 ? words[u / 2] << 16 : words[u / 2] & 0xffff0000u;
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
#endif
  }
};

// What the kernel before this one left, that is read once.
template <int count>
DTAG_BOTH void load_given(const float* from, float (&into)[count], int far) {
#ifdef __CUDA_ARCH__
  static_assert(count % 2 == 0, "pairs");
  if constexpr (count == 2)
    asm volatile("ld.global.L1::no_allocate.v2.f32 {%0, %1}, [%2];"
                 : "=f"(into[0]), "=f"(into[1])
                 : "l"(from)
                 : "memory");
  DTAG_UNROLLED
  for (int i = 0; i + 4 <= count; i += 4)
    asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(into[i]), "=f"(into[i + 1]), "=f"(into[i + 2]), "=f"(into[i + 3])
                 : "l"(from + i / 4 * far)
                 : "memory");
#else
  load_shared(from, into, far);
#endif
}
// Into the second-level cache, without waiting.
DTAG_BOTH void bring_near([[maybe_unused]] const float* from) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}
// For the kernel to end that was launched before this one, and for what it wrote.
DTAG_BOTH void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What the counter was, of which each number is given once; if so, and without waiting for it: an addition
// the compiler would make for the whole warp, and share out what comes back, for which it waits.
DTAG_BOTH void draw_if(bool so, int32_t* counter, int& into) {
#ifdef __CUDA_ARCH__
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p atom.global.inc.u32 %0, [%2], %3; }"
               : "+r"(into)
               : "r"(so ? 1 : 0), "l"(counter), "n"(0x7fffffff)
               : "memory");
#else
  if (so) into = (*counter)++;
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
