// simd.h: every kernel for one instruction set, ES_ISA, out of the bodies written once over its vector_*.h, which must be
// included before. Knows no instruction.
#ifndef EYESPOT_KERNELS_SIMD_H_
#define EYESPOT_KERNELS_SIMD_H_

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "kernels/linear_float.h"
#include "kernels/linear_packed.h"

namespace eyespot::ES_ISA {

const Kernels KERNELS = {
#define KERNEL(op, format, type) op##_##format,
#include "kernels/kernels.inc"
#undef KERNEL
    PAIRS,
};

}  // namespace eyespot::ES_ISA

#endif
