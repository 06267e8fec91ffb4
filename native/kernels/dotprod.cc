// dotprod.cc: every kernel for NEON with the int8 dot products of Armv8.2.
#include "kernels/vector_neon.h"

#define ES_ISA dotprod
#include "kernels/simd.h"
