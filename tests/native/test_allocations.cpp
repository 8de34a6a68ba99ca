// After its first call neither a refinement, in any thread, nor an action allocates anything: every
// way to operator new is counted.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "acting.h"
#include "execution.h"
#include "kernels.h"
#include "problem.h"

namespace {

std::atomic<int64_t> allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  ++allocations;
  // The pointer handed out stands `alignment` behind the one to free, which is kept before it.
  alignment = std::max(alignment, 2 * sizeof(void*));
  void* const memory = std::malloc(size + 2 * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  auto* const aligned =
      reinterpret_cast<void*>((address + 2 * alignment - 1) / alignment * alignment);
  static_cast<void**>(aligned)[-1] = memory;
  return aligned;
}

void release(void* pointer) noexcept {
  if (pointer != nullptr) std::free(static_cast<void**>(pointer)[-1]);
}

}  // namespace

void* operator new(std::size_t size) { return counted(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* pointer) noexcept { release(pointer); }
void operator delete(void* pointer, std::size_t) noexcept { release(pointer); }
void operator delete(void* pointer, std::align_val_t) noexcept { release(pointer); }
void operator delete(void* pointer, std::size_t, std::align_val_t) noexcept { release(pointer); }

namespace dtag::test {
namespace {

int64_t allocations_of_a_later_call(Algorithm algorithm, int threads, int64_t rows) {
  Settings settings;
  settings.hidden = {64, 64};
  settings.rows = rows;
  settings.options.steps = 5;
  settings.options.step_size = 0.3;
  const Problem problem(settings);
  const PackedCritic packed = problem.pack();
  const Options options = problem.options();
  std::vector<float> actions(static_cast<size_t>(rows) * settings.action_dim), floats(3 * rows);
  std::vector<int64_t> integers(4 * rows);
  const auto call = [&] {
    refine(packed.view(), options,
           {rows, 1, problem.observations.data(), problem.actions.data()},
           {actions.data(), floats.data(), floats.data() + rows, integers.data(),
            integers.data() + rows, floats.data() + 2 * rows, integers.data() + 2 * rows,
            integers.data() + 3 * rows},
           {algorithm, threads});
  };
  for (int i = 0; i < 20; ++i) call();  // a helper may sleep through some
  const int64_t before = allocations;
  for (int i = 0; i < 5; ++i) call();
  return allocations - before;
}

int64_t allocations_of_a_later_action(bool sliding, int envs) {
  const Settings settings;  // of the critic that refines
  const Problem problem(settings);
  const PackedCritic critic = problem.pack();
  const Options options = problem.options();
  Transformer sizes;
  sizes.observation_dim = settings.observation_dim;
  sizes.action_dim = settings.action_dim;
  sizes.window = 3;
  sizes.width = 12;
  sizes.heads = 3;
  sizes.max_timestep = 100;
  sizes.predicts_returns = true;
  sizes.sliding = sliding;
  const std::vector<float> weights(2000, 0.1f), low(3, -1.0f);
  const auto model = std::make_shared<PackedTransformer>(
      sizes, 2,
      [&](const std::string& name, const std::vector<int>&) {
        return (name == "action_low" ? low : weights).data();
      },
      Precision::fp32);
  Acting acting(model, envs);
  ActOptions act;
  act.critic = &critic.view();
  act.options = &options;
  const std::vector<float> observations(static_cast<size_t>(envs) * sizes.observation_dim, 0.5f);
  std::vector<float> actions(static_cast<size_t>(envs) * sizes.action_dim);
  for (int i = 0; i < 10; ++i) acting.act(act, observations.data(), nullptr, actions.data());
  const int64_t before = allocations;
  for (int i = 0; i < 5; ++i) acting.act(act, observations.data(), nullptr, actions.data());
  return allocations - before;
}

int run() {
  int failures = 0;
  const int64_t at_start = allocations;
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    for (const Algorithm algorithm : {Algorithm::dense, Algorithm::walk}) {
      if (algorithm == Algorithm::walk && kernels().walk.run == nullptr) continue;
      for (const int threads : {1, 2}) {
        const int64_t count =
            allocations_of_a_later_call(algorithm, threads, threads == 1 ? 1 : 300);
        if (count == 0) continue;
        ++failures;
        std::printf("FAILED %s, algorithm %d, %d threads: %lld allocations\n", isa.c_str(),
                    static_cast<int>(algorithm), threads, static_cast<long long>(count));
      }
    }
  }
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    if (kernels().transformer.advance == nullptr) continue;
    for (const bool sliding : {false, true}) {
      const int64_t count = allocations_of_a_later_action(sliding, sliding ? 1 : 30);
      if (count == 0) continue;
      ++failures;
      std::printf("FAILED %s, acting: %lld allocations\n", isa.c_str(),
                  static_cast<long long>(count));
    }
  }
  if (allocations == at_start) {
    ++failures;
    std::printf("FAILED: allocations are not counted\n");
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace dtag::test

int main() { return dtag::test::run(); }
