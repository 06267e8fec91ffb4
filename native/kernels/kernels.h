// kernels.h: every kernel's declaration and the Kernels record of the ones chosen for this machine, both out of
// kernels.inc. Knows nothing of what a kernel does: see generic.h.
#ifndef EYESPOT_KERNELS_KERNELS_H_
#define EYESPOT_KERNELS_KERNELS_H_

#include <string>

#include "kernels/generic.h"

namespace eyespot {

#define KERNEL(op, format, isa, type) void op##_##format##_##isa(const type##Args&);
#include "kernels/kernels.inc"
#undef KERNEL

// One pointer an (op, format), named op_format.
struct Kernels {
#define ES_FIELD_scalar(op, format, type) void (*op##_##format)(const type##Args&) = nullptr;
#define ES_FIELD_avx2(op, format, type)
#define KERNEL(op, format, isa, type) ES_FIELD_##isa(op, format, type)
#include "kernels/kernels.inc"
#undef KERNEL
};

enum class Isa { scalar, avx2 };
constexpr Isa ISAS[] = {Isa::scalar, Isa::avx2};  // from the plainest to the best

const char* isa_name(Isa isa);
bool isa_runs_here(Isa isa);  // compiled in, and this processor and its system run it

// The instruction set to use: `wanted`, else the environment's EYESPOT_ISA, else the best one. False when that one
// cannot run here; `fault` then says what can.
bool choose_isa(const char* wanted, Isa& isa, std::string& fault);

Kernels kernels_for(Isa isa);

}  // namespace eyespot

#endif
