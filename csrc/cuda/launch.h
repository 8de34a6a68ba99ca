// Starts the kernel; nothing here needs CUDA's headers.
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

// Who takes a row: what is best for the batch's size, a block of many registers, one of few, of which
// a multiprocessor holds more, or a cluster of blocks (blocks_of_cluster(actions)). The result is the
// same, bit for bit.
enum class Kind { automatic, row, lean, cluster };

// Null, or why the device cannot run the kernels.
const char* why_not(int device);

// Load the kernels for the shape onto the device, so that a later launch loads nothing: it may then
// be captured in a CUDA graph. Null, or CUDA's error.
const char* prepare(const PackedCritic& critic, int device);

// Null, or why there is no cluster for a row of the critic, on the device or at all.
const char* why_no_cluster(const PackedCritic& critic, int device);

// Enqueue the job on the stream, a cudaStream_t; nothing is allocated and nothing waited for. Null,
// or CUDA's error, or why there is no kernel of that kind. A job of no rows does nothing.
const char* launch(const Job& job, Kind kind, int device, uintptr_t stream);

}  // namespace dtag::cuda
