// The walk's blocks without a device, one after the other.
#pragma once

#include "block.h"
#include "launch.h"

namespace dtag::cuda {

constexpr int64_t blocks_of_walk = 3;  // so that each takes several rows

// Refine all rows, the threads in an order that `turn` gives. Kind::automatic takes rows from a queue.
template <int actions>
void walk_rows(const Job& job, Kind kind, uint32_t turn);

}  // namespace dtag::cuda
