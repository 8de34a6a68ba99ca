// Chooses the kernel, its grid and its memory, and starts it.
#include "launch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "dense_kernel.h"
#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

// Of a hundred multiprocessors, how many clusters may take in a batch. Beyond it some of their blocks
// have to share one, or to wait, since those of a cluster lie together: on an H200 clusters of eight were
// 2.9 us quicker than a block with 1 row, 0.3 with 16, which take 97.
constexpr int most_in_clusters = 75;

const KernelsOf::Kinds* kernels_for(const PackedCritic& critic) {
  static const KernelsOf kernels[] = {kernels_of<2>(),  kernels_of<4>(),  kernels_of<6>(),
                                      kernels_of<8>(),  kernels_of<12>(), kernels_of<17>(),
                                      kernels_of<24>(), kernels_of<32>()};
  for (const KernelsOf& of : kernels)
    if (of.actions == critic.layout.actions) return &of.kinds[static_cast<int>(critic.precision)];
  return nullptr;
}

// Of a kind, but for critics of very many units.
const Kernel& kernel_of(const PackedCritic& critic, const KernelsOf::Kinds& kinds, Kind kind) {
  if (is_wide(critic)) return kinds.wide;
  return kind == Kind::cluster ? kinds.cluster : kind == Kind::lean ? kinds.lean : kinds.row;
}

// A launch of a kernel for a critic, but for its number of blocks.
struct Plan {
  Kernel kernel;
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute cluster = {};

  Plan(const PackedCritic& critic, const Kernel& kernel)
      : Plan(kernel, threads_of(critic, kernel.units),
             sizeof(float) *
                 static_cast<size_t>(SharedLayout(critic, kernel.units, kernel.has_map).floats)) {}
  Plan(const Kernel& kernel, int threads, size_t bytes) : kernel(kernel) {
    config.gridDim = dim3(static_cast<unsigned>(kernel.blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = bytes;
    if (kernel.blocks == 1) return;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(kernel.blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.numAttrs = 1;
  }

  const cudaLaunchConfig_t* with_attributes() {
    config.attrs = &cluster;
    return &config;
  }
};

// What is asked of CUDA once: it takes longer than a launch.
struct Occupancy {
  int teams;  // blocks, or clusters, that the device holds at a time; 0 where they do not fit
  int multiprocessors;
};

cudaError_t occupancy_of(Plan& plan, int device, Occupancy* found) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, unsigned, size_t>, Occupancy> known;
  const unsigned threads = plan.config.blockDim.x;
  const size_t bytes = plan.config.dynamicSmemBytes;
  const void* const function = plan.kernel.function;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(function, device, threads, bytes);
  const auto at = known.find(key);
  if (at != known.end()) {
    *found = at->second;
    return cudaSuccess;
  }
  int most_bytes, each = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = cudaDeviceGetAttribute(&found->multiprocessors,
                                             cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, function);
  if (error != cudaSuccess) return error;
  found->teams = 0;
  // Code for devices without clusters is empty, also where it was compiled for this device just now.
  const bool there = plan.kernel.blocks == 1 ||
                     std::min(attributes.ptxVersion, attributes.binaryVersion) >= 90;
  if (there && bytes + attributes.sharedSizeBytes <= static_cast<size_t>(most_bytes) &&
      threads <= static_cast<unsigned>(attributes.maxThreadsPerBlock)) {
    // The same for every critic, so that two of different sizes do not undo each other's.
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most_bytes - static_cast<int>(attributes.sharedSizeBytes));
    if (error == cudaSuccess && plan.kernel.blocks > 1)
      error = cudaOccupancyMaxActiveClusters(&found->teams, function, plan.with_attributes());
    else if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, function,
                                                            static_cast<int>(threads), bytes);
    if (error != cudaSuccess) return error;
    if (plan.kernel.blocks == 1) found->teams = each * found->multiprocessors;
  }
  known[key] = *found;
  return cudaSuccess;
}

#if DTAG_HAS_WGMMA

Plan plan_of_tiles(const PackedCritic& critic) {
  return {Kernel{dense_kernel(critic), critic.heads}, TileLayout::threads,
          static_cast<size_t>(TileLayout::bytes(tile_actions(critic.layout.actions)))};
}

// Whether dense tiles can take the critic on the device.
cudaError_t find_tiles(const PackedCritic& critic, int device, bool* found) {
  *found = false;
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess || major != 9 || minor != 0 || !fits_tiles(critic)) return error;
  Plan plan = plan_of_tiles(critic);
  Occupancy occupancy{};
  error = occupancy_of(plan, device, &occupancy);
  *found = occupancy.teams > 0;
  return error;
}

cudaError_t launch_tiles(const Job& job, int device, uintptr_t stream) {
  Plan plan = plan_of_tiles(job.critic);
  Occupancy occupancy{};
  const cudaError_t error = occupancy_of(plan, device, &occupancy);
  if (error != cudaSuccess) return error;
  const int64_t tiles = (job.rows + TileLayout::rows - 1) / TileLayout::rows;
  plan.config.gridDim.x = static_cast<unsigned>(std::min<int64_t>(tiles, occupancy.teams)) *
                          static_cast<unsigned>(plan.kernel.blocks);
  plan.config.stream = reinterpret_cast<cudaStream_t>(stream);
  Job copy = job;
  void* arguments[] = {&copy};
  return cudaLaunchKernelExC(plan.with_attributes(), plan.kernel.function, arguments);
}

#else

cudaError_t find_tiles(const PackedCritic&, int, bool* found) {
  *found = false;
  return cudaSuccess;
}
cudaError_t launch_tiles(const Job&, int, uintptr_t) { return cudaErrorNotSupported; }

#endif

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
  const cudaError_t loaded =
      cudaFuncGetAttributes(&attributes, kernels_for(critic)->row.function);
  return loaded == cudaSuccess ? nullptr : cudaGetErrorString(loaded);
}

const char* prepare(const PackedCritic& critic, int device) {
  const KernelsOf::Kinds* const kinds = kernels_for(critic);
  if (kinds == nullptr) return "no kernel for so many action dimensions";
  cudaError_t error = cudaSetDevice(device);
  Occupancy occupancy{};
  for (const Kind kind : {Kind::cluster, Kind::lean, Kind::row}) {
    if (why_none(kind, critic) != nullptr) continue;
    Plan plan(critic, kernel_of(critic, *kinds, kind));
    if (error == cudaSuccess) error = occupancy_of(plan, device, &occupancy);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  bool tiles;
  error = find_tiles(critic, device, &tiles);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (occupancy.teams == 0)
    return "the critic takes more shared memory than the device has for a block";
  return nullptr;
}

const char* why_none(Kind kind, const PackedCritic& critic, int device) {
  if (const char* const reason = why_none(kind, critic)) return reason;
  if (kind != Kind::cluster) return nullptr;
  Occupancy occupancy{};
  Plan plan(critic, kernels_for(critic)->cluster);
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = occupancy_of(plan, device, &occupancy);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return occupancy.teams > 0
             ? nullptr
             : "there are no clusters on the device, or in what the extension was built for";
}

const char* launch(const Job& job, Kind kind, int device, uintptr_t stream) {
  if (job.rows == 0) return nullptr;
  const PackedCritic& critic = job.critic;
  const KernelsOf::Kinds& kinds = *kernels_for(critic);
  if (const char* const reason = why_none(kind, critic, device)) return reason;
  cudaError_t error = cudaSetDevice(device);
  // Dense tiles, and then the rows that they leave, which they mark.
  bool tiles = false;
  if (kind == Kind::automatic && job.dense && error == cudaSuccess)
    error = find_tiles(critic, device, &tiles);
  if (tiles) error = launch_tiles(job, device, stream);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  Occupancy occupancy{};
  const auto planned = [&](Kind kind) {
    Plan plan(critic, kernel_of(critic, kinds, kind));
    if (error == cudaSuccess) error = occupancy_of(plan, device, &occupancy);
    return plan;
  };
  Plan plan = planned(kind == Kind::automatic ? Kind::row : kind);
  if (kind == Kind::automatic) {
    const bool builds = critic.hidden_layers == 2 && !job.dense;
    const bool few = builds && why_none(Kind::cluster, critic) == nullptr &&
                     job.rows * kinds.cluster.blocks * 100 <=
                         static_cast<int64_t>(most_in_clusters) * occupancy.multiprocessors;
    // Rows beyond those that the device holds at a time would wait; more of the lean kernel's fit. On an
    // H200 it was the quicker from the first such row on, with 3, 6 and 17 action dimensions.
    const bool many = job.rows > occupancy.teams && why_none(Kind::lean, critic) == nullptr;
    if (few) plan = planned(Kind::cluster);
    if (many) plan = planned(Kind::lean);
    if ((few || many) && occupancy.teams == 0) plan = planned(Kind::row);
  }
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const Kernel& kernel = plan.kernel;
  plan.config.gridDim.x = static_cast<unsigned>(std::min<int64_t>(job.rows, occupancy.teams)) *
                          static_cast<unsigned>(kernel.blocks);
  plan.config.stream = reinterpret_cast<cudaStream_t>(stream);
  Job copy = job;
  copy.shared = SharedLayout(critic, kernel.units, kernel.has_map);
  copy.marked = tiles;
  void* arguments[] = {&copy};
  error = cudaLaunchKernelExC(plan.with_attributes(), kernel.function, arguments);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace dtag::cuda
