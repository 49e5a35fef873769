// Vectors of one width, chosen by the flags this file is compiled with.
//
// Everything below csrc/cpu that includes this header is compiled once per instruction set into a
// namespace of its own (FASTATTN_CPU_ISA), so the linker can never replace a function for one CPU
// by its twin for another. For the same reason these files use no templates of the standard
// library. Arithmetic is written with the compiler's vector extension and is the same code for
// every width; intrinsics appear only here, where the extension has no word for an instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastattn::cpu::FASTATTN_CPU_ISA {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVecBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(T));

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// The integer with as many bits as a number.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <>
struct BitsOf<uint32_t> {
  using type = int32_t;
};
template <class T>
using Bits = typename BitsOf<T>::type;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}
template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <class T>
inline Vec<T> iota() {
  Vec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = static_cast<T>(i);
  return v;
}

// The larger of two; `b` where either is NaN.
template <class T>
inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}
#if defined(__AVX512F__)
template <>
inline Vec<float> max<float>(Vec<float> a, Vec<float> b) {
  return _mm512_max_ps(a, b);
}
#elif defined(__AVX2__)
template <>
inline Vec<float> max<float>(Vec<float> a, Vec<float> b) {
  return _mm256_max_ps(a, b);
}
#elif defined(__SSE2__)
template <>
inline Vec<float> max<float>(Vec<float> a, Vec<float> b) {
  return _mm_max_ps(a, b);
}
#endif

template <class T>
inline T reduce_add(Vec<T> v) {
  T partial[kLanes<T>];
  std::memcpy(partial, &v, sizeof(v));
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
  }
  return partial[0];
}
#if defined(__AVX512F__)
template <>
inline float reduce_add<float>(Vec<float> v) {
  return _mm512_reduce_add_ps(v);
}
#endif

// Exchanges blocks of `width` lanes: the odd blocks of `a` with the even blocks of `b`. Doing so
// for every width, between rows that lie as far apart, transposes a matrix.
template <class T>
inline void exchange(Vec<T>& a, Vec<T>& b, int width) {
  using I = Bits<T>;
  const Vec<I> lane = iota<I>();
  const Vec<I> odd = (lane & static_cast<I>(width)) != 0;
  const Vec<I> low = odd ? lane + static_cast<I>(kLanes<T> - width) : lane;
  const Vec<I> high = odd ? lane + static_cast<I>(kLanes<T>) : lane + static_cast<I>(width);
  const Vec<T> even_blocks = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = even_blocks;
}

// Transposes the kLanes x kLanes matrix whose rows are `m`.
template <class T>
inline void transpose(Vec<T> (&m)[kLanes<T>]) {
#pragma GCC unroll 4
  for (int width = 1; width < kLanes<T>; width *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & width) == 0) exchange<T>(m[i], m[i + width], width);
    }
  }
}

// Lane i of the result: all lanes of m[i] combined by `op`, in an order that is the same for every
// i. Destroys `m`.
template <class T, class Op>
inline Vec<T> reduce_rows(Vec<T> (&m)[kLanes<T>], const Op& op) {
#pragma GCC unroll 4
  for (int width = 1; width < kLanes<T>; width *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; i += 2 * width) {
      exchange<T>(m[i], m[i + width], width);
      m[i] = op(m[i], m[i + width]);
    }
  }
  return m[0];
}

// Lane i of `v` where bit i of `bits` is set, else 0.
template <class T>
inline Vec<T> keep_lanes(Vec<T> v, uint32_t bits) {
  using I = Bits<T>;
  const Vec<I> lane_bit = splat<I>(1) << iota<I>();
  return (splat<I>(static_cast<I>(bits)) & lane_bit) != 0 ? v : splat<T>(0);
}
#if defined(__AVX512F__)
template <>
inline Vec<float> keep_lanes<float>(Vec<float> v, uint32_t bits) {
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v);
}
#endif

// 2^x for x <= 0 or moderately positive; exactly 1 for 0, exactly 0 for -inf and what is too small
// for the type. Relative error of the polynomials, by Remez exchange: 8.2e-8 on [0, 1], which is
// 0.7 units of the last place of float, and 3.1e-18 on [-1/2, 1/2].
inline Vec<float> exp2_fraction(Vec<float> f) {
  Vec<float> p = splat(1.8671300819070081e-3f);
  p = p * f + 9.0170302844367490e-3f;
  p = p * f + 5.5799913145968064e-2f;
  p = p * f + 2.4016445013606755e-1f;
  p = p * f + 6.9315131180752299e-1f;
  return p * f + 1.0f;
}
#if defined(__AVX512F__)
inline Vec<float> exp2(Vec<float> x) {
  // The fraction of -inf is zero, and scalef multiplies by 2 to the integer below x.
  const Vec<float> f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_fraction(f), x);
}
#else
inline Vec<float> exp2(Vec<float> x) {
  x = max<float>(splat(-126.5f), x);  // this and all below it come out as 0
  const float kRound = 12582912.0f;   // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = x - 0.5f + kRound;
  const Vec<float> p = exp2_fraction(x - (shifted - kRound));
  Vec<int32_t> n;
  std::memcpy(&n, &shifted, sizeof(n));
  n = (n + 127) << 23;  // the low bits of `shifted` hold the integer
  Vec<float> scale;
  std::memcpy(&scale, &n, sizeof(n));
  return p * scale;
}
#endif
inline Vec<double> exp2(Vec<double> x) {
  x = max<double>(splat(-1023.0), x);
  const double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const Vec<double> shifted = x + kRound;
  const Vec<double> f = x - (shifted - kRound);
  Vec<double> p = splat(4.4353523518648835224e-10);
  p = p * f + 7.0741043418275163482e-9;
  p = p * f + 1.0178197558846428875e-7;
  p = p * f + 1.3215433097307574654e-6;
  p = p * f + 1.5252733491096090395e-5;
  p = p * f + 1.5403530462498820296e-4;
  p = p * f + 1.3333558146788773461e-3;
  p = p * f + 9.6181291075883477941e-3;
  p = p * f + 5.5504108664819926434e-2;
  p = p * f + 2.4022650695910156171e-1;
  p = p * f + 6.931471805599453059e-1;
  p = p * f + 1.0;
  Vec<int64_t> n;
  std::memcpy(&n, &shifted, sizeof(n));
  n = (n + 1023) << 52;
  Vec<double> scale;
  std::memcpy(&scale, &n, sizeof(n));
  return p * scale;
}

// The 64-bit products of 32-bit lanes with a constant, as high and low words.
inline void multiply_wide(Vec<uint32_t> a, uint32_t b, Vec<uint32_t>* high, Vec<uint32_t>* low) {
#if defined(__AVX512F__)
  const __m512i va = reinterpret_cast<__m512i>(a), vb = _mm512_set1_epi64(b);
  const __m512i even = _mm512_mul_epu32(va, vb);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(va, 32), vb);
  *high = reinterpret_cast<Vec<uint32_t>>(
      _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
  *low = reinterpret_cast<Vec<uint32_t>>(
      _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
#elif defined(__AVX2__)
  const __m256i va = reinterpret_cast<__m256i>(a), vb = _mm256_set1_epi64x(b);
  const __m256i even = _mm256_mul_epu32(va, vb);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(va, 32), vb);
  *high =
      reinterpret_cast<Vec<uint32_t>>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
  *low =
      reinterpret_cast<Vec<uint32_t>>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
  for (int i = 0; i < kLanes<uint32_t>; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * b;
    (*high)[i] = static_cast<uint32_t>(product >> 32);
    (*low)[i] = static_cast<uint32_t>(product);
  }
#endif
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
