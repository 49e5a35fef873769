// The number and vector types of CUDA, for a CPU.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastattn::cuda {

struct half_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint3 {
  uint32_t x, y, z;
};
struct dim3 {
  uint32_t x, y, z;
  constexpr dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

}  // namespace fastattn::cuda

namespace fastattn::emulator {

inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Exponents are scaled by a product, which is exact and takes denormals along.
inline float float_of_half(uint16_t half) {
  constexpr uint32_t kExponent = 0x0f800000u;  // of infinity, once shifted
  const uint32_t shifted = (half & 0x7fffu) << 13;
  uint32_t bits = bits_of_float(float_of_bits(shifted) * 0x1p112f);
  if (shifted >= kExponent) bits = shifted | 0x7f800000u;  // infinity, NaN
  return float_of_bits(bits | (half & 0x8000u) << 16);
}

// Rounds to nearest, ties to even.
inline uint16_t half_of_float(float x) {
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;             // NaN, as cvt.rn.f16.f32 writes it
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;     // rounds to infinity
  if (magnitude < 0x38800000u) {                           // denormal: one addition rounds it
    const float scaled = float_of_bits(magnitude) + 0.5f;  // ulp of 0.5 = denormal step 2^-24
    return sign | static_cast<uint16_t>(bits_of_float(scaled) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

inline float float_of_bf16(uint16_t bf16) { return float_of_bits(uint32_t{bf16} << 16); }

inline uint16_t bf16_of_float(float x) {
  const uint32_t bits = bits_of_float(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace fastattn::emulator
