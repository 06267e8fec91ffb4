// ceilings.cc: twelve independent sums a loop, held in registers: enough to hide the latency of every multiply-add here. The
// instructions are written out, so that no compiler leaves one out or puts one in, and each function names its own set.
#include "kernels/ceilings.h"

#include <cstring>

#if ES_X86
#include <immintrin.h>
#define REGISTER "x"
#elif ES_ARM
#include <arm_neon.h>
#define REGISTER "w"
#endif

namespace eyespot {
namespace {

// `code` adds products of x and x to s; t and u are free to use. What the numbers are makes no difference, so x also stands
// for the ones with which int16 sums are multiplied to widen them; but they are no zeros, which would draw less power.
#define ADD(code, sum)                                                            \
  asm volatile(code                                                               \
               : [s] "+" REGISTER(sum), [t] "=&" REGISTER(t), [u] "=&" REGISTER(u) \
               : [x] REGISTER(x))

#define LOOP(name, isa, V, code)                                           \
  __attribute__((target(isa), noinline)) void name(int64_t rounds) {       \
    V a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{}, i{}, j{}, k{}, l{}, x, t, u; \
    std::memset(&x, 0x3F, sizeof x); /* as floats 0.75 */                  \
    for (; rounds > 0; --rounds) {                                         \
      ADD(code, a); ADD(code, b); ADD(code, c); ADD(code, d);              \
      ADD(code, e); ADD(code, f); ADD(code, g); ADD(code, h);              \
      ADD(code, i); ADD(code, j); ADD(code, k); ADD(code, l);              \
    }                                                                      \
  }

#if ES_X86

LOOP(fma_avx2, "avx2,fma", __m256, "vfmadd231ps %[x], %[x], %[s]")
LOOP(madd_avx2, "avx2", __m256i,
     "vpmaddwd %[x], %[x], %[t]\n"
     "vpaddd %[t], %[s], %[s]")
LOOP(maddubs_avx2, "avx2", __m256i,
     "vpmaddubsw %[x], %[x], %[t]\n"
     "vpmaddwd %[x], %[t], %[t]\n"
     "vpaddd %[t], %[s], %[s]")
LOOP(maddubs8_avx2, "avx2", __m256i,
     "vpmaddubsw %[x], %[x], %[t]\n"
     ".rept 7\n"
     "vpmaddubsw %[x], %[x], %[u]\n"
     "vpaddw %[u], %[t], %[t]\n"
     ".endr\n"
     "vpmaddwd %[x], %[t], %[t]\n"
     "vpaddd %[t], %[s], %[s]")
LOOP(dpwssd_avxvnni, "avx2,avxvnni", __m256i, "%{vex%} vpdpwssd %[x], %[x], %[s]")
LOOP(dpbusd_avxvnni, "avx2,avxvnni", __m256i, "%{vex%} vpdpbusd %[x], %[x], %[s]")
LOOP(fma_avx512, "avx512f", __m512, "vfmadd231ps %[x], %[x], %[s]")
LOOP(dpwssd_avx512, "avx512f,avx512vnni", __m512i, "vpdpwssd %[x], %[x], %[s]")
LOOP(dpbusd_avx512, "avx512f,avx512vnni", __m512i, "vpdpbusd %[x], %[x], %[s]")

#elif ES_ARM

LOOP(fmla_neon, "arch=armv8-a", int8x16_t, "fmla %[s].4s, %[x].4s, %[x].4s")
LOOP(smlal16_neon, "arch=armv8-a", int8x16_t,
     "smlal %[s].4s, %[x].4h, %[x].4h\n"
     "smlal2 %[s].4s, %[x].8h, %[x].8h")
LOOP(smlal_neon, "arch=armv8-a", int8x16_t,
     "smull %[t].8h, %[x].8b, %[x].8b\n"
     "smlal2 %[t].8h, %[x].16b, %[x].16b\n"
     "sadalp %[s].4s, %[t].8h")
LOOP(smlal8_neon, "arch=armv8-a", int8x16_t,
     "smull %[t].8h, %[x].8b, %[x].8b\n"
     "smlal2 %[t].8h, %[x].16b, %[x].16b\n"
     ".rept 7\n"
     "smlal %[t].8h, %[x].8b, %[x].8b\n"
     "smlal2 %[t].8h, %[x].16b, %[x].16b\n"
     ".endr\n"
     "sadalp %[s].4s, %[t].8h")
LOOP(sdot_dotprod, "arch=armv8.2-a+dotprod", int8x16_t, "sdot %[s].4s, %[x].16b, %[x].16b")

#endif

}  // namespace

CeilingLoops ceiling_loops(Isa isa) {
  switch (isa) {
    case Isa::scalar: break;
#if ES_X86
    case Isa::avx2:
      return {{"vfmadd ymm", 12 * 16, fma_avx2},
              {"vpmaddwd, vpaddd ymm", 12 * 32, madd_avx2},
              {"vpmaddubsw, vpmaddwd ymm", 12 * 64, maddubs_avx2},
              {"8 vpmaddubsw, vpmaddwd ymm", 12 * 8 * 64, maddubs8_avx2}};
    case Isa::avxvnni:
      return {{"vfmadd ymm", 12 * 16, fma_avx2},
              {"vpdpwssd ymm", 12 * 32, dpwssd_avxvnni},
              {"vpdpbusd ymm", 12 * 64, dpbusd_avxvnni},
              {"vpdpbusd ymm", 12 * 64, dpbusd_avxvnni}};
    case Isa::avx512:
      return {{"vfmadd zmm", 12 * 32, fma_avx512},
              {"vpdpwssd zmm", 12 * 64, dpwssd_avx512},
              {"vpdpbusd zmm", 12 * 128, dpbusd_avx512},
              {"vpdpbusd zmm", 12 * 128, dpbusd_avx512}};
#endif
#if ES_ARM
    case Isa::neon:
      return {{"fmla", 12 * 8, fmla_neon},
              {"smlal, smlal2", 12 * 16, smlal16_neon},
              {"smull, smlal2, sadalp", 12 * 32, smlal_neon},
              {"8 smlal, smlal2, sadalp", 12 * 8 * 32, smlal8_neon}};
    case Isa::dotprod:
      return {{"fmla", 12 * 8, fmla_neon},
              {"smlal, smlal2", 12 * 16, smlal16_neon},
              {"sdot", 12 * 32, sdot_dotprod},
              {"sdot", 12 * 32, sdot_dotprod}};
#endif
  }
  return {};
}

// Reading ahead by a page: no slower where the processor does so itself, faster where a page's end stops it.
uint64_t read_through(const std::byte* data, int64_t bytes) {
  using V [[gnu::vector_size(16)]] = uint64_t;
  V sum[4] = {};
  for (int64_t at = 0; at < bytes; at += 64) {
    __builtin_prefetch(data + at + 4096);
    const V* line = reinterpret_cast<const V*>(data + at);
    for (int i = 0; i < 4; ++i) sum[i] ^= line[i];
  }
  const V all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1];
}

}  // namespace eyespot
