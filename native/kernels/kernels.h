// kernels.h: every kernel's declaration, one namespace an instruction set, and the Kernels record of the ones chosen for this
// machine, all out of kernels.inc and isas.inc. Knows nothing of what a kernel does: see generic.h.
#ifndef EYESPOT_KERNELS_KERNELS_H_
#define EYESPOT_KERNELS_KERNELS_H_

#include <string>

#include "kernels/generic.h"

namespace eyespot {

// One pointer an (op, format), named op_format.
struct Kernels {
#define KERNEL(op, format, type) void (*op##_##format)(const type##Args&) = nullptr;
#include "kernels/kernels.inc"
#undef KERNEL
  bool pairs = false;  // attention over int16 is faster than over f32
};

#define ISA(name)                   \
  namespace name {                  \
  extern const Kernels KERNELS;     \
  }
#include "kernels/isas.inc"
#undef ISA

enum class Isa {
#define ISA(name) name,
#include "kernels/isas.inc"
#undef ISA
};
constexpr Isa ISAS[] = {
#define ISA(name) Isa::name,
#include "kernels/isas.inc"
#undef ISA
};

const char* isa_name(Isa isa);
bool isa_runs_here(Isa isa);  // this processor and its system run it

// The instruction set to use: `wanted`, else the environment's EYESPOT_ISA, else the best one. False when that one
// cannot run here; `fault` then says what can.
bool choose_isa(const char* wanted, Isa& isa, std::string& fault);

const Kernels& kernels_for(Isa isa);

}  // namespace eyespot

#endif
