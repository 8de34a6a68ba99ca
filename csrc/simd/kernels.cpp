// One instruction set's kernels: compiled once for each, with its compiler flags and DTAG_TARGET.
#include "../kernels.h"

#include "dense.h"
#include "transformer.h"
#include "walk.h"

#define DTAG_JOIN_(a, b) a##b
#define DTAG_JOIN(a, b) DTAG_JOIN_(a, b)
#define DTAG_STRING_(a) #a
#define DTAG_STRING(a) DTAG_STRING_(a)

namespace dtag {
namespace {

// Fitted by benchmarks/fit_cost_model.py on a Zen 4 core. NEON, not measured, takes SSE2's.
#if defined(__AVX512F__)
constexpr CostRates rates{0.0216, 0.0521, 51.0, 0.036, 0.052, 0.0174, 264.0, 0.173};
#elif defined(__AVX2__)
constexpr CostRates rates{0.0270, 0.0550, 45.0, 0.048, 0.064, 0.0240, 160.0, 0.460};
#else
constexpr CostRates rates{0.0697, 0.1250, 45.0, 0.100, 0.103, 0.0447, 165.0, 0.700};
#endif

}  // namespace

extern const KernelSet DTAG_JOIN(kernels_, DTAG_TARGET) = {
    DTAG_STRING(DTAG_TARGET),
    {refine_walk, workspace_size_walk},
    {refine_dense, workspace_size_dense},
    rates,
    &DTAG_JOIN(training_, DTAG_TARGET),
    {advance_transformer, workspace_size_transformer, apply_linear},
};

}  // namespace dtag
