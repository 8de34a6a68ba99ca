// Chooses the kernel, its grid and its memory, and starts it.
#include "launch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "dense_kernel.h"
#include "maps_kernel.h"
#include "walk_kernel.h"

namespace dtag::cuda {
namespace {

// Of a hundred multiprocessors, how many clusters may take in a batch. Beyond it some of their blocks
// have to share one, or to wait, since those of a cluster lie together: on an H200 clusters of eight were
// 2.9 us quicker than a block with 1 row, 0.3 with 16, which take 97.
constexpr int most_in_clusters = 75;

// Rows for each that the device holds, up to which a queue is too short.
constexpr int few_in_a_queue = 3;

const KernelsOf::Kinds* kernels_for(const PackedCritic& critic) {
  static const KernelsOf kernels[] = {kernels_of<2>(),  kernels_of<4>(),  kernels_of<6>(),
                                      kernels_of<8>(),  kernels_of<12>(), kernels_of<17>(),
                                      kernels_of<24>(), kernels_of<32>()};
  for (const KernelsOf& of : kernels)
    if (of.actions == critic.layout.actions) return &of.kinds[critic.precision == Precision::bf16 ? 1 : 0];
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
  SharedLayout shared;
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};  // at most one

  Plan(const PackedCritic& critic, const Kernel& kernel, bool has_slice)
      : Plan(kernel, SharedLayout(critic, kernel.units, kernel.has_map, has_slice),
             threads_of(critic, kernel.units)) {}
  Plan(const Kernel& kernel, const SharedLayout& shared, int threads)
      : Plan(kernel, shared, threads, sizeof(float) * static_cast<size_t>(shared.floats)) {}
  Plan(const Kernel& kernel, const SharedLayout& shared, int threads, size_t bytes)
      : kernel(kernel), shared(shared) {
    config.gridDim = dim3(static_cast<unsigned>(kernel.blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = bytes;
    if (kernel.blocks == 1) return;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(kernel.blocks);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.numAttrs = 1;
  }

  // To begin before the kernel that was launched before it has ended (wait_for_kernel_before).
  void begin_early() {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 1;
  }

  const cudaLaunchConfig_t* with_attributes() {
    config.attrs = &attribute;
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

// The launch, unless there was an error; of a cluster whose blocks have slices, if the device has room.
Plan plan_for(const PackedCritic& critic, const Kernel& kernel, int device, Occupancy* found,
              cudaError_t* error) {
  Plan plan(critic, kernel, kernel.blocks > 1);
  if (*error == cudaSuccess) *error = occupancy_of(plan, device, found);
  if (kernel.blocks > 1 && found->teams == 0) {
    plan = Plan(critic, kernel, false);
    if (*error == cudaSuccess) *error = occupancy_of(plan, device, found);
  }
  return plan;
}

#if DTAG_HAS_WGMMA

Plan plan_of_tiles(const PackedCritic& critic) {
  const SharedLayout unused(critic, units_per_thread(critic.layout.actions), false, false);
  return {Kernel{dense_kernel_for(critic), critic.heads}, unused, TileLayout::threads,
          static_cast<size_t>(TileLayout::bytes)};
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

cudaError_t launch_tiles(const Job& job, int device, cudaStream_t stream) {
  Plan plan = plan_of_tiles(job.critic);
  Occupancy occupancy{};
  const cudaError_t error = occupancy_of(plan, device, &occupancy);
  if (error != cudaSuccess) return error;
  const int64_t tiles = (job.rows + TileLayout::rows - 1) / TileLayout::rows;
  plan.config.gridDim.x = static_cast<unsigned>(std::min<int64_t>(tiles, occupancy.teams)) *
                          static_cast<unsigned>(plan.kernel.blocks);
  plan.config.stream = stream;
  Job copy = job;
  void* arguments[] = {&copy};
  return cudaLaunchKernelExC(plan.with_attributes(), plan.kernel.function, arguments);
}

#else

cudaError_t find_tiles(const PackedCritic&, int, bool* found) {
  *found = false;
  return cudaSuccess;
}
cudaError_t launch_tiles(const Job&, int, cudaStream_t) { return cudaErrorNotSupported; }

#endif

// The walk of a job, whose maps another kernel builds or not.
cudaError_t launch_walk(const Job& job, Kind kind, int device, cudaStream_t stream) {
  const PackedCritic& critic = job.critic;
  const KernelsOf::Kinds& kinds = *kernels_for(critic);
  cudaError_t error = cudaSuccess;
  Occupancy occupancy{};
  const auto planned = [&](Kind kind) {
    return plan_for(critic, kernel_of(critic, kinds, kind), device, &occupancy, &error);
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
    // Of many more, whose maps are there, whoever is free takes the next. On an H200 that took 18 us off 163 for
    // 4096 rows, of which the lean kernel holds 528, and 5 us more for 1024.
    if (many && job.maps != nullptr && job.rows > few_in_a_queue * occupancy.teams)
      plan = plan_for(critic, kinds.queued, device, &occupancy, &error);
    if ((few || many) && occupancy.teams == 0) plan = planned(Kind::row);
  }
  if (error != cudaSuccess) return error;
  const Kernel& kernel = plan.kernel;
  plan.config.gridDim.x = static_cast<unsigned>(std::min<int64_t>(job.rows, occupancy.teams)) *
                          static_cast<unsigned>(kernel.blocks);
  plan.config.stream = stream;
  if (job.maps != nullptr || job.marked) plan.begin_early();
  Job copy = job;
  copy.shared = plan.shared;
  void* arguments[] = {&copy};
  return cudaLaunchKernelExC(plan.with_attributes(), kernel.function, arguments);
}

}  // namespace

const char* why_not(int device, Precision precision) {
  int major = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (major < 8) return "it needs compute capability 8.0 or above";
  if (precision == Precision::tf32x3) return why_no_maps(device);
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
  if (error == cudaSuccess && critic.precision == Precision::tf32x3) error = prepare_maps(device);
  bool tiles;
  if (error == cudaSuccess) error = find_tiles(critic, device, &tiles);
  Occupancy occupancy{};
  if (critic.precision == Precision::tf32x3 && why_none(Kind::lean, critic) == nullptr)
    plan_for(critic, kinds->queued, device, &occupancy, &error);
  for (const Kind kind : {Kind::cluster, Kind::lean, Kind::row}) {
    if (why_none(kind, critic) != nullptr) continue;
    plan_for(critic, kernel_of(critic, *kinds, kind), device, &occupancy, &error);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  if (occupancy.teams == 0)
    return "the critic takes more shared memory than the device has for a block";
  return nullptr;
}

const char* why_none(Kind kind, const PackedCritic& critic, int device) {
  if (const char* const reason = why_none(kind, critic)) return reason;
  if (kind != Kind::cluster) return nullptr;
  Occupancy occupancy{};
  cudaError_t error = cudaSetDevice(device);
  plan_for(critic, kernels_for(critic)->cluster, device, &occupancy, &error);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return occupancy.teams > 0
             ? nullptr
             : "there are no clusters on the device, or in what the extension was built for";
}

const char* launch(const Job& job, Kind kind, int device, uintptr_t stream) {
  if (job.rows == 0) return nullptr;
  if (const char* const reason = why_none(kind, job.critic, device)) return reason;
  cudaError_t error = cudaSetDevice(device);
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  // Dense tiles, and then the rows that they leave, which they mark; or maps, and the walk.
  Job whole = job;
  if (kind == Kind::automatic && job.dense && error == cudaSuccess)
    error = find_tiles(job.critic, device, &whole.marked);
  if (whole.marked && error == cudaSuccess) error = launch_tiles(job, device, on);
  const int64_t with_maps = rows_with_maps(job), most = with_maps > 0 ? with_maps : job.rows;
  whole.queue = queue_behind_maps(job);
  for (int64_t first = 0; first < job.rows && error == cudaSuccess; first += most) {
    const Job part = part_of(whole, first, most);
    if (with_maps > 0) error = launch_maps(part, device, on);
    if (error == cudaSuccess) error = launch_walk(part, kind, device, on);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace dtag::cuda
