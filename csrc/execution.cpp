#include "execution.h"

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "packed_critic.h"

namespace dtag {
namespace {

// Memory that a thread keeps between its calls.
Workspace thread_workspace(const WorkspaceSize& size) {
  thread_local size_t capacity = 0;
  thread_local std::unique_ptr<AlignedFloats> floats;
  thread_local std::vector<int32_t> indices;
  if (size.floats > capacity) {
    floats = std::make_unique<AlignedFloats>(size.floats);
    capacity = size.floats;
  }
  if (size.indices > indices.size()) indices.resize(size.indices);
  return {floats->data(), indices.data()};
}

}  // namespace

Algorithm choose(const Critic& critic, const Options&, const Batch&, Algorithm algorithm) {
  if (algorithm == Algorithm::dense) return algorithm;
  const char* const reason =
      kernels().walk.run == nullptr ? "the scalar kernels have no walk" : why_no_walk(critic);
  if (algorithm == Algorithm::walk && reason != nullptr) throw std::invalid_argument(reason);
  return reason == nullptr ? Algorithm::walk : Algorithm::dense;
}

void refine(const Critic& critic, const Options& options, const Batch& batch, const Result& result,
            const Execution& execution) {
  const Kernel& kernel = execution.algorithm == Algorithm::walk ? kernels().walk : kernels().dense;
  kernel.run(critic, options, batch, result, thread_workspace(kernel.workspace_size(critic)));
}

}  // namespace dtag
