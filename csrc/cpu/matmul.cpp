// float32 matrix product, c = op(a) @ op(b) (+ bias or c), for the linear layers around attention.
//
// On CPUs where the usual library takes a path of half the vector width, these layers are most of
// a training step. Blocks as in Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", 2008: a panel of kPanelN columns of b and kDepth rows stays in the first-level
// cache while all rows of a chunk of a stream past it; both chunks stay in the second-level cache.
// Few rows have a kernel of their own.
// Each number of c sums over k in the same order, whatever the chunks and the number of threads.
#include "cpu/few_rows.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

using Math = FloatMath<float>;
constexpr int kPanelM = 48;  // rows packed together: whole micro-tiles and whole vectors
constexpr int kPanelN = kMicroVecs * kLanes<float>;
constexpr int kDepth = 192;
constexpr int64_t kMaxChunk = 384;  // rows or columns of c: 295 kB of a or b for kDepth
constexpr int64_t kMinChunk = 96;
static_assert(kPanelM % kMicroRows == 0 && kPanelM % kLanes<float> == 0, "whole tiles");
static_assert(kMinChunk % kPanelM == 0 && kMinChunk % kPanelN == 0, "whole panels");

// Packs `count` columns and `depth` rows of op(x) in panels of kWidth columns: element (p, i) goes
// to dst[i / kWidth * kWidth * depth + p * kWidth + i % kWidth], and what is missing of the last
// panel is zero. It lies at x[i * ld + p] if `by_column`, else at x[p * ld + i].
template <int kWidth>
void pack_panels(float* dst, const float* x, int64_t ld, bool by_column, int count, int depth) {
  for (int i0 = 0; by_column && i0 < count; i0 += kWidth) {
    const int width = min_of(kWidth, count - i0);
    float* panel = dst + i0 * depth;
    pack_columns<Math>(panel, kWidth, x + i0 * ld, ld, width, depth, [](int) { return true; });
    const int filled = static_cast<int>(round_up(width, kLanes<float>));
    for (int p = 0; p < depth; ++p) {
      for (int i = filled; i < kWidth; ++i) panel[p * kWidth + i] = 0;
    }
  }
  // Whole rows one after the other, as they lie in memory.
  const int whole = count / kWidth * kWidth;
  for (int p = 0; !by_column && p < depth; ++p) {
    const float* row = x + p * ld;
    float* out = dst + p * kWidth;
    for (int i = 0; i < whole; i += kWidth) {
      std::memcpy(out + i * depth, row + i, kWidth * sizeof(float));
    }
    for (int i = whole; i < round_up(count, kWidth); ++i) {
      out[whole * depth + i - whole] = i < count ? row[i] : 0;
    }
  }
}

// One chunk of c.
class MatmulUnit {
 public:
  MatmulUnit(const MatmulParams& params, int64_t row_begin, int64_t row_end, int64_t col_begin,
             int64_t col_end, void* block)
      : params_(params),
        row_begin_(row_begin),
        row_end_(row_end),
        col_begin_(col_begin),
        col_end_(col_end) {
    Carver carver(block);
    a_ = carver.take<float>(kMaxChunk * kDepth);
    b_ = carver.take<float>(kMaxChunk * kDepth);
    edge_ = carver.take<float>(kPanelM * kPanelN);
  }

  static size_t scratch_bytes() {
    Carver carver(nullptr);
    carver.take<float>(kMaxChunk * kDepth);
    carver.take<float>(kMaxChunk * kDepth);
    carver.take<float>(kPanelM * kPanelN);
    return carver.used();
  }

  void run() {
    if (!params_.accumulate) set_bias();
    for (int64_t p0 = 0; p0 < params_.k; p0 += kDepth) {
      const int depth = static_cast<int>(min_of<int64_t>(kDepth, params_.k - p0));
      pack<kPanelM>(a_, params_.a, !params_.a_transposed, row_begin_, row_end_, p0, depth);
      pack<kPanelN>(b_, params_.b, params_.b_transposed, col_begin_, col_end_, p0, depth);
      for (int64_t col = col_begin_; col < col_end_; col += kPanelN) {
        for (int64_t row = row_begin_; row < row_end_; row += kPanelM) {
          multiply(row, col, depth);
        }
      }
    }
  }

 private:
  // Packs rows or columns [begin, end) of a matrix, of which `by_column` ones lie along the depth.
  template <int kWidth>
  static void pack(float* dst, const MatrixRef& x, bool by_column, int64_t begin, int64_t end,
                   int64_t p0, int depth) {
    const int64_t offset = by_column ? begin * x.row_stride + p0 : p0 * x.row_stride + begin;
    pack_panels<kWidth>(dst, static_cast<const float*>(x.data) + offset, x.row_stride, by_column,
                        static_cast<int>(end - begin), depth);
  }

  // Products are added to what stands in c: the bias, or zero.
  void set_bias() {
    for (int64_t row = row_begin_; row < row_end_; ++row) {
      float* c = c_at(row, col_begin_);
      const size_t bytes = (col_end_ - col_begin_) * sizeof(float);
      if (params_.bias == nullptr) {
        std::memset(c, 0, bytes);
      } else {
        std::memcpy(c, params_.bias + col_begin_, bytes);
      }
    }
  }

  void multiply(int64_t row, int64_t col, int depth) {
    const int rows = static_cast<int>(min_of<int64_t>(kPanelM, row_end_ - row));
    const int cols = static_cast<int>(min_of<int64_t>(kPanelN, col_end_ - col));
    const float* a = a_ + (row - row_begin_) * depth;
    const float* b = b_ + (col - col_begin_) * depth;
    if (cols == kPanelN) {
      gemm_panel<Math, kMicroVecs, 1>(rows, a, kPanelM, b, kPanelN, c_at(row, col),
                                      params_.c.row_stride, depth, /*accumulate=*/true);
      return;
    }
    for (int i = 0; i < rows; ++i) {
      std::memcpy(edge_ + i * kPanelN, c_at(row + i, col), cols * sizeof(float));
    }
    gemm_panel<Math, kMicroVecs, 1>(rows, a, kPanelM, b, kPanelN, edge_, kPanelN, depth,
                                    /*accumulate=*/true);
    for (int i = 0; i < rows; ++i) {
      std::memcpy(c_at(row + i, col), edge_ + i * kPanelN, cols * sizeof(float));
    }
  }

  float* c_at(int64_t row, int64_t col) const {
    return static_cast<float*>(params_.c.data) + row * params_.c.row_stride + col;
  }

  const MatmulParams& params_;
  const int64_t row_begin_, row_end_, col_begin_, col_end_;
  float *a_, *b_, *edge_;
};

int64_t count_of(int64_t size, int64_t chunk) { return (size + chunk - 1) / chunk; }

}  // namespace

void matmul(const MatmulParams& params) {
  if (params.m == 0 || params.n == 0) return;
  if (FewRows::serves(params)) return FewRows(params).run();
  int64_t chunk_m = kMaxChunk, chunk_n = kMaxChunk;
  while (count_of(params.m, chunk_m) * count_of(params.n, chunk_n) < 4 * params.num_threads &&
         chunk_m + chunk_n > 2 * kMinChunk) {
    (chunk_m >= chunk_n ? chunk_m : chunk_n) /= 2;
  }
  const int64_t chunks_n = count_of(params.n, chunk_n);
  parallel_for(count_of(params.m, chunk_m) * chunks_n, params.num_threads,
               MatmulUnit::scratch_bytes(), [&](int64_t unit, void* block) {
                 const int64_t row = unit / chunks_n * chunk_m, col = unit % chunks_n * chunk_n;
                 MatmulUnit(params, row, min_of(row + chunk_m, params.m), col,
                            min_of(col + chunk_n, params.n), block)
                     .run();
               });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
