// vector_avx512.h: sixteen lanes, and the int8 dot product of VNNI: what simd.h's bodies are written in. Its names, with
// those of vector_avx2.h and vector_neon.h, are one interface: a body compiles over each.
#ifndef EYESPOT_KERNELS_VECTOR_AVX512_H_
#define EYESPOT_KERNELS_VECTOR_AVX512_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace eyespot {
namespace {

using F = __m512;     // float lanes; + - * / work on it
using I = __m512i;    // the same number of int32 lanes, or four int8 a lane
using M = __mmask16;  // a lane each
constexpr int64_t W = 16;
constexpr int REGISTERS = 32;

// Lanes below n, for any n.
inline M first(int64_t n) { return n >= W ? 0xFFFF : n <= 0 ? 0 : static_cast<M>((1u << n) - 1); }

inline F all(float v) { return _mm512_set1_ps(v); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }  // then zeros
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store_first(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }

// Exact conversions of W numbers, or of the first n and zeros for the rest.
inline F load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_half_first(const uint16_t* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
inline F load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline F load_bf16_first(const uint16_t* p, int64_t n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16));
}
inline F load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F load_int8_first(const int8_t* p, int64_t n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}
// Round half to even; what does not fit becomes Inf.
inline __m256i narrow_half(F v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_half(uint16_t* p, F v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_half(v)); }
inline void store_half_first(uint16_t* p, F v, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), narrow_half(v)); }
inline void store_int8(int8_t* p, I v) {  // lanes in -128..127
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
inline void store_int8_first(int8_t* p, I v, int64_t n) {
  _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(v));
}
inline void store_int16(int16_t* p, I v) {  // lanes in -32768..32767
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}
inline void store_int16_first(int16_t* p, I v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(v));
}

inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c, rounded once
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline F min(F a, F b) { return _mm512_min_ps(a, b); }              // b where one is NaN
inline F max(F a, F b) { return _mm512_max_ps(a, b); }              // b where one is NaN
inline F magnitude(F v) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF))); }
inline M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline F choose(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
// 2^n of v = 1.5 * 2^23 + 127 + n; 0 of n = -127.
inline F power_of_two(F v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23)); }

inline float lowest_lane(F v) { return _mm512_cvtss_f32(v); }
inline float sum_lanes(F v) {  // pairwise
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline void sum_lanes(const F (&v)[4], float* sums) {
  __m256 h[4];
  for (int i = 0; i < 4; ++i) h[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
  const __m256 q = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1)));
}
inline float largest_lane(F v) { return _mm512_reduce_max_ps(v); }
inline int32_t sum_lanes(I v) { return _mm512_reduce_add_epi32(v); }
inline int32_t largest_lane(I v) { return _mm512_reduce_max_epi32(v); }

inline I all(int32_t v) { return _mm512_set1_epi32(v); }
inline I add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I max(I a, I b) { return _mm512_max_epi32(a, b); }
inline I min(I a, I b) { return _mm512_min_epi32(a, b); }
inline I bits(F v) { return _mm512_castps_si512(v); }
inline I to_int(F v) { return _mm512_cvtps_epi32(v); }  // round half to even
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }

// ---- packed weights: a vector is W rows of four columns ----

inline I load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline I four(const int8_t* p) {  // the same four columns of x for every row
  int32_t v;
  std::memcpy(&v, p, sizeof v);
  return _mm512_set1_epi32(v);
}
template <int B>
inline F column(I v) {  // signed byte B of every lane
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * B), 24));
}
template <int N>
inline F nibble(I v) {  // nibble N of every lane, 0..15
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 4 * N), _mm512_set1_epi32(15)));
}

// dot8: sum + w . x for signed bytes; w goes through weights8 once for many x. Where OFFSET8 is not 0, weights8 has added it
// to every number, and sums must begin at -OFFSET8 times the sum of x.
using W8 = I;
constexpr int32_t OFFSET8 = 128;  // the first operand of vpdpbusd is unsigned
inline W8 weights8(I v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
inline I dot8(I sum, W8 w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }

// dot4: sum + w . x for nibbles 0..15 in bytes; at most eight between zero4 and total4.
using Sum4 = I;
inline I low4(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline I high4(I v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline Sum4 zero4() { return _mm512_setzero_si512(); }
inline Sum4 dot4(Sum4 sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline I total4(Sum4 sum, I before) { return _mm512_add_epi32(before, sum); }

// sum + a . b for a lane's two signed words.
constexpr bool PAIRS = true;  // twice as fast as fma
inline I dot2(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }

}  // namespace
}  // namespace eyespot

#endif
