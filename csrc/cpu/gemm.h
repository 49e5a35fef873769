// The one matrix product of the kernels: C (+)= A @ B on tiles that lie in the first-level cache.
//
//   A  words, element (i, p) at a[i * kAStrideM + p * a_stride_k]; read one word at a time
//   B  words, element (p, j) at b[p * ldb + j];                    read as vectors along j
//   C  sums,  element (i, j) at c[i * ldc + j]
//
// The stride of A along i is a template argument, so that the addresses of the kMicroRows rows are
// one register plus constants. A block of C stays in registers over the whole sum. With 12 rows
// and 2 vectors there are 24 independent sums, enough to hide the latency of 4 cycles of two
// multiply-add units, and 14 loads feed 24 multiply-adds.
#pragma once

#include "cpu/numbers.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

#if defined(__AVX512F__)
constexpr int kMicroRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kMicroRows = 6;  // 12 of 16
#endif
constexpr int kMicroVecs = 2;

template <class Math, int kRows, int kVecs, int kAStrideM>
inline void micro_gemm(const typename Math::Word* a, ptrdiff_t a_stride_k,
                       const typename Math::Word* b, ptrdiff_t ldb, typename Math::Stat* c,
                       ptrdiff_t ldc, int depth, bool accumulate) {
  using Word = typename Math::Word;
  using Stat = typename Math::Stat;
  Vec<Stat> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      sum[i][j] = splat<Stat>(0);
    }
  }
  for (int p = 0; p < depth; ++p) {
    Vec<Word> row[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) row[j] = load(b + j * kLanes<Word>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<Word> x = splat(a[i * kAStrideM]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[i][j] = Math::multiply_add(x, row[j], sum[i][j]);
    }
    a += a_stride_k;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      Stat* dst = c + i * ldc + j * kLanes<Stat>;
      // After the sum and not before it: what is small is not rounded against what is large.
      store(dst, accumulate ? load(dst) + sum[i][j] : sum[i][j]);
    }
  }
}

// `rows` rows of C, kVecs vectors wide.
template <class Math, int kVecs, int kAStrideM>
inline void gemm_panel(int rows, const typename Math::Word* a, ptrdiff_t a_stride_k,
                       const typename Math::Word* b, ptrdiff_t ldb, typename Math::Stat* c,
                       ptrdiff_t ldc, int depth, bool accumulate) {
  const auto step = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    micro_gemm<Math, kRows, kVecs, kAStrideM>(a, a_stride_k, b, ldb, c, ldc, depth, accumulate);
    a += kRows * kAStrideM;
    c += kRows * ldc;
    rows -= kRows;
  };
  while (rows >= kMicroRows) step(Int<kMicroRows>{});
  if (kMicroRows > 8 && rows >= 8) step(Int<8>{});
  if (rows >= 4) step(Int<4>{});
  if (rows >= 2) step(Int<2>{});
  if (rows >= 1) step(Int<1>{});
}

// C (rows, cols) (+)= A (rows, depth) @ B (depth, cols); cols is a multiple of the vector length.
template <class Math, int kAStrideM>
inline void gemm(int rows, int cols, int depth, const typename Math::Word* a, ptrdiff_t a_stride_k,
                 const typename Math::Word* b, ptrdiff_t ldb, typename Math::Stat* c, ptrdiff_t ldc,
                 bool accumulate) {
  constexpr int kWide = kMicroVecs * kLanes<typename Math::Stat>;
  int col = 0;
  for (; col + kWide <= cols; col += kWide) {
    gemm_panel<Math, kMicroVecs, kAStrideM>(rows, a, a_stride_k, b + col, ldb, c + col, ldc, depth,
                                            accumulate);
  }
  if (col < cols) {
    gemm_panel<Math, 1, kAStrideM>(rows, a, a_stride_k, b + col, ldb, c + col, ldc, depth,
                                   accumulate);
  }
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
