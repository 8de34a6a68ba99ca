// One instruction set's kernels: compiled once for each, with its compiler flags and DTAG_TARGET.
#include "../kernels.h"

#include "dense.h"
#include "walk.h"

#define DTAG_JOIN_(a, b) a##b
#define DTAG_JOIN(a, b) DTAG_JOIN_(a, b)
#define DTAG_STRING_(a) #a
#define DTAG_STRING(a) DTAG_STRING_(a)

namespace dtag {
namespace {

#if defined(__AVX512F__)
constexpr CostRates rates{0.019, 0.030, 30.0, 0.036, 0.047, 0.019, 100.0, 0.3};
#elif defined(__AVX2__)
constexpr CostRates rates{0.022, 0.040, 40.0, 0.036, 0.045, 0.022, 150.0, 0.5};
#else
constexpr CostRates rates{0.080, 0.080, 60.0, 0.080, 0.090, 0.080, 200.0, 1.0};
#endif

}  // namespace

extern const KernelSet DTAG_JOIN(kernels_, DTAG_TARGET) = {
    DTAG_STRING(DTAG_TARGET),
    {refine_walk, workspace_size_walk},
    {refine_dense, workspace_size_dense},
    rates,
};

}  // namespace dtag
