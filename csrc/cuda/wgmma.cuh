// The tensor cores of compute capability 9.0, for a warpgroup: four warps that multiply 64 rows at once.
//
// B lies in shared memory: columns of 64 numbers of 16 bits, 128 bytes a column, of which the pieces of 16
// bytes are exchanged (`swizzled`). A lies there likewise, by rows, or in registers: thread `lane` of warp w
// has of rows 16 w + lane / 4 + {0, 8} the numbers 2 (lane % 4) + {0, 1} and those 8 on, two to a word, a
// fragment. The sums are in registers: of the same rows two columns of every eight.
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DTAG_WGMMA 1
#else
#define DTAG_WGMMA 0
#endif

// Where B lies, or A. Of columns of which 64 numbers lie together, `stride` is the bytes from eight columns to the
// next eight. Transposed, of which a row's 64 columns lie together: from eight rows to the next. What would be the
// bytes to the numbers, or columns, after the 64 has no meaning.
DTAG_BOTH uint64_t wgmma_tile(uint32_t shared, uint32_t stride) {
  constexpr uint64_t swizzled_by_128 = 1;
  return swizzled_by_128 << 62 | static_cast<uint64_t>(stride >> 4 & 0x3fff) << 32 | uint64_t{1} << 16 |
         (shared >> 4 & 0x3fff);
}

#ifdef __CUDACC__

// Between writing registers that are multiplied and multiplying.
__device__ __forceinline__ void wgmma_fence() {
#if DTAG_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// What was multiplied since the last time is one group.
__device__ __forceinline__ void wgmma_commit() {
#if DTAG_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until all groups but the last `pending` are done.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
#if DTAG_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
}
// Between writing shared memory, of any thread, and multiplying it: before the barrier.
__device__ __forceinline__ void wgmma_fence_shared() {
#if DTAG_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// d += a * b, or = if not `onto`: of 64 rows 16 numbers each, and `columns`. The sums are there after
// wgmma_wait; until then a and d are not to be touched.
#define DTAG_WGMMA_64(type, a_and_b, predicate, modes)                                                         \
  "{ .reg .pred p; setp.ne.b32 p, " predicate ", 0; "                                                          \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                     \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                             \
  "}, " a_and_b ", p, 1, 1, " modes "; }"
#define DTAG_WGMMA_128(type, a_and_b, predicate, modes)                                                        \
  "{ .reg .pred p; setp.ne.b32 p, " predicate ", 0; "                                                          \
  "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                     \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                           \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                           \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                             \
  "}, " a_and_b ", p, 1, 1, " modes "; }"

#define DTAG_WGMMA_SUMS_32(sums, d)                                                                            \
  sums(d[0]), sums(d[1]), sums(d[2]), sums(d[3]), sums(d[4]), sums(d[5]), sums(d[6]), sums(d[7]),              \
      sums(d[8]), sums(d[9]), sums(d[10]), sums(d[11]), sums(d[12]), sums(d[13]), sums(d[14]), sums(d[15]),    \
      sums(d[16]), sums(d[17]), sums(d[18]), sums(d[19]), sums(d[20]), sums(d[21]), sums(d[22]), sums(d[23]),  \
      sums(d[24]), sums(d[25]), sums(d[26]), sums(d[27]), sums(d[28]), sums(d[29]), sums(d[30]), sums(d[31])
#define DTAG_WGMMA_SUMS_64(sums, d)                                                                            \
  DTAG_WGMMA_SUMS_32(sums, d),                                                                                 \
      sums(d[32]), sums(d[33]), sums(d[34]), sums(d[35]), sums(d[36]), sums(d[37]), sums(d[38]), sums(d[39]),  \
      sums(d[40]), sums(d[41]), sums(d[42]), sums(d[43]), sums(d[44]), sums(d[45]), sums(d[46]), sums(d[47]),  \
      sums(d[48]), sums(d[49]), sums(d[50]), sums(d[51]), sums(d[52]), sums(d[53]), sums(d[54]), sums(d[55]),  \
      sums(d[56]), sums(d[57]), sums(d[58]), sums(d[59]), sums(d[60]), sums(d[61]), sums(d[62]), sums(d[63])

// Of half floats, A in registers; B has columns of neighbouring numbers.
template <int columns>
__device__ __forceinline__ void wgmma(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b, bool onto) {
#if DTAG_WGMMA
  static_assert(columns == 64 || columns == 128, "there are two");
  if constexpr (columns == 64)
    asm volatile(DTAG_WGMMA_64("f16", "{%32, %33, %34, %35}, %36", "%37", "0")
                 : DTAG_WGMMA_SUMS_32("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(onto ? 1 : 0));
  if constexpr (columns == 128)
    asm volatile(DTAG_WGMMA_128("f16", "{%64, %65, %66, %67}, %68", "%69", "0")
                 : DTAG_WGMMA_SUMS_64("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(onto ? 1 : 0));
#endif
}

// Of bfloat16. If not `onto`, which has to be known to the compiler, what d was is not kept until then.
#define DTAG_WGMMA_BF16(instruction, sums, ...)                             \
  do {                                                                      \
    if (onto)                                                               \
      asm volatile(instruction : sums("+f", d) : __VA_ARGS__, "r"(1));      \
    else                                                                    \
      asm volatile(instruction : sums("=f", d) : __VA_ARGS__, "r"(0));      \
  } while (false)

// Both in shared memory.
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool onto) {
#if DTAG_WGMMA
  DTAG_WGMMA_BF16(DTAG_WGMMA_128("bf16", "%64, %65", "%66", "0, 0"), DTAG_WGMMA_SUMS_64, "l"(a), "l"(b));
#endif
}
// A in registers, by B transposed.
__device__ __forceinline__ void wgmma_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool onto) {
#if DTAG_WGMMA
  DTAG_WGMMA_BF16(DTAG_WGMMA_64("bf16", "{%32, %33, %34, %35}, %36", "%37", "1"), DTAG_WGMMA_SUMS_32, "r"(a[0]),
                  "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

#undef DTAG_WGMMA_BF16
#undef DTAG_WGMMA_64
#undef DTAG_WGMMA_128
#undef DTAG_WGMMA_SUMS_32
#undef DTAG_WGMMA_SUMS_64

#endif  // __CUDACC__

// A place in bytes of shared memory, from the beginning of 1024, of what would be at `byte`: of every eight
// columns of 128 bytes the pieces of 16 are exchanged, so that threads that read a piece of each do not meet.
DTAG_BOTH constexpr uint32_t swizzled(uint32_t byte) { return byte ^ (byte >> 3 & 0x70); }

}  // namespace dtag::cuda
