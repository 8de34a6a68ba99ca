// One instruction set's training kernels: compiled once for each, as kernels.cpp is.
#include "../training.h"

#include "iql.h"
#include "multiply.h"

#define DTAG_JOIN_(a, b) a##b
#define DTAG_JOIN(a, b) DTAG_JOIN_(a, b)

namespace dtag {

extern const TrainingKernels DTAG_JOIN(training_, DTAG_TARGET) = {multiply_workspace, multiply,
                                                                  iql_workspace, iql_step};

}  // namespace dtag
