// The walk kernel.
#pragma once

#include "../refine.h"
#include "product.h"

namespace dtag {
inline namespace DTAG_TARGET {

inline WorkspaceSize workspace_size_walk(const Critic& critic) {
  return workspace_size_scalar(critic);
}
inline void refine_walk(const Critic& critic, const Options& options, const Batch& batch,
                         const Result& result, const Workspace& workspace) {
  refine_scalar(critic, options, batch, result, workspace);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
