// One instruction set's training kernels: compiled once for each, as kernels.cpp is.
#include "../training.h"

#include "attention.h"
#include "iql.h"
#include "multiply.h"
#include "pointwise.h"

#define DTAG_JOIN_(a, b) a##b
#define DTAG_JOIN(a, b) DTAG_JOIN_(a, b)

namespace dtag {

extern const TrainingKernels DTAG_JOIN(training_, DTAG_TARGET) = {
    multiply_workspace, multiply, iql_workspace, iql_step, gelu, dropout, attend,
    lamb_sums, lamb_step,
};

}  // namespace dtag
