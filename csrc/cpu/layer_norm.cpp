// Dropout, residual and LayerNorm in one pass over memory, forward and backward.
//
//   s    = residual + keep_scale * keep * (x + x_bias)
//   mean = sum(s) / hidden_size;  rstd = 1 / sqrt(sum((s - mean)^2) / hidden_size + eps)
//   xhat = (s - mean) * rstd
//   out  = xhat * weight + bias
//
//   g         = dout * weight
//   dresidual = (g - sum(g) / hidden_size - xhat * sum(g * xhat) / hidden_size) * rstd
//   dx        = keep_scale * keep * dresidual
//   dweight, dbias, dx_bias = sums over rows of dout * xhat, dout, dx
//
// Everything is computed in float32 (float64 for float64 matrices), a row at a time, which stays
// in the first cache. The backward pass makes s again from x, residual and the dropout rule: for
// memory that is one read more and one write less than keeping s, and a write costs two transfers.
#include "cpu/elementwise.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// Rows of one call, whose memory is one row of Stat and one mask.
template <class Stat, class X, class Residual>
class NormRows {
 public:
  NormRows(const LayerNormParams& params, void* block)
      : params_(params),
        cols_(params.hidden_size),
        x_bias_(static_cast<const Stat*>(params.x_bias)),
        weight_(static_cast<const Stat*>(params.weight)),
        dropout_(params.drop_threshold != 0),
        keep_scale_(static_cast<Stat>(philox::keep_scale(params.drop_threshold))),
        mask_(nullptr) {
    Carver carver(block);
    row_ = carver.take<Stat>(round_up(cols_, kLanes<Stat>));
    mask_ = RowMask(carver.take<uint8_t>(RowMask::bytes(cols_)));
    bytes_ = carver.used();
  }

  static size_t scratch_bytes(const LayerNormParams& params) {
    return NormRows(params, nullptr).bytes_;
  }

  // Members are copied to constants before loops: vectors are stored as bytes, after which the
  // compiler would have to load every member again.
  void forward(int64_t row_index) {
    Stat* const row = row_;
    SlotSum<Stat> sum;
    add_residual(row_index, [&](int64_t col, auto /*lanes*/, auto slot, Vec<Stat> s) {
      store(row + col, s);
      sum.parts[slot.value] += s;
    });
    const Stat mean = sum.total() / static_cast<Stat>(cols_);
    SlotSum<Stat> squares;
    for_each_vec<Stat>(cols_, [&](int64_t col, auto lanes, auto slot) {
      const Vec<Stat> centred = zero_rest<Stat>(load(row + col) - mean, lanes);
      squares.parts[slot.value] += centred * centred;
    });
    const Stat variance = squares.total() / static_cast<Stat>(cols_);
    const Stat rstd = 1 / square_root(variance + static_cast<Stat>(params_.eps));
    const Stat* const weight = weight_;
    const Stat* const bias = static_cast<const Stat*>(params_.bias);
    Residual* const out = row_of<Residual>(params_.out, row_index);
    for_each_vec<Stat>(cols_, [&](int64_t col, auto lanes, auto /*slot*/) {
      const Vec<Stat> xhat = (load(row + col) - mean) * rstd;
      const Vec<Stat> y =
          xhat * load_lanes<Stat>(weight + col, lanes) + load_lanes<Stat>(bias + col, lanes);
      store_lanes<Stat>(out + col, y, lanes);
    });
    static_cast<Stat*>(params_.mean)[row_index] = mean;
    static_cast<Stat*>(params_.rstd)[row_index] = rstd;
  }

  // Adds the row to the three sums, of which that of dx may be null.
  void backward(const LayerNormBwdParams& params, int64_t row_index, Stat* dweight, Stat* dbias,
                Stat* dx_bias) {
    const Stat mean = static_cast<const Stat*>(params.mean)[row_index];
    const Stat rstd = static_cast<const Stat*>(params.rstd)[row_index];
    const Stat* const weight = weight_;
    const Residual* const dout = row_of<const Residual>(params.dout, row_index);
    Stat* const row = row_;
    SlotSum<Stat> sum_g, sum_g_xhat;
    add_residual(row_index, [&](int64_t col, auto lanes, auto slot, Vec<Stat> s) {
      const Vec<Stat> xhat = (s - mean) * rstd;
      const Vec<Stat> grad = load_lanes<Stat>(dout + col, lanes);
      const Vec<Stat> g = grad * load_lanes<Stat>(weight + col, lanes);
      store(row + col, xhat);
      store(dweight + col, load(dweight + col) + grad * xhat);
      store(dbias + col, load(dbias + col) + grad);
      sum_g.parts[slot.value] += g;
      sum_g_xhat.parts[slot.value] += g * xhat;
    });
    const Stat mean_g = sum_g.total() / static_cast<Stat>(cols_);
    const Stat mean_g_xhat = sum_g_xhat.total() / static_cast<Stat>(cols_);
    Residual* const dresidual = row_of<Residual>(params.dresidual, row_index);
    X* const dx = params.dx.data == nullptr ? nullptr : row_of<X>(params.dx, row_index);
    const bool dropout = dropout_;
    const Stat keep_scale = keep_scale_;
    const RowMask mask = mask_;
    for_each_vec<Stat>(cols_, [&](int64_t col, auto lanes, auto /*slot*/) {
      const Vec<Stat> g =
          load_lanes<Stat>(dout + col, lanes) * load_lanes<Stat>(weight + col, lanes);
      Vec<Stat> grad = (g - mean_g - load(row + col) * mean_g_xhat) * rstd;
      store_lanes<Stat>(dresidual + col, grad, lanes);
      if (dropout) grad = mask.keep<Stat>(grad * keep_scale, col);
      if (dx != nullptr) store_lanes<Stat>(dx + col, grad, lanes);
      if (dx_bias != nullptr) store(dx_bias + col, load(dx_bias + col) + grad);
    });
  }

 private:
  // Calls use(col, lanes, slot, s) for the vectors of a row of s; lanes that are no column are 0.
  template <class Use>
  void add_residual(int64_t row, const Use& use) {
    const X* const x = row_of<const X>(params_.x, row);
    const Residual* const residual = row_of<const Residual>(params_.residual, row);
    const Stat* const x_bias = x_bias_;
    const bool dropout = dropout_;
    const Stat keep_scale = keep_scale_;
    RowMask mask = mask_;
    if (dropout) mask.draw(params_.seed, params_.drop_threshold, row, cols_);
    for_each_vec<Stat>(cols_, [&](int64_t col, auto lanes, auto slot) {
      Vec<Stat> h = load_lanes<Stat>(x + col, lanes);
      if (x_bias != nullptr) h += load_lanes<Stat>(x_bias + col, lanes);
      if (dropout) h = mask.keep<Stat>(h * keep_scale, col);
      use(col, lanes, slot, h + load_lanes<Stat>(residual + col, lanes));
    });
  }

  const LayerNormParams& params_;
  const int64_t cols_;
  const Stat *const x_bias_, *const weight_;
  const bool dropout_;
  const Stat keep_scale_;
  Stat* row_;  // s, then xhat in the backward pass
  RowMask mask_;
  size_t bytes_;
};

template <class Stat, class X, class Residual>
void run_fwd(const LayerNormParams& params) {
  using Rows = NormRows<Stat, X, Residual>;
  const RowChunks chunks(params.rows, params.hidden_size);
  parallel_for(chunks.count, params.num_threads, Rows::scratch_bytes(params),
               [&](int64_t chunk, void* block) {
                 Rows rows(params, block);
                 const int64_t end = chunks.end(chunk);
                 for (int64_t row = chunks.begin(chunk); row < end; ++row) rows.forward(row);
               });
}

template <class Stat, class X, class Residual>
void run_bwd(const LayerNormBwdParams& params) {
  using Rows = NormRows<Stat, X, Residual>;
  const RowChunks chunks(params.rows, params.hidden_size);
  ColumnSums<Stat, 3> sums(chunks.count, params.hidden_size);
  parallel_for(chunks.count, params.num_threads, Rows::scratch_bytes(params),
               [&](int64_t chunk, void* block) {
                 Rows rows(params, block);
                 sums.clear(chunk, 0, params.hidden_size);
                 Stat* dx_bias = params.dx_bias == nullptr ? nullptr : sums.of(chunk, 2);
                 const int64_t end = chunks.end(chunk);
                 for (int64_t row = chunks.begin(chunk); row < end; ++row) {
                   rows.backward(params, row, sums.of(chunk, 0), sums.of(chunk, 1), dx_bias);
                 }
               });
  sums.store_totals({params.dweight, params.dbias, params.dx_bias}, params.num_threads);
}

// Calls run(stat, x, residual), values whose types are those of statistics and of the matrices.
template <class Run>
void dispatch(const LayerNormParams& params, const Run& run) {
  dispatch_stats(params.x_dtype, [&](auto stat, auto x) {
    if constexpr (sizeof(x) < sizeof(float)) {
      if (params.dtype == ElementType::kFloat32) return run(stat, x, float{});
    }
    return run(stat, x, x);
  });
}

}  // namespace

void layer_norm_fwd(const LayerNormParams& params) {
  dispatch(params, [&](auto stat, auto x, auto residual) {
    run_fwd<decltype(stat), decltype(x), decltype(residual)>(params);
  });
}

void layer_norm_bwd(const LayerNormBwdParams& params) {
  dispatch(params, [&](auto stat, auto x, auto residual) {
    run_bwd<decltype(stat), decltype(x), decltype(residual)>(params);
  });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
