// One instruction set's kernels: compiled once for each, with its compiler flags and DTAG_TARGET.
#include "../kernels.h"

#include "dense.h"
#include "walk.h"

#define DTAG_JOIN_(a, b) a##b
#define DTAG_JOIN(a, b) DTAG_JOIN_(a, b)
#define DTAG_STRING_(a) #a
#define DTAG_STRING(a) DTAG_STRING_(a)

namespace dtag {

extern const KernelSet DTAG_JOIN(kernels_, DTAG_TARGET) = {
    DTAG_STRING(DTAG_TARGET),
    {refine_walk, workspace_size_walk},
    {refine_dense, workspace_size_dense},
};

}  // namespace dtag
