// Fuzz target: any sizes, options and numbers, NaN and infinities among them, through every kernel
// that runs here. What must hold is in check.h. With clang, libFuzzer calls it (`make fuzz`);
// otherwise a main of its own replays pseudo-random inputs:
//
//   fuzz_refine [inputs = 2000 [the first one = 0]]
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "problem.h"

namespace dtag::test {
namespace {

// The fuzzer's bytes, then zeros.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return at_ >= size_; }
  int take() { return empty() ? 0 : data_[at_++]; }
  int below(int bound) { return take() % bound; }
  template <typename Enum>
  Enum word(Enum last) {
    return static_cast<Enum>(below(static_cast<int>(last) + 1));
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

Settings decode_settings(Bytes& bytes) {
  constexpr double step_sizes[] = {0.03, 0.0, 1e-3, 0.3, 10.0, -0.1, 1e30, 1e-42};
  constexpr float distances[] = {-1.0f, 0.1f, 0.0f, 1e-30f, 1e30f, 0.5f};
  constexpr float gains[] = {2.0f, 1.0f, 4.0f, 0.0f};
  constexpr float slopes[] = {0.01f, 0.0f, 1.0f, -0.5f, 3.0f};
  Settings settings;
  settings.seed = static_cast<uint64_t>(bytes.take());
  settings.observation_dim = 1 + bytes.below(19);
  settings.action_dim = 1 + bytes.below(19);
  settings.heads = 1 + bytes.below(4);
  settings.hidden.resize(static_cast<size_t>(bytes.below(5)));
  for (int& width : settings.hidden) width = 1 + bytes.below(70);
  settings.activation = bytes.word(Activation::elu);
  settings.layer_norm = bytes.below(4) == 1;
  settings.precision = bytes.word(Precision::bf16);
  settings.negative_slope = slopes[bytes.below(5)];
  settings.gain = gains[bytes.below(4)];
  settings.boxed = bytes.below(3) != 1;
  settings.rows = bytes.below(20);
  settings.starts = 1 + bytes.below(5);
  Options& options = settings.options;
  options.steps = bytes.below(14);
  options.step_size = step_sizes[bytes.below(8)];
  options.optimizer = bytes.word(Optimizer::adam);
  options.ensemble = bytes.word(Ensemble::lcb);
  options.lcb_k = static_cast<float>(bytes.below(5)) - 1.0f;
  options.select = bytes.word(Select::last);
  options.max_distance = distances[bytes.below(6)];
  options.gradient = bytes.word(Gradient::unit);
  return settings;
}

// Puts unusual numbers, or none, wherever the bytes say; returns whether it did.
bool inject(Bytes& bytes, Problem& problem) {
  constexpr float unusual[] = {0.0f,
                               -0.0f,
                               std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               FLT_MAX,
                               -FLT_MAX,
                               FLT_MIN,
                               1e-42f,
                               -1e-45f,
                               1e19f,
                               -1e19f,
                               1e-20f,
                               1.0f,
                               1e6f,
                               65536.0f};
  const int count = bytes.below(16) - 8;
  const std::vector<std::vector<float>*> arrays = problem.numbers();
  for (int i = 0; i < count; ++i) {
    std::vector<float>& array =
        *arrays[static_cast<size_t>(bytes.below(static_cast<int>(arrays.size())))];
    const auto at = static_cast<size_t>(bytes.take() * 256 + bytes.take());
    const float x = unusual[bytes.below(16)];
    if (array.empty()) continue;
    if (bytes.below(16) == 1)
      std::fill(array.begin(), array.end(), x);
    else
      array[at % array.size()] = x;
  }
  return count > 0;
}

// Numbers of a size at which rounding is all that two kernels may differ by.
bool ordinary(const Settings& settings) {
  const double step_size = settings.options.step_size;
  return settings.gain > 0.0f && (settings.boxed ? step_size <= 0.3 : step_size <= 0.03) &&
         (step_size == 0.0 || step_size >= 1e-3) && settings.options.max_distance != 1e-30f &&
         std::abs(settings.negative_slope) <= 1.0f && !amplifies_rounding(settings);
}

void check(const Problem& problem, bool compare) {
  const PackedCritic packed = problem.pack();
  const Critic& critic = packed.view();
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    const auto expect_right = [&](const char* algorithm, const Kernel& kernel) {
      Coverage coverage;
      const std::string wrong = wrong_with(problem, critic, kernel, compare, coverage);
      if (wrong.empty()) return;
      std::printf("FAILED %s %s: %s\n  %s\n", isa.c_str(), algorithm, wrong.c_str(),
                  to_string(problem.settings).c_str());
      std::fflush(stdout);
      std::abort();
    };
    expect_right("dense", kernels().dense);
    if (kernels().walk.run != nullptr && why_no_walk(critic) == nullptr)
      expect_right("walk", kernels().walk);
  }
}

}  // namespace
}  // namespace dtag::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dtag::test;
  Bytes bytes(data, size);
  Problem problem(decode_settings(bytes));
  const bool injected = inject(bytes, problem);
  check(problem, !injected && ordinary(problem.settings));
  return 0;
}

#if !defined(DTAG_LIBFUZZER)
int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 2000;
  const int first = argc > 2 ? std::atoi(argv[2]) : 0;
  for (int input = first; input < first + count; ++input) {
    dtag::test::Random random(static_cast<uint64_t>(input));
    std::vector<uint8_t> data(64);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.next() >> 56);
    if (input % 100 == 0) std::fprintf(stderr, "input %d ...\n", input);
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("fuzz: %d inputs, nothing found\n", count);
}
#endif
