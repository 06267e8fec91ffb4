// avxvnni.cc: every kernel for AVX2 with the int8 dot products of AVX-VNNI.
#include "kernels/vector_avx2.h"

#define ES_ISA avxvnni
#include "kernels/simd.h"
