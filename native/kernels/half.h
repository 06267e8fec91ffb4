// half.h: IEEE half and bfloat16 to float32 and back, in plain C++. Static on purpose: a shared inline function
// compiled for one instruction set could be linked into the code of another.
#ifndef EYESPOT_KERNELS_HALF_H_
#define EYESPOT_KERNELS_HALF_H_

#include <cstdint>
#include <cstring>

namespace eyespot {

static inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of_bf16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

static inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7FFF;
  if (rest >= 0x7C00) return float_of_bits(sign | 0x7F800000u | (rest & 0x3FF) << 13);   // Inf, NaN
  if (rest >= 0x0400) return float_of_bits(sign | ((rest << 13) + ((127 - 15) << 23)));  // normal
  const float tiny = static_cast<float>(rest) * 0x1p-24f;                                // subnormal, zero
  return float_of_bits(sign | bits_of_float(tiny));
}

// Round half to even. Inf above 65519; NaN stays NaN.
static inline uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  if (rest > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (rest >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (rest >= 0x38800000) {  // normal: add half a unit less one, plus the last kept bit; a carry may reach the exponent
    const uint32_t rebased = rest - ((127 - 15) << 23);
    return static_cast<uint16_t>(sign | (rebased + 0xFFF + (rebased >> 13 & 1)) >> 13);
  }
  // Subnormal: adding 0.5 leaves units of 2^-24 in the mantissa, rounded half to even by the addition itself.
  const float shifted = float_of_bits(rest) + 0.5f;
  return static_cast<uint16_t>(sign | (bits_of_float(shifted) - bits_of_float(0.5f)));
}

}  // namespace eyespot

#endif
