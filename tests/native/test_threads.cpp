// The thread pool, and that results do not depend on it. Whatever hangs is ended by an alarm.
//
//   test_threads [--no-fork]
//
// An emulator and ThreadSanitizer do not follow a process that forks while it has threads.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "execution.h"
#include "kernels.h"
#include "problem.h"
#include "thread_pool.h"

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace dtag::test {
namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what);
}

Settings large_batch(uint64_t seed) {
  Settings settings;
  settings.hidden = {64, 64};
  settings.rows = 301;
  settings.seed = seed;
  settings.options.steps = 5;
  settings.options.step_size = 0.03;
  return settings;
}

// The actions and Q of the batch, one after the other.
std::vector<float> refined(const Problem& problem, Algorithm algorithm, int threads) {
  const PackedCritic packed = problem.pack();
  const Critic& critic = packed.view();
  const auto rows = static_cast<size_t>(problem.settings.rows), n = rows * critic.action_dim;
  std::vector<float> floats(n + 3 * rows);
  std::vector<int64_t> integers(4 * rows);
  float* const q = floats.data() + n;
  int64_t* const steps = integers.data();
  refine(critic, problem.options(),
         {problem.settings.rows, 1, problem.observations.data(), problem.actions.data()},
         {floats.data(), q, q + rows, steps, steps + rows, q + 2 * rows, steps + 2 * rows,
          steps + 3 * rows},
         {algorithm, threads});
  return floats;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<Algorithm> algorithms() {
  if (kernels().walk.run == nullptr) return {Algorithm::dense};
  return {Algorithm::dense, Algorithm::walk};
}

void test_every_item_is_done_once() {
  for (int round = 0; round < 300; ++round) {
    std::vector<int> done(round, 0);
    std::atomic<int> next{0}, calls{0};
    const int threads = round % 5;
    run_with_help(threads, [&] {
      ++calls;
      for (int i = next++; i < round; i = next++) ++done[i];
    });
    for (const int times : done) expect(times == 1, "every item is done once");
    expect(calls >= 1 && calls <= std::max(threads, 1), "no more calls than threads");
  }
}

void test_help_comes() {
  // Each waits for the other, so this ends early only if both are inside at once.
  std::atomic<int> inside{0};
  run_with_help(2, [&] {
    ++inside;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (inside < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  });
  expect(inside == 2, "a helper comes");
}

void test_a_batch_within_a_batch() {
  std::atomic<int> outer{0}, inner{0};
  run_with_help(2, [&] {
    ++outer;
    run_with_help(2, [&] { ++inner; });
  });
  expect(outer == inner, "a batch within a batch runs in its thread alone");
}

void test_same_bits_with_any_number_of_threads() {
  const Problem problem(large_batch(1));
  for (const Algorithm algorithm : algorithms()) {
    const std::vector<float> alone = refined(problem, algorithm, 1);
    for (const int threads : {2, 3, 7, 64})
      expect(same(alone, refined(problem, algorithm, threads)), "same bits on more threads");
  }
}

void test_callers_do_not_disturb_each_other() {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (uint64_t caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller, &wrong] {
      const Problem problem(large_batch(caller));
      for (const Algorithm algorithm : algorithms()) {
        const std::vector<float> alone = refined(problem, algorithm, 1);
        for (int round = 0; round < 4; ++round)
          if (!same(alone, refined(problem, algorithm, 3))) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect(wrong == 0, "callers do not disturb each other");
}

#if !defined(_WIN32)
void test_a_forked_child_has_threads_of_its_own() {
  const Problem problem(large_batch(2));
  const std::vector<float> alone = refined(problem, Algorithm::dense, 1);
  // The fork happens while the pool is at work for another thread.
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) refined(problem, Algorithm::dense, 3);
  });
  for (int round = 0; round < 10; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);
      const bool right = same(alone, refined(problem, Algorithm::dense, 3));
      test_help_comes();
      _exit(right && failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    int status = -1;
    expect(waitpid(child, &status, 0) == child && WIFEXITED(status) &&
               WEXITSTATUS(status) == EXIT_SUCCESS,
           "a forked child refines with threads of its own");
  }
  stop = true;
  busy.join();
}
#endif

void test_all(bool fork) {
  test_every_item_is_done_once();
  test_help_comes();
  test_a_batch_within_a_batch();
  test_same_bits_with_any_number_of_threads();
  test_callers_do_not_disturb_each_other();
#if !defined(_WIN32)
  if (fork) test_a_forked_child_has_threads_of_its_own();
#else
  static_cast<void>(fork);
#endif
}

}  // namespace
}  // namespace dtag::test

int main(int argc, char** argv) {
#if !defined(_WIN32)
  alarm(300);
#endif
  dtag::test::test_all(argc < 2 || std::strcmp(argv[1], "--no-fork") != 0);
  if (dtag::test::failures == 0) std::puts("threads: all as expected");
  return dtag::test::failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
