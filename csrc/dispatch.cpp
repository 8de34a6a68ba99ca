#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace dtag {
namespace {

const KernelSet kernels_scalar{"scalar",
                               {},
                               {refine_scalar, workspace_size_scalar},
                               {.0, .0, .0, .06, .1, .1, 300.0, 1.0},
                                nullptr,
                                {}};

#if defined(DTAG_SIMD_X86) && defined(__GNUC__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

// The fastest first.
std::vector<const KernelSet*> runnable() {
  std::vector<const KernelSet*> sets;
#if defined(DTAG_SIMD_X86)
  if (has_avx512()) sets.push_back(&kernels_avx512);
  if (has_avx2()) sets.push_back(&kernels_avx2);
  sets.push_back(&kernels_baseline);
#elif defined(DTAG_SIMD_NEON)
  sets.push_back(&kernels_neon);
#endif
  sets.push_back(&kernels_scalar);
  return sets;
}

const KernelSet* find(const std::string& name) {
  std::string known;
  for (const KernelSet* set : runnable()) {
    if (name == set->isa) return set;
    known += (known.empty() ? "" : ", ") + std::string(set->isa);
  }
  throw std::invalid_argument("expected one of " + known + " on this processor, got '" + name +
                              "'");
}

const KernelSet*& selected() {
  static const KernelSet* set = runnable().front();
  return set;
}

}  // namespace

const KernelSet& kernels() { return *selected(); }

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const KernelSet* set : runnable()) names.emplace_back(set->isa);
  return names;
}

void select_isa(const std::string& name) { selected() = find(name); }

const char* why_no_walk(const Critic& critic) {
  if (critic.activation != Activation::relu && critic.activation != Activation::leaky_relu)
    return "its activation is not piecewise linear";
  if (critic.hidden_layers < 1 || critic.hidden_layers > 3)
    return "it does not have one, two or three hidden layers";
  for (int l = 0; l < critic.hidden_layers; ++l)
    if (critic.layers[l].norm_weight != nullptr) return "it has LayerNorm";
  if (!critic.finite) return "its weights are not all finite";
  return nullptr;
}

}  // namespace dtag
