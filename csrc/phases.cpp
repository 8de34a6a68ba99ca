#include "phases.h"

#include <atomic>
#include <memory>
#include <thread>

#include "openmp_team.h"
#include "thread_pool.h"

namespace dtag {
namespace {

constexpr int patience = 2000;  // looks before the processor is offered to others

struct alignas(64) Progress {
  std::atomic<int> taken{0}, done{0};
};

}  // namespace

void run_phases(int threads, int phases, PhaseCount count, PhaseItem item, const void* context) {
  if (threads < 2) {
    for (int phase = 0; phase < phases; ++phase)
      for (int i = 0, n = count(context, phase); i < n; ++i) item(context, phase, i);
    return;
  }
  const std::unique_ptr<Progress[]> progress(new Progress[phases]);
  const auto work = [&] {
    for (int phase = 0; phase < phases; ++phase) {
      Progress& here = progress[phase];
      const int n = count(context, phase);
      for (int i; (i = here.taken.fetch_add(1, std::memory_order_relaxed)) < n;) {
        item(context, phase, i);
        here.done.fetch_add(1, std::memory_order_release);
      }
      for (int looks = 0; here.done.load(std::memory_order_acquire) < n; ++looks)
        if (looks > patience) std::this_thread::yield();
    }
  };
  if (!run_in_openmp_team(threads, work)) run_with_help(threads, work);
}

}  // namespace dtag
