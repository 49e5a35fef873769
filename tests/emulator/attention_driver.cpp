// The attention kernels behind one C function, for tests of kernels that were changed on purpose.
// With FASTATTN_HOPPER those for Hopper.
#include <cmath>
#include <cstring>
#include <exception>
#include <string>

#include "cuda/attention.h"
#include "emulator/control.h"
#include "hopper/attention.h"

using namespace fastattn;

#ifdef FASTATTN_HOPPER
const auto forward = cuda::hopper_attention_fwd;
const auto backward = cuda::hopper_attention_bwd;
#else
const auto forward = cuda::attention_fwd;
const auto backward = cuda::attention_bwd;
#endif

// Contiguous tensors of float16, in the batch or, with cu_seqlens, the packed layout.
struct Call {
  uint16_t *q, *k, *v, *out, *dout, *dq, *dk, *dv;
  float *lse, *delta;
  int32_t *cu_seqlens_q, *cu_seqlens_k;  // may be null
  uint8_t* key_padding_mask;             // may be null
  int64_t* seed;
  // Packed: one sequence as long as the tensors stands for the batch; num_sequences counts.
  int64_t batch_size, seqlen_q, seqlen_k, num_heads, num_heads_kv, head_dim, num_sequences;
  int64_t drop_threshold;
};

namespace {

AttentionBwdParams params_of(const Call& call) {
  const bool packed = call.cu_seqlens_q != nullptr;
  const auto tensor = [&](uint16_t* data, int64_t rows, int64_t heads) {
    const int64_t row = heads * call.head_dim;
    return TensorRef{data, packed ? 0 : rows * row, row, call.head_dim};
  };
  const auto stats = [&](float* data) {
    return RowStatsRef{data, packed ? 0 : call.num_heads * call.seqlen_q, call.seqlen_q, 1};
  };
  AttentionBwdParams params;
  params.dtype = ElementType::kFloat16;
  params.q = tensor(call.q, call.seqlen_q, call.num_heads);
  params.k = tensor(call.k, call.seqlen_k, call.num_heads_kv);
  params.v = tensor(call.v, call.seqlen_k, call.num_heads_kv);
  params.out = tensor(call.out, call.seqlen_q, call.num_heads);
  params.dout = tensor(call.dout, call.seqlen_q, call.num_heads);
  params.dq = tensor(call.dq, call.seqlen_q, call.num_heads);
  params.dk = tensor(call.dk, call.seqlen_k, call.num_heads_kv);
  params.dv = tensor(call.dv, call.seqlen_k, call.num_heads_kv);
  params.lse = stats(call.lse);
  params.delta = stats(call.delta);
  params.batch_size = call.num_sequences;
  params.seqlen_q = packed ? 0 : call.seqlen_q;
  params.seqlen_k = packed ? 0 : call.seqlen_k;
  params.total_q = call.seqlen_q;
  params.total_k = call.seqlen_k;
  params.num_heads = call.num_heads;
  params.num_heads_kv = call.num_heads_kv;
  params.head_dim = call.head_dim;
  params.cu_seqlens_q = call.cu_seqlens_q;
  params.cu_seqlens_k = call.cu_seqlens_k;
  params.key_padding_mask = call.key_padding_mask;
  params.mask_batch_stride = call.seqlen_k;
  params.mask_col_stride = 1;
  params.softmax_scale = 1 / std::sqrt(static_cast<double>(call.head_dim));
  params.seed_ptr = call.seed;
  params.drop_threshold = static_cast<uint32_t>(call.drop_threshold);
  return params;
}

void run(const Call& call, bool is_backward) {
  const int64_t q_rows = call.batch_size * call.seqlen_q * call.num_heads;
  const int64_t k_rows = call.batch_size * call.seqlen_k * call.num_heads_kv;
  const size_t row_bytes = call.head_dim * sizeof(uint16_t);
  emulator::GlobalBuffers buffers;
  buffers.add("q", call.q, q_rows * row_bytes, /*writable=*/false);
  buffers.add("k", call.k, k_rows * row_bytes, /*writable=*/false);
  buffers.add("v", call.v, k_rows * row_bytes, /*writable=*/false);
  buffers.add("out", call.out, q_rows * row_bytes, /*writable=*/!is_backward);
  buffers.add("lse", call.lse, q_rows * sizeof(float), /*writable=*/!is_backward);
  buffers.add("seed", call.seed, sizeof(int64_t), /*writable=*/false);
  buffers.add("mask", call.key_padding_mask, call.batch_size * call.seqlen_k, /*writable=*/false);
  const size_t cu_seqlens_bytes = (call.num_sequences + 1) * sizeof(int32_t);
  buffers.add("cu_seqlens_q", call.cu_seqlens_q, cu_seqlens_bytes, /*writable=*/false);
  buffers.add("cu_seqlens_k", call.cu_seqlens_k, cu_seqlens_bytes, /*writable=*/false);
  if (!is_backward) return forward(params_of(call), nullptr);
  buffers.add("dout", call.dout, q_rows * row_bytes, /*writable=*/false);
  buffers.add("dq", call.dq, q_rows * row_bytes, /*writable=*/true);
  buffers.add("dk", call.dk, k_rows * row_bytes, /*writable=*/true);
  buffers.add("dv", call.dv, k_rows * row_bytes, /*writable=*/true);
  buffers.add("delta", call.delta, q_rows * sizeof(float), /*writable=*/true);
  backward(params_of(call), nullptr);
}

}  // namespace

extern "C" void set_options(uint64_t seed, int threads, int schedule, int compute_capability) {
  emulator::Options options;
  options.seed = seed;
  options.threads = threads;
  options.schedule = static_cast<emulator::Schedule>(schedule);
  options.compute_capability = compute_capability;
  emulator::set_options(options);
}

// Forward, then backward. Returns what was found, or null.
extern "C" const char* attention(const Call* call) {
  static std::string message;
  emulator::reset_counters();
  try {
    run(*call, /*is_backward=*/false);
    run(*call, /*is_backward=*/true);
  } catch (const std::exception& caught) {
    message = caught.what();
    return message.c_str();
  }
  const emulator::Counters counters = emulator::counters();
  const uint64_t conflicts =
      counters.ldmatrix_conflicts + counters.lds_conflicts + counters.sts_conflicts;
  if (conflicts == 0) return nullptr;
  message = "bank conflicts:";
  for (const auto& [site, count] : emulator::conflict_sites()) {
    message += " " + std::to_string(count) + " at " + site;
  }
  return message.c_str();
}
