// Marks in shared memory, of what is on its way to a block.
#pragma once

#include <cuda_runtime.h>

// What clusters are made of; for other devices their kernels are compiled, but are empty.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DTAG_CLUSTERS 1
#else
#define DTAG_CLUSTERS 0
#endif

namespace dtag::cuda {

__device__ __forceinline__ unsigned address_of(const void* in_shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(in_shared));
}

#if DTAG_CLUSTERS
// A place in shared memory where it is counted how many bytes have come; those that are expected make a
// phase.
struct Mark {
  unsigned address;

  __device__ explicit Mark(const float* at) : address(address_of(at)) {}

  __device__ void begin() const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
  }
  // By one thread, once a phase.
  __device__ void expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
                 : "memory");
  }
  // parity: of phases that were over before.
  __device__ void wait(int parity) const {
    asm volatile(
        "{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra AGAIN; }" ::
            "r"(address),
        "r"(parity)
        : "memory");
  }
};
#endif

}  // namespace dtag::cuda
