// float32 matrix product, c = op(a) @ op(b) (+ bias or c), for the linear layers around attention.
//
// On CPUs where the usual library takes a path of half the vector width, these layers are most of
// a training step. Blocks as in Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", 2008: a panel of kPanelN columns of b and kDepth rows stays in the first-level
// cache while all rows of a chunk of a stream past it; both chunks stay in the second-level cache.
// Each number of c sums over k in the same order, whatever the chunks and the number of threads.
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

// Copies `count` columns and `depth` rows of op(x) to dst[p * width + i], zero up to `width`.
// Without a transposition, element (p, i) of op(x) is at x[p * ld + i], else at x[i * ld + p].
void pack_panel(float* dst, int width, const float* x, int64_t ld, bool transposed, int count,
                int depth) {
  if (transposed) {
    pack_columns<Math>(dst, width, x, ld, count, depth, [](int) { return true; });
    const int filled = static_cast<int>(round_up(count, kLanes<float>));
    for (int p = 0; p < depth; ++p) {
      for (int i = filled; i < width; ++i) dst[p * width + i] = 0;
    }
    return;
  }
  for (int p = 0; p < depth; ++p) {
    std::memcpy(dst + p * width, x + p * ld, count * sizeof(float));
    for (int i = count; i < width; ++i) dst[p * width + i] = 0;
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
      pack(a_, kPanelM, params_.a, !params_.a_transposed, row_begin_, row_end_, p0, depth);
      pack(b_, kPanelN, params_.b, params_.b_transposed, col_begin_, col_end_, p0, depth);
      for (int64_t col = col_begin_; col < col_end_; col += kPanelN) {
        for (int64_t row = row_begin_; row < row_end_; row += kPanelM) {
          multiply(row, col, depth);
        }
      }
    }
  }

 private:
  // Packs [begin, end) of op(x) in panels of `width`; `transposed` as in pack_panel.
  static void pack(float* dst, int width, const MatrixRef& x, bool transposed, int64_t begin,
                   int64_t end, int64_t p0, int depth) {
    const float* data = static_cast<const float*>(x.data);
    for (int64_t i = begin; i < end; i += width) {
      const float* first = data + (transposed ? i * x.row_stride + p0 : p0 * x.row_stride + i);
      pack_panel(dst + (i - begin) * depth, width, first, x.row_stride, transposed,
                 static_cast<int>(min_of<int64_t>(width, end - i)), depth);
    }
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
