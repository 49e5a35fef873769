// c = a @ op(b) (+ bias or c) for few rows of a, where columns of op(b) lie along the depth: a
// linear layer on one short text. Such a column is a row of b in memory.
//
// Packing b would take longer than its products, so it is read where it lies, and each number of c
// is the sum of kLanes partial sums. The time is that of reading b: while some of its columns are
// multiplied, each block of rows prefetches its share of those that come next.
#pragma once

#include "cpu/elementwise.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

class FewRows {
 public:
  static bool serves(const MatmulParams& params) {
    return params.m <= kFewRows && !params.a_transposed && params.b_transposed;
  }

  explicit FewRows(const MatmulParams& params) : params_(params) {}

  void run() const {
    constexpr int64_t kColsOfUnit = 8 * kCols;
    parallel_for((params_.n + kColsOfUnit - 1) / kColsOfUnit, params_.num_threads,
                 /*scratch_bytes=*/1, [&](int64_t unit, void* /*scratch*/) {
                   const int64_t end = min_of((unit + 1) * kColsOfUnit, params_.n);
                   for (int64_t col = unit * kColsOfUnit; col < end; col += kCols) {
                     for (int64_t row = 0; row < params_.m; row += kRows) multiply(row, col);
                   }
                 });
  }

 private:
  using Math = FloatMath<float>;
  // A block of c, whose sums are as many vectors as a vector has lanes.
  static constexpr int kCols = 4;
  static constexpr int kRows = kLanes<float> / kCols;
  struct Columns {
    int64_t begin, end;
  };

  void multiply(int64_t row, int64_t col) const {
    // What the last block lacks is its last row or column again, whose sums are not stored.
    const float *a[kRows], *b[kCols];
    for (int i = 0; i < kRows; ++i) {
      a[i] = row_of<const float>(params_.a, min_of(row + i, params_.m - 1));
    }
    for (int j = 0; j < kCols; ++j) {
      b[j] = row_of<const float>(params_.b, min_of(col + j, params_.n - 1));
    }
    Vec<float> sums[kLanes<float>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<float>; ++i) sums[i] = splat(0.0f);
    const auto add = [&](int64_t p, auto lanes) {
      Vec<float> columns[kCols];
#pragma GCC unroll 4
      for (int j = 0; j < kCols; ++j) columns[j] = load_lanes<float>(b[j] + p, lanes);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Vec<float> x = load_lanes<float>(a[i] + p, lanes);
#pragma GCC unroll 4
        for (int j = 0; j < kCols; ++j) {
          Vec<float>& sum = sums[i * kCols + j];
          sum = Math::multiply_add(x, columns[j], sum);
        }
      }
    };
    const Columns ahead = columns_ahead(row, col);
    int64_t p = 0;
    for (; p + kLanes<float> <= params_.k; p += kLanes<float>) {
      for (int64_t j = ahead.begin; j < ahead.end; ++j) {
        __builtin_prefetch(row_of<const float>(params_.b, j) + p);
      }
      add(p, Int<kLanes<float>>{});
    }
    if (p < params_.k) add(p, static_cast<int>(params_.k - p));
    float totals[kLanes<float>];
    store(totals, reduce_rows<float>(sums, [](Vec<float> x, Vec<float> y) { return x + y; }));
    store_block(totals, row, col);
  }

  // The share that a block of rows has in the columns of the next blocks.
  Columns columns_ahead(int64_t row, int64_t col) const {
    const int64_t begin = min_of(col + kCols, params_.n);
    const int64_t count = min_of(begin + kCols, params_.n) - begin;
    const int64_t block = row / kRows, blocks = (params_.m + kRows - 1) / kRows;
    return {begin + count * block / blocks, begin + count * (block + 1) / blocks};
  }

  void store_block(const float* totals, int64_t row, int64_t col) const {
    for (int64_t i = 0; i < min_of<int64_t>(kRows, params_.m - row); ++i) {
      float* c = row_of<float>(params_.c, row + i) + col;
      for (int64_t j = 0; j < min_of<int64_t>(kCols, params_.n - col); ++j) {
        const float bias = params_.bias == nullptr ? 0.0f : params_.bias[col + j];
        c[j] = (params_.accumulate ? c[j] : bias) + totals[i * kCols + j];
      }
    }
  }

  const MatmulParams& params_;
};

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
