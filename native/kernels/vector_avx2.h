// vector_avx2.h: eight lanes of AVX2 with FMA and F16C; with AVX-VNNI its int8 dot product too. The interface of
// vector_avx512.h.
#ifndef EYESPOT_KERNELS_VECTOR_AVX2_H_
#define EYESPOT_KERNELS_VECTOR_AVX2_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace eyespot {
namespace {

using F = __m256;   // float lanes; + - * / work on it
using I = __m256i;  // the same number of int32 lanes, or four int8 a lane
using M = __m256i;  // a lane each, all ones or none
constexpr int64_t W = 8;
constexpr int REGISTERS = 16;

// Lanes below n, for any n.
inline M first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The n bytes at p, at most 16, then zeros.
inline __m128i first_bytes(const void* p, int64_t n) {
  alignas(16) unsigned char bytes[16] = {};
  std::memcpy(bytes, p, static_cast<size_t>(n));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

inline F all(float v) { return _mm256_set1_ps(v); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load_first(const float* p, int64_t n) { return n >= W ? load(p) : _mm256_maskload_ps(p, first(n)); }  // then zeros
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store_first(float* p, F v, int64_t n) {
  if (n >= W)
    store(p, v);
  else
    _mm256_maskstore_ps(p, first(n), v);
}

// Exact conversions of W numbers, or of the first n and zeros for the rest.
inline F widen_half(__m128i v) { return _mm256_cvtph_ps(v); }
inline F widen_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
inline F widen_int8(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); }
inline F load_half(const uint16_t* p) { return widen_half(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load_half_first(const uint16_t* p, int64_t n) { return n >= W ? load_half(p) : widen_half(first_bytes(p, 2 * n)); }
inline F load_bf16(const uint16_t* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load_bf16_first(const uint16_t* p, int64_t n) { return n >= W ? load_bf16(p) : widen_bf16(first_bytes(p, 2 * n)); }
inline F load_int8(const int8_t* p) { return widen_int8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline F load_int8_first(const int8_t* p, int64_t n) { return n >= W ? load_int8(p) : widen_int8(first_bytes(p, n)); }
// Round half to even; what does not fit becomes Inf.
inline void store_half(uint16_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_half_first(uint16_t* p, F v, int64_t n) {
  uint16_t halves[W];
  store_half(halves, v);
  std::memcpy(p, halves, static_cast<size_t>(n < W ? n : W) * sizeof *p);
}
inline void store_int8(int8_t* p, I v) {  // lanes in -128..127
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline void store_int8_first(int8_t* p, I v, int64_t n) {
  int8_t bytes[W];
  store_int8(bytes, v);
  std::memcpy(p, bytes, static_cast<size_t>(n < W ? n : W));
}
inline void store_int16(int16_t* p, I v) {  // lanes in -32768..32767
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
inline void store_int16_first(int16_t* p, I v, int64_t n) {
  int16_t words[W];
  store_int16(words, v);
  std::memcpy(p, words, static_cast<size_t>(n < W ? n : W) * sizeof *p);
}

inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c, rounded once
inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
inline F min(F a, F b) { return _mm256_min_ps(a, b); }              // b where one is NaN
inline F max(F a, F b) { return _mm256_max_ps(a, b); }              // b where one is NaN
inline F magnitude(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline M less(F a, F b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline F choose(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
// 2^n of v = 1.5 * 2^23 + 127 + n; 0 of n = -127.
inline F power_of_two(F v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23)); }

inline float lowest_lane(F v) { return _mm256_cvtss_f32(v); }
inline float sum_lanes(F v) {  // pairwise
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline void sum_lanes(const F (&v)[4], float* sums) {
  const __m256 q = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1)));
}
inline float largest_lane(F v) {
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
inline int32_t sum_lanes(I v) {
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}
inline int32_t largest_lane(I v) {
  __m128i q = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}

inline I all(int32_t v) { return _mm256_set1_epi32(v); }
inline I add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I max(I a, I b) { return _mm256_max_epi32(a, b); }
inline I min(I a, I b) { return _mm256_min_epi32(a, b); }
inline I bits(F v) { return _mm256_castps_si256(v); }
inline I to_int(F v) { return _mm256_cvtps_epi32(v); }  // round half to even
inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }

// ---- packed weights: a vector is W rows of four columns ----

inline I load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline I four(const int8_t* p) {  // the same four columns of x for every row
  int32_t v;
  std::memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}
template <int B>
inline F column(I v) {  // signed byte B of every lane
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * B), 24));
}
template <int N>
inline F nibble(I v) {  // nibble N of every lane, 0..15
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v, 4 * N), _mm256_set1_epi32(15)));
}

inline I low4(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline I high4(I v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }

// sum + a . b for a lane's two signed words.
constexpr bool PAIRS = true;  // faster than fma where it was measured, on Zen 5

#ifdef __AVXVNNI__

inline I dot2(I sum, I a, I b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }

using W8 = I;
constexpr int32_t OFFSET8 = 128;  // the first operand of vpdpbusd is unsigned
inline W8 weights8(I v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
inline I dot8(I sum, W8 w, I x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }

using Sum4 = I;
inline Sum4 zero4() { return _mm256_setzero_si256(); }
inline Sum4 dot4(Sum4 sum, I w, I x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
inline I total4(Sum4 sum, I before) { return _mm256_add_epi32(before, sum); }

#else

inline I dot2(I sum, I a, I b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

inline I pairs(I v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }  // int16 sums of two as int32

// maddubs wants one side unsigned: |w| with the sign moved to x. 2 * 127 * 127 fits int16.
struct W8 {
  I w, size;
};
constexpr int32_t OFFSET8 = 0;
inline W8 weights8(I v) { return {v, _mm256_abs_epi8(v)}; }
inline I dot8(I sum, W8 w, I x) {
  return _mm256_add_epi32(sum, pairs(_mm256_maddubs_epi16(w.size, _mm256_sign_epi8(x, w.w))));
}

// Eight sums of two products of 15 * 127 fit int16: one widening for 32 columns.
using Sum4 = I;
inline Sum4 zero4() { return _mm256_setzero_si256(); }
inline Sum4 dot4(Sum4 sum, I w, I x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }
inline I total4(Sum4 sum, I before) { return _mm256_add_epi32(before, pairs(sum)); }

#endif

}  // namespace
}  // namespace eyespot

#endif
