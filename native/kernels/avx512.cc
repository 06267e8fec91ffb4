// avx512.cc: every kernel for AVX-512 F, BW, DQ and VL with VNNI.
#include "kernels/vector_avx512.h"

#define ES_ISA avx512
#include "kernels/simd.h"
