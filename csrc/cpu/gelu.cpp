// Bias and exact GELU, forward and backward.
//
//   h     = x + bias
//   out   = h * cdf(h)                      cdf: of the normal distribution, (1 + erf(h/sqrt(2)))/2
//   dx    = dout * (cdf(h) + h * pdf(h))    pdf: its density
//   dbias = sum over rows of dx
//
// cdf and pdf share the exponential, as common/normal_tail.h has it.
#include "common/normal_tail.h"
#include "cpu/elementwise.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

// The polynomial, in two halves: half as many steps that each wait for the one before.
template <class Stat>
inline Vec<Stat> tail_polynomial(Vec<Stat> u) {
  const auto& c = TailFit<Stat>::kCoefficients;
  constexpr int kCount = sizeof(c) / sizeof(Stat);
  static_assert(kCount % 2 == 0, "as many odd powers as even ones");
  const Vec<Stat> square = u * u;
  Vec<Stat> odd = splat(c[0]), even = splat(c[1]);
#pragma GCC unroll 16
  for (int i = 2; i < kCount; i += 2) {
    odd = odd * square + c[i];
    even = even * square + c[i + 1];
  }
  return odd * u + even;
}

// The left tail of the normal distribution: cdf(t) = exp * ratio.
template <class Stat>
struct NormalTail {
  Vec<Stat> t;      // -|h|
  Vec<Stat> exp;    // exp(-t^2/2)
  Vec<Stat> ratio;  // cdf(t) / exp

  explicit NormalTail(Vec<Stat> h) {
    using Fit = TailFit<Stat>;
    t = max<Stat>(splat(Fit::kEnd), minus_magnitude<Stat>(h));
    const Vec<Stat> inverse = 1 / (Fit::kCentre - t);
    ratio = tail_polynomial<Stat>(1 - inverse * (2 * Fit::kCentre)) * inverse;
    exp = exp2(t * t * static_cast<Stat>(-kHalfLog2E));
  }
};

// h * cdf(h), as h - |h| * cdf(-|h|) on the right side.
template <class Stat>
inline Vec<Stat> gelu(Vec<Stat> h) {
  const NormalTail<Stat> at(h);
  return max<Stat>(splat<Stat>(0), h) + at.t * (at.exp * at.ratio);
}

// cdf(h) + h * pdf(h), as 1 minus its value at -|h| on the right side.
template <class Stat>
inline Vec<Stat> gelu_slope(Vec<Stat> h) {
  const NormalTail<Stat> at(h);
  const Vec<Stat> left = at.exp * (at.t * static_cast<Stat>(kDensityAt0) + at.ratio);
  return h > 0 ? 1 - left : left;
}

// The matrix in units of work: chunks of rows, and blocks of columns, so that long rows are split.
struct Tiles {
  static constexpr int64_t kMaxCols = RowChunks::kMinElements;
  RowChunks chunks;
  int64_t cols, blocks;

  Tiles(int64_t rows, int64_t num_cols)
      : chunks(rows, num_cols), cols(num_cols), blocks((num_cols + kMaxCols - 1) / kMaxCols) {}
  int64_t count() const { return chunks.count * blocks; }
};

// One unit of work: rows of a chunk, columns [col0, col0 + cols).
struct Tile {
  int64_t chunk, row_begin, row_end, col0, cols;

  Tile(const Tiles& tiles, int64_t unit)
      : chunk(unit / tiles.blocks),
        row_begin(tiles.chunks.begin(chunk)),
        row_end(tiles.chunks.end(chunk)),
        col0(unit % tiles.blocks * Tiles::kMaxCols),
        cols(min_of(Tiles::kMaxCols, tiles.cols - col0)) {}
};

// kLanes numbers of h.
template <class Stat, class Element, class Lanes>
inline Vec<Stat> load_h(const Element* x, const Stat* bias, int64_t col, Lanes lanes) {
  const Vec<Stat> h = load_lanes<Stat>(x + col, lanes);
  return bias == nullptr ? h : h + load_lanes<Stat>(bias + col, lanes);
}

template <class Stat>
inline const Stat* bias_from(const GeluParams& params, int64_t col0) {
  return params.bias == nullptr ? nullptr : static_cast<const Stat*>(params.bias) + col0;
}

template <class Stat, class Element>
void run_fwd(const GeluParams& params) {
  const Tiles tiles(params.rows, params.cols);
  parallel_for(tiles.count(), params.num_threads, /*scratch_bytes=*/1, [&](int64_t unit, void*) {
    const Tile tile(tiles, unit);
    const Stat* bias = bias_from<Stat>(params, tile.col0);
    for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
      const Element* x = row_of<const Element>(params.x, row) + tile.col0;
      Element* out = row_of<Element>(params.out, row) + tile.col0;
      for_each_vec<Stat>(tile.cols, [&](int64_t col, auto lanes, auto /*slot*/) {
        const Vec<Stat> h = load_h<Stat>(x, bias, col, lanes);
        store_lanes<Stat>(out + col, gelu<Stat>(h), lanes);
      });
    }
  });
}

template <class Stat, class Element>
void run_bwd(const GeluBwdParams& params) {
  const Tiles tiles(params.rows, params.cols);
  const bool with_sums = params.dbias != nullptr;
  ColumnSums<Stat, 1> sums(with_sums ? tiles.chunks.count : 0, params.cols);
  parallel_for(tiles.count(), params.num_threads, /*scratch_bytes=*/1, [&](int64_t unit, void*) {
    const Tile tile(tiles, unit);
    const Stat* bias = bias_from<Stat>(params, tile.col0);
    Stat* dbias = nullptr;
    if (with_sums) {
      sums.clear(tile.chunk, tile.col0, tile.cols);
      dbias = sums.of(tile.chunk, 0) + tile.col0;
    }
    for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
      const Element* x = row_of<const Element>(params.x, row) + tile.col0;
      const Element* dout = row_of<const Element>(params.dout, row) + tile.col0;
      Element* dx = row_of<Element>(params.dx, row) + tile.col0;
      for_each_vec<Stat>(tile.cols, [&](int64_t col, auto lanes, auto /*slot*/) {
        const Vec<Stat> h = load_h<Stat>(x, bias, col, lanes);
        const Vec<Stat> grad = load_lanes<Stat>(dout + col, lanes) * gelu_slope<Stat>(h);
        store_lanes<Stat>(dx + col, grad, lanes);
        if (dbias != nullptr) store(dbias + col, load(dbias + col) + grad);
      });
    }
  });
  if (with_sums) sums.store_totals({params.dbias}, params.num_threads);
}

}  // namespace

void gelu_fwd(const GeluParams& params) {
  dispatch_stats(params.dtype, [&](auto stat, auto element) {
    run_fwd<decltype(stat), decltype(element)>(params);
  });
}

void gelu_bwd(const GeluBwdParams& params) {
  dispatch_stats(params.dtype, [&](auto stat, auto element) {
    run_bwd<decltype(stat), decltype(element)>(params);
  });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
