// Starts the kernel; nothing here needs CUDA's headers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "job.h"

namespace dtag::cuda {

// Who takes a row: what is best for the batch's size, a block whose threads have all the registers they
// can use, a block of half as many threads, of which a multiprocessor holds more rows, or a cluster of
// blocks (blocks_of_cluster(actions)). The result is the same, bit for bit.
enum class Kind { automatic, row, lean, cluster };

// Null, or why there is no kernel of that kind for the critic, whatever the device.
inline const char* why_none(Kind kind, const PackedCritic& critic) {
  if (kind == Kind::automatic || kind == Kind::row) return nullptr;
  if (kind == Kind::cluster && critic.precision == Precision::tf32x3)
    return "with precision tf32x3 maps are built before the kernel, and not by a cluster";
  if (is_wide(critic)) return "heads times hidden units are too many for any kernel but row";
  const int units_of_warp = warp_size * units_of_lean(critic.layout.actions);
  if (kind == Kind::lean && critic.layout.width % units_of_warp != 0)
    return "padded hidden units do not fill warps of the lean kernel";
  return nullptr;
}

// Null, or why the device cannot run the kernels in the precision.
const char* why_not(int device, Precision precision = Precision::fp32);

// Of first maps that are built before the walk so many floats at a time, and so much of the batch.
#ifndef DTAG_MOST_FLOATS_OF_MAPS
#define DTAG_MOST_FLOATS_OF_MAPS (int64_t{1} << 24)
#endif
constexpr int64_t most_floats_of_maps = DTAG_MOST_FLOATS_OF_MAPS;
inline int64_t rows_with_maps(const Job& job) {
  if (job.critic.precision != Precision::tf32x3 || job.critic.hidden_layers != 2 || job.dense) return 0;
  return std::min(job.rows, std::max<int64_t>(1, most_floats_of_maps / floats_of_maps(job.critic)));
}

// The memory for job.maps: the maps, and behind them the queue.
inline int64_t floats_with_queue(const Job& job) {
  const int64_t rows = rows_with_maps(job);
  return rows == 0 ? 0 : rows * floats_of_maps(job.critic) + 1;
}
inline int32_t* queue_behind_maps(const Job& job) {
  static_assert(sizeof(int32_t) == sizeof(float), "it takes the place of a float");
  const int64_t size = floats_with_queue(job);
  return size == 0 ? nullptr : reinterpret_cast<int32_t*>(job.maps + size - 1);
}

// Load the kernels for the shape onto the device, so that a later launch loads nothing: it may then
// be captured in a CUDA graph. Null, or CUDA's error.
const char* prepare(const PackedCritic& critic, int device);

// Null, or why there is no kernel of that kind for the critic, on the device or at all.
const char* why_none(Kind kind, const PackedCritic& critic, int device);

// Enqueue the job on the stream, a cudaStream_t; nothing is allocated and nothing waited for. job.maps has
// room for floats_with_queue(). Null, or CUDA's error, or why there is no kernel of that kind. A job of no rows
// does nothing.
const char* launch(const Job& job, Kind kind, int device, uintptr_t stream);

}  // namespace dtag::cuda
