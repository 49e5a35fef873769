// What a kernel is told: pointers, sizes and strides. Nothing here knows torch or Python.
#pragma once

#include <cstdint>

namespace fastattn {

enum class ElementType { kFloat32, kFloat64, kFloat16, kBFloat16 };

// A tensor (batch, row, head, head_dim) whose last dimension is contiguous. In the packed layout
// there is no batch dimension and the rows of all sequences follow each other.
struct TensorRef {
  void* data = nullptr;
  int64_t batch_stride = 0;  // strides in elements
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// lse and its gradient: (batch, head, row), or (head, row) in the packed layout.
struct RowStatsRef {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
};

// A tensor (batch, head, query row, key column) of float32, or float64 for float64 inputs.
// A dimension along which it broadcasts has size 1 and stride 0.
struct BiasRef {
  void* data = nullptr;
  int64_t sizes[4] = {0, 0, 0, 0};
  int64_t strides[4] = {0, 0, 0, 0};
};

struct AttentionParams {
  ElementType dtype = ElementType::kFloat32;
  TensorRef q, k, v, out;
  RowStatsRef lse;
  int64_t batch_size = 0;
  int64_t seqlen_q = 0, seqlen_k = 0;  // of every sequence; unused in the packed layout
  int64_t total_q = 0, total_k = 0;    // rows of packed tensors; read on a GPU only
  int64_t num_heads = 0, num_heads_kv = 0, head_dim = 0;

  const int32_t* cu_seqlens_q = nullptr;  // (batch + 1,), packed layout only
  const int32_t* cu_seqlens_k = nullptr;
  const uint8_t* key_padding_mask = nullptr;  // (batch, seqlen_k), nonzero = attend
  int64_t mask_batch_stride = 0, mask_col_stride = 0;
  BiasRef bias;
  const float* alibi_slopes = nullptr;  // (batch, head)
  int64_t alibi_batch_stride = 0, alibi_head_stride = 0;

  double softmax_scale = 1.0;
  double softcap = 0.0;                         // 0 = off
  int64_t window_left = -1, window_right = -1;  // -1 = unbounded
  uint64_t seed = 0;
  const int64_t* seed_ptr = nullptr;  // the seed in the memory of a GPU, which alone reads it
  uint32_t drop_threshold = 0;        // of 65536; 0 = no dropout
  int num_threads = 1;
};

struct AttentionBwdParams : AttentionParams {
  TensorRef dout, dq, dk, dv;
  RowStatsRef dlse;   // may be null
  RowStatsRef delta;  // memory for rowsum(out * dout) - dlse, float32; used on a GPU only
  BiasRef dbias;      // may be null; zeroed by the caller
};

// A matrix whose rows are contiguous.
struct MatrixRef {
  void* data = nullptr;
  int64_t row_stride = 0;  // in elements
};

// Memory for partial sums over rows, (sums, parts, columns) of float32: each block of a GPU's
// backward pass writes those of its rows, and a second kernel adds them up.
struct ColumnSumsRef {
  float* data = nullptr;
  int64_t parts = 0;
};

// Matrices are (rows, hidden_size). Vectors are (hidden_size,) of float32, or float64 for float64
// matrices, and contiguous, as are mean and rstd, (rows,).
struct LayerNormParams {
  ElementType x_dtype = ElementType::kFloat32;
  ElementType dtype = ElementType::kFloat32;  // of residual and out: x_dtype or float32
  MatrixRef x, residual, out;
  const void* x_bias = nullptr;  // may be null
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* mean = nullptr;
  void* rstd = nullptr;  // 1 / sqrt(variance + eps)
  int64_t rows = 0, hidden_size = 0;
  double eps = 0.0;
  uint64_t seed = 0;
  const int64_t* seed_ptr = nullptr;  // as above
  uint32_t drop_threshold = 0;        // of 65536; 0 = no dropout
  int num_threads = 1;
};

struct LayerNormBwdParams : LayerNormParams {
  MatrixRef dout, dresidual;
  MatrixRef dx;  // null if it is equal to dresidual
  void* dweight = nullptr;
  void* dbias = nullptr;
  void* dx_bias = nullptr;  // may be null
  ColumnSumsRef partials;   // of dweight, dbias and, if it is there, dx_bias; used on a GPU only
};

struct GeluParams {
  ElementType dtype = ElementType::kFloat32;
  MatrixRef x, out;            // (rows, cols)
  const void* bias = nullptr;  // (cols,) as above; may be null
  int64_t rows = 0, cols = 0;
  int num_threads = 1;
};

struct GeluBwdParams : GeluParams {
  MatrixRef dout, dx;
  void* dbias = nullptr;   // may be null
  ColumnSumsRef partials;  // of dbias, if it is there; used on a GPU only
};

// c = op(a) @ op(b) + bias in float32, where op transposes or not.
struct MatmulParams {
  MatrixRef a, b, c;            // op(a) is (m, k), op(b) is (k, n), c is (m, n)
  const float* bias = nullptr;  // (n,); may be null
  bool a_transposed = false, b_transposed = false;
  bool accumulate = false;  // the product is added to what stands in c; then no bias
  int64_t m = 0, n = 0, k = 0;
  int num_threads = 1;
};

struct HiddenDropoutParams {
  ElementType dtype = ElementType::kFloat32;
  MatrixRef x, out;  // (rows, hidden_size)
  int64_t rows = 0, hidden_size = 0;
  uint64_t seed = 0;
  const int64_t* seed_ptr = nullptr;  // as above
  uint32_t drop_threshold = 0;
  int num_threads = 1;
};

struct PeakParams {
  ElementType dtype = ElementType::kFloat32;
  int64_t rounds = 0;  // multiply-adds of each chain
  int num_threads = 1;
};

}  // namespace fastattn
