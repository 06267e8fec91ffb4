// avx2.cc: every kernel for AVX2 with FMA and F16C.
#include "kernels/vector_avx2.h"

#define ES_ISA avx2
#include "kernels/simd.h"
