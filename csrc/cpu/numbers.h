// Element types in memory, and the arithmetic each of them is computed in.
//
// A matrix product takes words: a word is one number, or a pair of bfloat16 numbers that are
// neighbours along the summed dimension, of which one instruction multiplies and adds both.
#pragma once

#include "common/params.h"
#include "cpu/simd.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline float to_float(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude < 0x0400u) {  // zero and subnormal numbers: multiples of 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return bit_cast<float>(bit_cast<uint32_t>(value) | sign);
  }
  const uint32_t exponent_shift = magnitude < 0x7C00u ? 112u << 23 : 224u << 23;  // inf and NaN
  return bit_cast<float>(sign | ((magnitude << 13) + exponent_shift));
#endif
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
// To nearest, ties to even; NaN stays NaN.
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return BFloat16{static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded)};
}
template <>
inline Half from_float<Half>(float x) {
#if defined(__F16C__)
  return Half{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return Half{static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return Half{static_cast<uint16_t>(sign | 0x7C00u)};  // to infinity
  if (magnitude < 0x38800000u) {  // the result is a multiple of 2^-24: let an addition round it
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return Half{static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3F000000u))};
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23);
  return Half{static_cast<uint16_t>(sign | (rounded >> 13))};
#endif
}
template <class T>
inline T from_float(double x) {
  return x;
}

// kLanes elements as a vector of statistics.
template <class Stat, class Element>
inline Vec<Stat> load_stats(const Element* p) {
  Vec<Stat> v;
  for (int i = 0; i < kLanes<Stat>; ++i) v[i] = to_float(p[i]);
  return v;
}
template <>
inline Vec<float> load_stats<float, float>(const float* p) {
  return load(p);
}
template <>
inline Vec<double> load_stats<double, double>(const double* p) {
  return load(p);
}
#if defined(__AVX512F__)
template <>
inline Vec<float> load_stats<float, BFloat16>(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <>
inline Vec<float> load_stats<float, Half>(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load_stats<float, BFloat16>(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
template <>
inline Vec<float> load_stats<float, Half>(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#endif

// Arithmetic in T: one number a word.
template <class T>
struct FloatMath {
  using Stat = T;  // accumulators and statistics
  using Word = T;
  static constexpr int kPair = 1;
  template <class Element>
  static Word word(const Element* pair, ptrdiff_t /*stride*/) {
    return static_cast<T>(to_float(pair[0]));
  }
  // kLanes words of one row.
  template <class Element>
  static Vec<Word> load_words(const Element* row) {
    return load_stats<T>(row);
  }
  static Vec<Stat> multiply_add(Vec<Word> a, Vec<Word> b, Vec<Stat> c) { return a * b + c; }
  // Stores weights of one row from column `col` on, as words along the columns.
  static void store_weights(Word* row, int col, Vec<Stat> weights) { store(row + col, weights); }
};

#if defined(__AVX512BF16__)
// bfloat16 products, float sums: two numbers a word.
struct BFloat16Math {
  using Stat = float;
  using Word = uint32_t;
  static constexpr int kPair = 2;
  static Word word(const BFloat16* pair, ptrdiff_t stride) {
    return pair[0].bits | (uint32_t{pair[stride].bits} << 16);
  }
  static Vec<Word> load_words(const BFloat16* row) {
    return load(reinterpret_cast<const Word*>(row));
  }
  static Vec<Stat> multiply_add(Vec<Word> a, Vec<Word> b, Vec<Stat> c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static void store_weights(Word* row, int col, Vec<Stat> weights) {
    const __m256bh rounded = _mm512_cvtneps_pbh(weights);
    std::memcpy(row + col / kPair, &rounded, sizeof(rounded));
  }
  // Words along the rows: the same columns of two neighbouring rows.
  static Vec<Word> pair_rows(Vec<Stat> first, Vec<Stat> second) {
    const auto widen = [](Vec<Stat> x) {
      return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
    };
    return reinterpret_cast<Vec<Word>>(
        _mm512_or_si512(widen(first), _mm512_slli_epi32(widen(second), 16)));
  }
};
using BFloat16Default = BFloat16Math;
#else
using BFloat16Default = FloatMath<float>;
#endif

// Calls run(math, element), two values whose types are the arithmetic and the element type.
template <class Run>
inline void dispatch_element(ElementType type, const Run& run) {
  switch (type) {
    case ElementType::kFloat32:
      return run(FloatMath<float>{}, float{});
    case ElementType::kFloat64:
      return run(FloatMath<double>{}, double{});
    case ElementType::kFloat16:
      return run(FloatMath<float>{}, Half{});
    case ElementType::kBFloat16:
      return run(BFloat16Default{}, BFloat16{});
  }
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
