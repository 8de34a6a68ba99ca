#include "execution.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "packed_critic.h"
#include "thread_pool.h"

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

// Waking a helper takes the caller about 10 us and the helper 30 to 50: from 100 us of work on a
// second thread pays, and each further one has to find as much.
constexpr double microseconds_per_helper = 100.0;

int threads_worth_using(const Critic& critic, const Options& options, const Batch& batch,
                        const Execution& execution) {
  if (execution.threads < 2 || batch.rows < 2) return 1;
  const double most = static_cast<double>(std::min<int64_t>(execution.threads, batch.rows)) - 1.0;
  const double work = estimated_microseconds(kernels().rates, critic, options, batch,
                                             execution.algorithm);
  const double helpers = work / microseconds_per_helper;
  return 1 + static_cast<int>(std::min(helpers, most));
}

// Rows are handed out in chunks, because they differ in cost: some sixteen to a thread, so that
// little is left to wait for at the end, but where there are enough of them as many in one as the
// dense kernel likes to take together.
int64_t rows_per_chunk(const Batch& batch, Algorithm algorithm, int threads) {
  const int64_t points = algorithm == Algorithm::dense ? 16 : 4;
  const int64_t together = (points + batch.starts - 1) / batch.starts;
  const int64_t even = batch.rows / (16 * threads);
  if (even >= together) return even / together * together;
  return std::min(together, (batch.rows + threads - 1) / threads);
}

}  // namespace

Algorithm choose(const Critic& critic, const Options& options, const Batch&,
                 Algorithm algorithm) {
  if (algorithm == Algorithm::dense) return algorithm;
  const char* const reason =
      kernels().walk.run == nullptr ? "the scalar kernels have no walk" : why_no_walk(critic);
  if (algorithm == Algorithm::walk && reason != nullptr) throw std::invalid_argument(reason);
  if (algorithm == Algorithm::walk) return algorithm;
  return reason == nullptr ? quicker(kernels().rates, critic, options) : Algorithm::dense;
}

void refine(const Critic& critic, const Options& options, const Batch& batch, const Result& result,
            const Execution& execution) {
  const Kernel& kernel = execution.algorithm == Algorithm::walk ? kernels().walk : kernels().dense;
  const WorkspaceSize size = kernel.workspace_size(critic);
  const Workspace own = thread_workspace(size);
  const int threads = threads_worth_using(critic, options, batch, execution);
  if (threads == 1) return kernel.run(critic, options, batch, result, own);

  const int64_t chunk = rows_per_chunk(batch, execution.algorithm, threads);
  std::atomic<int64_t> next{0};
  const auto work = [&]() noexcept {
    Workspace workspace;
    try {
      workspace = thread_workspace(size);
    } catch (const std::bad_alloc&) {
      return;  // a helper without memory; the caller has its own
    }
    for (int64_t row = next.fetch_add(chunk); row < batch.rows; row = next.fetch_add(chunk)) {
      const int64_t count = std::min(chunk, batch.rows - row);
      kernel.run(critic, options, batch.part(critic, row, count), result.from(critic, row),
                 workspace);
    }
  };
  run_with_help(threads, work);
}

}  // namespace dtag
