// Chooses the kernel, its grid and its memory, and starts it.
#include "launch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

// From how many rows for each multiprocessor on they are built together: until then each has a
// multiprocessor's arithmetic nearly to itself. Not measured yet.
constexpr int rows_to_build_together = 8;

const Kernel* kernel_for(const PackedCritic& critic, bool together) {
  static const KernelsOf kernels[] = {kernels_of<2>(),  kernels_of<4>(),  kernels_of<6>(),
                                      kernels_of<8>(),  kernels_of<12>(), kernels_of<17>(),
                                      kernels_of<24>(), kernels_of<32>()};
  for (const KernelsOf& of : kernels)
    if (of.actions == critic.layout.actions) return &of.kernels[critic.bf16][together];
  return nullptr;
}

int threads_of(const PackedCritic& critic, int together) {
  return critic.heads * critic.layout.threads_per_head * together;
}

size_t shared_bytes(const PackedCritic& critic, int together) {
  return sizeof(float) * (static_cast<size_t>(SharedLayout(critic).floats) * together +
                          handover_floats(critic, together));
}

// What is asked of CUDA once: it takes longer than a launch.
struct Occupancy {
  int blocks;  // that the device holds at a time; 0 where a block does not fit
  int multiprocessors;
};

cudaError_t occupancy_of(const PackedCritic& critic, const Kernel& kernel, int device,
                         Occupancy* found) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, size_t>, Occupancy> known;
  const int threads = threads_of(critic, kernel.together);
  const size_t bytes = shared_bytes(critic, kernel.together);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(kernel.function, device, threads, bytes);
  const auto at = known.find(key);
  if (at != known.end()) {
    *found = at->second;
    return cudaSuccess;
  }
  int most_bytes, most_threads_here, each = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = cudaDeviceGetAttribute(&found->multiprocessors,
                                             cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel.function);
  if (error != cudaSuccess) return error;
  most_threads_here = attributes.maxThreadsPerBlock;
  if (bytes + attributes.sharedSizeBytes <= static_cast<size_t>(most_bytes) &&
      threads <= most_threads_here) {
    // The same for every critic, so that two of different sizes do not undo each other's.
    error = cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most_bytes - static_cast<int>(attributes.sharedSizeBytes));
    if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel.function, threads, bytes);
    if (error != cudaSuccess) return error;
  }
  found->blocks = each * found->multiprocessors;
  known[key] = *found;
  return cudaSuccess;
}

}  // namespace

const char* why_not(int device) {
  int major = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (major < 8) return "it needs compute capability 8.0 or above";
  cudaFuncAttributes attributes;
  PackedCritic critic;
  critic.layout.actions = kernel_actions[0];
  const cudaError_t loaded = cudaFuncGetAttributes(&attributes, kernel_for(critic, false)->function);
  return loaded == cudaSuccess ? nullptr : cudaGetErrorString(loaded);
}

const char* prepare(const PackedCritic& critic, int device) {
  cudaError_t error = cudaSetDevice(device);
  Occupancy occupancy{};
  for (const bool together : {false, true}) {
    const Kernel* const kernel = kernel_for(critic, together);
    if (kernel == nullptr) return "no kernel for so many action dimensions";
    if (error == cudaSuccess) error = occupancy_of(critic, *kernel, device, &occupancy);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    if (!together && occupancy.blocks == 0)
      return "the critic takes more shared memory than the device has for a block";
  }
  return nullptr;
}

const char* launch(const Job& job, int together, int device, uintptr_t stream) {
  if (job.rows == 0) return nullptr;
  cudaError_t error = cudaSetDevice(device);
  Occupancy occupancy{};
  const Kernel* kernel = kernel_for(job.critic, together != 1);
  if (error == cudaSuccess) error = occupancy_of(job.critic, *kernel, device, &occupancy);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (together != 1 &&
      (occupancy.blocks == 0 ||
       (together == 0 && job.rows < rows_to_build_together * occupancy.multiprocessors))) {
    kernel = kernel_for(job.critic, false);
    error = occupancy_of(job.critic, *kernel, device, &occupancy);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  const int64_t wanted = (job.rows + kernel->together - 1) / kernel->together;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(wanted, occupancy.blocks));
  Job copy = job;
  void* arguments[] = {&copy};
  error = cudaLaunchKernel(kernel->function, dim3(blocks),
                           dim3(static_cast<unsigned>(threads_of(job.critic, kernel->together))),
                           arguments, shared_bytes(job.critic, kernel->together),
                           reinterpret_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace dtag::cuda
