// The tensor cores of compute capability 9.0, for a warpgroup: four warps that multiply 64 rows at once.
//
// A lies in registers: thread `lane` of warp w has of rows 16 w + lane / 4 + {0, 8} the numbers 2 (lane % 4)
// + {0, 1} and those 8 on, two to a word. B lies in shared memory: columns of 64 numbers of 16 bits, 128
// bytes a column, of which the pieces of 16 bytes are exchanged (`swizzled`). The sums are in registers: of
// the same rows two columns of every eight.
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DTAG_WGMMA 1
#else
#define DTAG_WGMMA 0
#endif

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

// Where B lies. Of columns of which 64 numbers lie together, `stride` is the bytes from eight columns to the
// next eight. Transposed, of which 64 columns of a row lie together: from eight rows to the next, and
// `leading` the bytes from 64 columns to the next.
__device__ __forceinline__ uint64_t wgmma_tile(uint32_t shared, uint32_t stride, uint32_t leading = 16) {
  constexpr uint64_t swizzled_by_128 = 1;
  return swizzled_by_128 << 62 | static_cast<uint64_t>(stride >> 4 & 0x3fff) << 32 |
         static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 | (shared >> 4 & 0x3fff);
}

// d += a * b: of 64 rows 16 numbers each, and `columns`. The sums are there after
// wgmma_wait; until then a and d are not to be touched.
#define DTAG_WGMMA_64(type, transposed, d, a, b)                                                               \
  asm volatile(                                                                                                \
      "{ .reg .pred p; setp.eq.b32 p, 0, 0; "                                                                     \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                         \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                         \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, " transposed "; }"                                               \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),        \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),  \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),\
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define DTAG_WGMMA_128(type, transposed, d, a, b)                                                              \
  asm volatile(                                                                                                \
      "{ .reg .pred p; setp.eq.b32 p, 0, 0; "                                                                     \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                        \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                         \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, " transposed "; }"                                               \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),        \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),  \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),\
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),\
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),\
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),\
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),\
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// Of half floats; B has columns of neighbouring numbers.
template <int columns>
__device__ __forceinline__ void wgmma(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b) {
#if DTAG_WGMMA
  static_assert(columns == 64 || columns == 128, "there are two");
  if constexpr (columns == 64) DTAG_WGMMA_64("f16", "0", d, a, b);
  if constexpr (columns == 128) DTAG_WGMMA_128("f16", "0", d, a, b);
#endif
}

#undef DTAG_WGMMA_64
#undef DTAG_WGMMA_128

#endif  // __CUDACC__

// A place in bytes of shared memory, from the beginning of 1024, of what would be at `byte`: of every eight
// columns of 128 bytes the pieces of 16 are exchanged, so that threads that read a piece of each do not meet.
DTAG_BOTH constexpr uint32_t swizzled(uint32_t byte) { return byte ^ (byte >> 3 & 0x70); }

}  // namespace dtag::cuda
