// Starts the kernel; nothing here needs CUDA's headers.
#pragma once

#include <cstdint>

#include "job.h"

namespace dtag::cuda {

// Null, or why the device cannot run the kernels.
const char* why_not(int device);

// Load the kernels for the shape onto the device, so that a later launch loads nothing: it may then
// be captured in a CUDA graph. Null, or CUDA's error.
const char* prepare(const PackedCritic& critic, int device);

// Enqueue the job on the stream, a cudaStream_t; nothing is allocated and nothing waited for. Null,
// or CUDA's error. A job of no rows does nothing. together: how many rows a block takes at a time, 1
// or rows_together(actions); 0 leaves it to the size of the batch.
const char* launch(const Job& job, int together, int device, uintptr_t stream);

}  // namespace dtag::cuda
