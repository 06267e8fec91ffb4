// neon.cc: every kernel for NEON of Armv8.0.
#include "kernels/vector_neon.h"

#define ES_ISA neon
#include "kernels/simd.h"
