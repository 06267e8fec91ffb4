// select.cc: which instruction set this machine runs, and the Kernels record for it. A forced choice that cannot be
// honoured fails; nothing is remembered between calls.
#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"

namespace eyespot {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
  }
  return "";
}

bool isa_runs_here(Isa isa) {
  switch (isa) {
    case Isa::scalar: return true;
    case Isa::avx2:
#if ES_AVX2
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
      return false;
#endif
  }
  return false;
}

bool choose_isa(const char* wanted, Isa& isa, std::string& fault) {
  const char* source = "isa";
  if (wanted == nullptr || *wanted == 0) {
    wanted = std::getenv("EYESPOT_ISA");
    source = "EYESPOT_ISA";
  }
  std::string available;
  for (Isa candidate : ISAS) {
    if (!isa_runs_here(candidate)) continue;
    isa = candidate;
    if (wanted != nullptr && std::strcmp(wanted, isa_name(candidate)) == 0) return true;
    available += (available.empty() ? "" : ", ") + std::string(isa_name(candidate));
  }
  if (wanted == nullptr || *wanted == 0) return true;
  fault =
      std::string(source) + " cannot be honoured on this machine; found " + wanted + "; expected one of " + available;
  return false;
}

Kernels kernels_for(Isa isa) {
  Kernels chosen;
#define KERNEL(op, format, level, type) \
  if (Isa::level <= isa) chosen.op##_##format = op##_##format##_##level;
#include "kernels/kernels.inc"
#undef KERNEL
  return chosen;
}

}  // namespace eyespot
