// Every kernel of every instruction set that runs here, against the scalar one.
//
//   test_kernels [how many problems, spread over all of them = all]
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "problem.h"

namespace dtag::test {
namespace {

constexpr Activation activations[] = {Activation::relu, Activation::leaky_relu, Activation::tanh,
                                      Activation::gelu, Activation::silu,       Activation::mish,
                                      Activation::elu};

template <typename T, size_t n>
T one_of(Random& random, const T (&values)[n]) {
  return values[random.below(static_cast<int>(n))];
}

// Options of all kinds; steps and gains from those that leave a region alone to those that jump
// across many.
void draw_options(Random& random, Settings& settings) {
  Options& options = settings.options;
  settings.seed = random.next();
  settings.boxed = random.below(4) != 0;
  settings.gain = random.uniform(1.0f, 4.0f);
  settings.negative_slope = one_of(random, {0.01f, 0.2f, 0.0f, 1.5f, -0.5f});
  options.steps = one_of(random, {0, 1, 2, 10, 10, 25});
  options.step_size = one_of(random, {0.001, 0.03, 0.03, 0.3});
  options.optimizer = one_of(
      random, {Optimizer::sgd, Optimizer::sgd, Optimizer::momentum, Optimizer::rmsprop,
               Optimizer::adam});
  options.ensemble = one_of(random, {Ensemble::min, Ensemble::min, Ensemble::mean, Ensemble::lcb});
  options.lcb_k = random.uniform(-2.0f, 2.0f);
  options.select = one_of(random, {Select::best, Select::best, Select::last});
  options.max_distance = one_of(random, {-1.0f, -1.0f, 0.0f, 0.1f, 0.5f});
  options.gradient = one_of(random, {Gradient::raw, Gradient::unit});
  if (amplifies_rounding(settings)) {
    options.optimizer = Optimizer::momentum;
    options.gradient = Gradient::raw;
  }
}

Settings shape(int observation_dim, int action_dim, int heads, std::vector<int> hidden,
               int64_t rows, int64_t starts) {
  Settings settings;
  settings.observation_dim = observation_dim;
  settings.action_dim = action_dim;
  settings.heads = heads;
  settings.hidden = std::move(hidden);
  settings.rows = rows;
  settings.starts = starts;
  return settings;
}

std::vector<Settings> problems() {
  std::vector<Settings> all;
  Random random(2026);
  // Sizes at which loops end early, late, or do not begin.
  for (const Settings& sizes :
       {shape(1, 1, 1, {1}, 1, 1), shape(1, 2, 2, {1, 1}, 2, 1), shape(5, 3, 2, {33, 20}, 5, 1),
        shape(17, 6, 2, {64, 64}, 33, 1), shape(3, 2, 2, {16, 15}, 17, 3),
        shape(11, 8, 2, {70, 31}, 3, 2), shape(4, 9, 3, {17, 48}, 4, 1),
        shape(2, 21, 2, {40, 129}, 3, 1), shape(2, 3, 2, {50}, 9, 2), shape(6, 17, 1, {130}, 2, 1),
        shape(4, 3, 2, {}, 3, 1), shape(5, 3, 2, {24, 17, 24}, 19, 1),
        shape(3, 4, 7, {32, 32}, 2, 5), shape(2, 5, 2, {8, 8, 8, 8}, 2, 40),
        shape(3, 2, 2, {20, 20}, 0, 1), shape(8, 4, 2, {300, 257}, 2, 1)}) {
    for (const Activation activation : activations) {
      for (const bool layer_norm : {false, true}) {
        Settings settings = sizes;
        draw_options(random, settings);
        settings.activation = activation;
        settings.layer_norm = layer_norm;
        all.push_back(settings);
      }
    }
  }
  for (int i = 0; i < 300; ++i) {
    std::vector<int> hidden(static_cast<size_t>(one_of(random, {1, 2, 2, 2, 2, 3})));
    for (int& width : hidden) width = 1 + random.below(90);
    Settings settings = shape(1 + random.below(20), 1 + random.below(12), 1 + random.below(3),
                              hidden, 1 + random.below(40), 1 + random.below(3));
    draw_options(random, settings);
    settings.activation =
        random.below(3) == 0 ? one_of(random, activations)
                             : one_of(random, {Activation::relu, Activation::leaky_relu});
    settings.layer_norm = random.below(5) == 0;
    settings.precision = one_of(random, {Precision::fp32, Precision::fp32, Precision::bf16});
    all.push_back(settings);
  }
  return all;
}

int check_all(size_t count) {
  const std::vector<Settings> all = problems();
  const bool every = count >= all.size();
  if (every) count = all.size();
  int failures = 0;
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    Coverage walk, dense;
    for (size_t i = 0; i < count; ++i) {
      const Settings& settings = all[i * all.size() / count];
      const Problem problem(settings);
      const PackedCritic packed = problem.pack();
      const Critic& critic = packed.view();
      const auto check = [&](const char* algorithm, const Kernel& kernel, Coverage& coverage) {
        const std::string wrong = wrong_with(problem, critic, kernel, true, coverage);
        if (wrong.empty()) return;
        ++failures;
        std::cout << "FAILED " << isa << ' ' << algorithm << ": " << wrong << "\n  "
                  << to_string(settings) << '\n';
      };
      check("dense", kernels().dense, dense);
      if (kernels().walk.run != nullptr && why_no_walk(critic) == nullptr)
        check("walk", kernels().walk, walk);
    }
    std::cout << isa << ": dense " << dense.compared << " rows (" << dense.shaken
              << " amplify rounding), walk " << walk.compared << " (" << walk.shaken << "), "
              << walk.flips << " flips, " << walk.dense_steps << " steps by the full network\n";
    // What was not exercised was not tested.
    const bool walks = kernels().walk.run != nullptr;
    if (every && walks && (walk.flips == 0 || walk.dense_steps == 0)) {
      ++failures;
      std::cout << "FAILED " << isa << ": the problems leave a path of the walk out\n";
    }
  }
  return failures;
}

}  // namespace
}  // namespace dtag::test

int main(int argc, char** argv) {
  const size_t count = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : SIZE_MAX;
  return dtag::test::check_all(count) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
