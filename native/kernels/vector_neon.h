// vector_neon.h: four lanes of NEON as every 64-bit Arm has it; with Armv8.2's dot products the int8 sums too. The interface
// of vector_avx512.h.
#ifndef EYESPOT_KERNELS_VECTOR_NEON_H_
#define EYESPOT_KERNELS_VECTOR_NEON_H_

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace eyespot {
namespace {

using F = float32x4_t;  // float lanes; + - * / work on it
using I = int32x4_t;    // the same number of int32 lanes, or four int8 a lane
using M = uint32x4_t;   // a lane each, all ones or none
constexpr int64_t W = 4;
constexpr int REGISTERS = 32;

// Lanes below n, for any n.
inline M first(int64_t n) {
  static constexpr int32_t LANES[4] = {0, 1, 2, 3};
  return vcltq_s32(vld1q_s32(LANES), vdupq_n_s32(static_cast<int>(n)));
}

// The n < W numbers at p, none below 1, then zeros.
template <class T>
struct Few {
  Few(const T* p, int64_t n) {
    if (n > 0) std::memcpy(numbers, p, static_cast<size_t>(n) * sizeof(T));
  }
  T numbers[W] = {};
};

inline F all(float v) { return vdupq_n_f32(v); }
inline F load(const float* p) { return vld1q_f32(p); }
inline F load_first(const float* p, int64_t n) { return n >= W ? load(p) : load(Few<float>(p, n).numbers); }  // then zeros
inline void store(float* p, F v) { vst1q_f32(p, v); }
inline void store_first(float* p, F v, int64_t n) {
  float numbers[W];
  store(numbers, v);
  std::memcpy(p, numbers, static_cast<size_t>(n < W ? n : W) * sizeof *p);
}

// Exact conversions of W numbers, or of the first n and zeros for the rest.
inline F load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F load_half_first(const uint16_t* p, int64_t n) {
  return n >= W ? load_half(p) : load_half(Few<uint16_t>(p, n).numbers);
}
inline F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline F load_bf16_first(const uint16_t* p, int64_t n) {
  return n >= W ? load_bf16(p) : load_bf16(Few<uint16_t>(p, n).numbers);
}
inline F load_int8(const int8_t* p) {
  int32_t bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes))))));
}
inline F load_int8_first(const int8_t* p, int64_t n) {
  return n >= W ? load_int8(p) : load_int8(Few<int8_t>(p, n).numbers);
}
// Round half to even; what does not fit becomes Inf.
inline void store_half(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline void store_half_first(uint16_t* p, F v, int64_t n) {
  uint16_t halves[W];
  store_half(halves, v);
  std::memcpy(p, halves, static_cast<size_t>(n < W ? n : W) * sizeof *p);
}
inline void store_int8_first(int8_t* p, I v, int64_t n) {  // lanes in -128..127
  const int16x4_t words = vmovn_s32(v);
  const int32_t bytes = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
  std::memcpy(p, &bytes, static_cast<size_t>(n < W ? n : W));
}
inline void store_int8(int8_t* p, I v) { store_int8_first(p, v, W); }
inline void store_int16_first(int16_t* p, I v, int64_t n) {  // lanes in -32768..32767
  const int16x4_t words = vmovn_s32(v);
  std::memcpy(p, &words, static_cast<size_t>(n < W ? n : W) * sizeof *p);
}
inline void store_int16(int16_t* p, I v) { vst1_s16(p, vmovn_s32(v)); }

inline F choose(M m, F yes, F no) { return vbslq_f32(m, yes, no); }
inline M less(F a, F b) { return vcltq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }          // a * b + c, rounded once
inline F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }         // c - a * b
inline F min(F a, F b) { return choose(less(a, b), a, b); }         // b where one is NaN
inline F max(F a, F b) { return choose(less(b, a), a, b); }         // b where one is NaN
inline F magnitude(F v) { return vabsq_f32(v); }
// 2^n of v = 1.5 * 2^23 + 127 + n; 0 of n = -127.
inline F power_of_two(F v) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(v), 23)); }

inline float lowest_lane(F v) { return vgetq_lane_f32(v, 0); }
inline float sum_lanes(F v) { return vaddvq_f32(v); }  // pairwise
inline void sum_lanes(const F (&v)[4], float* sums) {
  vst1q_f32(sums, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
}
inline float largest_lane(F v) { return vmaxvq_f32(v); }
inline int32_t sum_lanes(I v) { return vaddvq_s32(v); }
inline int32_t largest_lane(I v) { return vmaxvq_s32(v); }

inline I all(int32_t v) { return vdupq_n_s32(v); }
inline I add(I a, I b) { return vaddq_s32(a, b); }
inline I max(I a, I b) { return vmaxq_s32(a, b); }
inline I min(I a, I b) { return vminq_s32(a, b); }
inline I bits(F v) { return vreinterpretq_s32_f32(v); }
inline I to_int(F v) { return vcvtnq_s32_f32(v); }  // round half to even
inline F to_float(I v) { return vcvtq_f32_s32(v); }

// ---- packed weights: a vector is W rows of four columns ----

inline int8x16_t bytes(I v) { return vreinterpretq_s8_s32(v); }
inline I load_bytes(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
inline I four(const int8_t* p) {  // the same four columns of x for every row
  int32_t v;
  std::memcpy(&v, p, sizeof v);
  return vdupq_n_s32(v);
}
template <int B>
inline F column(I v) {  // signed byte B of every lane
  return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(v, vdupq_n_s32(24 - 8 * B)), 24));
}
template <int N>
inline F nibble(I v) {  // nibble N of every lane, 0..15
  return vcvtq_f32_s32(vandq_s32(vshlq_s32(v, vdupq_n_s32(-4 * N)), vdupq_n_s32(15)));
}

inline I low4(I v) { return vreinterpretq_s32_s8(vandq_s8(bytes(v), vdupq_n_s8(15))); }
inline I high4(I v) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4)); }

// sum + a . b for a lane's two signed words.
constexpr bool PAIRS = false;  // four instructions for what fmla does in two
inline I dot2(I sum, I a, I b) {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}

using W8 = I;
constexpr int32_t OFFSET8 = 0;
inline W8 weights8(I v) { return v; }

#ifdef __ARM_FEATURE_DOTPROD

inline I dot8(I sum, W8 w, I x) { return vdotq_s32(sum, bytes(w), bytes(x)); }

using Sum4 = I;
inline Sum4 zero4() { return vdupq_n_s32(0); }
inline Sum4 dot4(Sum4 sum, I w, I x) { return vdotq_s32(sum, bytes(w), bytes(x)); }
inline I total4(Sum4 sum, I before) { return vaddq_s32(before, sum); }

#else

inline I dot8(I sum, W8 w, I x) {  // 2 * 127 * 127 fits int16
  const int16x8_t low = vmull_s8(vget_low_s8(bytes(w)), vget_low_s8(bytes(x)));
  return vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(bytes(w), bytes(x))));
}

// Sixteen products of 15 * 127 fit int16: eight dot products, and then their neighbours.
struct Sum4 {
  int16x8_t low, high;
};
inline Sum4 zero4() { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
inline Sum4 dot4(Sum4 sum, I w, I x) {
  return {vmlal_s8(sum.low, vget_low_s8(bytes(w)), vget_low_s8(bytes(x))),
          vmlal_high_s8(sum.high, bytes(w), bytes(x))};
}
inline I total4(Sum4 sum, I before) { return vpadalq_s16(before, vpaddq_s16(sum.low, sum.high)); }

#endif

}  // namespace
}  // namespace eyespot

#endif
