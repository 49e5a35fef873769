// Python arguments -> AttentionParams. The backends in fastattn/backends are the callers and have
// checked shapes and values; what is checked again here is what protects memory.
#pragma once

#include <string>
#include <tuple>

#include "bindings/view.h"

namespace fastattn::bindings {

// (batch, row, head, head_dim), or (row, head, head_dim) in the packed layout.
inline TensorRef tensor_ref(const View& view, const Extents& shape) {
  require(sizes(view) == shape, "attention: a tensor's shape does not fit those of q and k");
  const Extents& s = strides(view);
  require(sizes(view).back() == 1 || s.back() == 1,
          "attention: head_dim must be contiguous; got a tensor with another stride there");
  if (s.size() == 4) return {pointer(view), s[0], s[1], s[2]};
  return {pointer(view), 0, s[0], s[1]};
}

// (batch, head, row, head_dim) -> (batch, row, head, head_dim), if the tensor is of the first kind.
inline View heads_second(View view, bool heads_first) {
  if (!heads_first) return view;
  require(sizes(view).size() == 4, "attention: the heads come first only in batches");
  view.sizes.swap(1, 2);
  view.strides.swap(1, 2);
  return view;
}

// (batch, head, row), or (head, row) in the packed layout.
inline RowStatsRef row_stats_ref(const View& view, const Extents& q_shape) {
  const Extents& s = strides(view);
  const Extents shape = q_shape.size() == 4 ? Extents{q_shape[0], q_shape[2], q_shape[1]}
                                            : Extents{q_shape[1], q_shape[0]};
  require(sizes(view) == shape, "attention: the shape of lse does not fit that of q");
  if (s.size() == 3) return {pointer(view), s[0], s[1], s[2]};
  return {pointer(view), 0, s[0], s[1]};
}

inline BiasRef bias_ref(const View& view) {
  require(sizes(view).size() == 4, "attention: bias must have four dimensions");
  BiasRef ref;
  ref.data = pointer(view);
  for (int i = 0; i < 4; ++i) {
    ref.sizes[i] = sizes(view)[i];
    ref.strides[i] = sizes(view)[i] == 1 ? 0 : strides(view)[i];
  }
  return ref;
}

inline void set_inputs(AttentionParams& params, const std::string& dtype, const View& q,
                       const View& k, const View& v, const View& out, const View& lse) {
  params.dtype = element_type(dtype);
  const Extents &q_shape = sizes(q), &k_shape = sizes(k);
  const size_t dims = q_shape.size();
  require((dims == 3 || dims == 4) && k_shape.size() == dims,
          "attention: q and k must both be batches or both be packed");
  params.q = tensor_ref(q, q_shape);
  params.k = tensor_ref(k, k_shape);
  params.v = tensor_ref(v, k_shape);
  params.out = tensor_ref(out, q_shape);
  params.lse = row_stats_ref(lse, q_shape);
  params.head_dim = q_shape[dims - 1];
  params.num_heads = q_shape[dims - 2];
  params.num_heads_kv = k_shape[dims - 2];
  require(k_shape[dims - 1] == params.head_dim && params.num_heads_kv > 0 &&
              params.num_heads % params.num_heads_kv == 0,
          "attention: the heads of q and k do not fit each other");
  if (dims == 3) {
    params.total_q = q_shape[0];
    params.total_k = k_shape[0];
  } else {
    require(q_shape[0] == k_shape[0], "attention: q and k must have the same batch size");
    params.batch_size = q_shape[0];
    params.seqlen_q = q_shape[1];
    params.seqlen_k = k_shape[1];
  }
}

inline void set_sequences(AttentionParams& params, const OptionalView& cu_seqlens_q,
                          const OptionalView& cu_seqlens_k) {
  require(cu_seqlens_q.has_value() == cu_seqlens_k.has_value(),
          "attention: cu_seqlens_q and cu_seqlens_k must come together");
  if (!cu_seqlens_q.has_value()) return;
  require(sizes(*cu_seqlens_q) == sizes(*cu_seqlens_k) && sizes(*cu_seqlens_q).size() == 1,
          "attention: cu_seqlens_q and cu_seqlens_k must name the same number of sequences");
  params.cu_seqlens_q = static_cast<const int32_t*>(pointer(*cu_seqlens_q));
  params.cu_seqlens_k = static_cast<const int32_t*>(pointer(*cu_seqlens_k));
  params.batch_size = sizes(*cu_seqlens_q)[0] - 1;
}

// The arguments that both functions take after their own tensors, as one Python tuple. The seed is
// a number for a CPU; for a GPU it is a tensor there, so that nobody has to wait for its value.
template <class Seed>
using Options = std::tuple<OptionalView, OptionalView, OptionalView, OptionalView, OptionalView,
                           Seed, double, double, int64_t, int64_t, uint32_t, int>;

template <class Seed>
void set_options(AttentionParams& params, const Options<Seed>& options) {
  const auto& [cu_seqlens_q, cu_seqlens_k, key_padding_mask, bias, alibi_slopes, seed,
               softmax_scale, softcap, window_left, window_right, drop_threshold, num_threads] =
      options;
  set_sequences(params, cu_seqlens_q, cu_seqlens_k);
  if (key_padding_mask.has_value()) {
    require(sizes(*key_padding_mask) == Extents{params.batch_size, params.seqlen_k},
            "attention: key_padding_mask must have shape (batch, seqlen_k)");
    params.key_padding_mask = static_cast<const uint8_t*>(pointer(*key_padding_mask));
    params.mask_batch_stride = strides(*key_padding_mask)[0];
    params.mask_col_stride = strides(*key_padding_mask)[1];
  }
  if (bias.has_value()) params.bias = bias_ref(*bias);
  if (alibi_slopes.has_value()) {
    params.alibi_slopes = static_cast<const float*>(pointer(*alibi_slopes));
    params.alibi_batch_stride = sizes(*alibi_slopes)[0] == 1 ? 0 : strides(*alibi_slopes)[0];
    params.alibi_head_stride = strides(*alibi_slopes)[1];
  }
  set_seed(params, seed);
  params.softmax_scale = softmax_scale;
  params.softcap = softcap;
  params.window_left = window_left;
  params.window_right = window_right;
  params.drop_threshold = drop_threshold;
  params.num_threads = num_threads;
}

template <class Seed>
AttentionParams fwd_params(const std::string& dtype, const View& out, const View& lse,
                           const View& q, const View& k, const View& v,
                           const Options<Seed>& options) {
  AttentionParams params;
  set_inputs(params, dtype, q, k, v, out, lse);
  set_options(params, options);
  return params;
}

template <class Seed>
AttentionBwdParams bwd_params(const std::string& dtype, const View& dq, const View& dk,
                              const View& dv, const OptionalView& dbias, const View& dout,
                              const OptionalView& dlse, const View& q, const View& k, const View& v,
                              const View& out, const View& lse, const Options<Seed>& options) {
  AttentionBwdParams params;
  set_inputs(params, dtype, q, k, v, out, lse);
  set_options(params, options);
  params.dout = tensor_ref(dout, sizes(q));
  params.dq = tensor_ref(dq, sizes(q));
  params.dk = tensor_ref(dk, sizes(k));
  params.dv = tensor_ref(dv, sizes(k));
  if (dlse.has_value()) params.dlse = row_stats_ref(*dlse, sizes(q));
  if (dbias.has_value()) params.dbias = bias_ref(*dbias);
  return params;
}

}  // namespace fastattn::bindings
