// select.cc: which instruction set this machine runs, and the Kernels record for it. A forced choice that cannot be
// honoured fails; nothing is remembered between calls.
#include <cstdlib>
#include <cstring>

#if ES_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels/kernels.h"

namespace eyespot {

const char* isa_name(Isa isa) {
  switch (isa) {
#define ISA(name) \
  case Isa::name: return #name;
#include "kernels/isas.inc"
#undef ISA
  }
  return "";
}

bool isa_runs_here(Isa isa) {
  switch (isa) {
    case Isa::scalar: return true;
#if ES_X86
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avxvnni: return isa_runs_here(Isa::avx2) && __builtin_cpu_supports("avxvnni");
    case Isa::avx512:
      return isa_runs_here(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
#endif
#if ES_ARM
    case Isa::neon: return true;  // every 64-bit Arm has it
    case Isa::dotprod:
#ifdef __linux__
      return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
      return true;  // Apple's processors all do
#endif
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

const Kernels& kernels_for(Isa isa) {
  switch (isa) {
#define ISA(name) \
  case Isa::name: return name::KERNELS;
#include "kernels/isas.inc"
#undef ISA
  }
  return scalar::KERNELS;
}

}  // namespace eyespot
