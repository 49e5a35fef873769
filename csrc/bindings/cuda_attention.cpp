// The CUDA kernels of attention. Part of _C, and of _emulated, where a CPU runs them.
#include "bindings/attention.h"
#include "bindings/cuda.h"
#include "cuda/attention.h"
#ifdef FASTATTN_HOPPER
#include "hopper/attention.h"
#endif

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

using DeviceOptions = Options<OptionalView>;

void read_inputs(Buffers& buffers, size_t bytes, const View& q, const View& k, const View& v,
                 const DeviceOptions& options) {
  buffers.reads("q", q, bytes);
  buffers.reads("k", k, bytes);
  buffers.reads("v", v, bytes);
  buffers.reads("cu_seqlens_q", std::get<0>(options), sizeof(int32_t));
  buffers.reads("cu_seqlens_k", std::get<1>(options), sizeof(int32_t));
  buffers.reads("key_padding_mask", std::get<2>(options), sizeof(uint8_t));
  buffers.reads("bias", std::get<3>(options), sizeof(float));
  buffers.reads("alibi_slopes", std::get<4>(options), sizeof(float));
  buffers.reads("seed", std::get<5>(options), sizeof(int64_t));
}

template <void (*kRun)(const AttentionParams&, void*)>
void attention_fwd(const std::string& dtype, const View& out, const View& lse, const View& q,
                   const View& k, const View& v, const DeviceOptions& options, uintptr_t stream) {
  const AttentionParams params = fwd_params(dtype, out, lse, q, k, v, options);
  const size_t bytes = bytes_of(dtype);
  Buffers buffers;
  read_inputs(buffers, bytes, q, k, v, options);
  buffers.writes("out", out, bytes);
  buffers.writes("lse", lse, sizeof(float));
  const py::gil_scoped_release release;
  kRun(params, reinterpret_cast<void*>(stream));
}

template <void (*kRun)(const AttentionBwdParams&, void*)>
void attention_bwd(const std::string& dtype, const View& dq, const View& dk, const View& dv,
                   const OptionalView& dbias, const View& delta, const View& dout,
                   const OptionalView& dlse, const View& q, const View& k, const View& v,
                   const View& out, const View& lse, const DeviceOptions& options,
                   uintptr_t stream) {
  AttentionBwdParams params =
      bwd_params(dtype, dq, dk, dv, dbias, dout, dlse, q, k, v, out, lse, options);
  params.delta = row_stats_ref(delta, sizes(q));
  const size_t bytes = bytes_of(dtype);
  Buffers buffers;
  read_inputs(buffers, bytes, q, k, v, options);
  buffers.reads("dout", dout, bytes);
  buffers.reads("dlse", dlse, sizeof(float));
  buffers.reads("out", out, bytes);
  buffers.reads("lse", lse, sizeof(float));
  buffers.writes("delta", delta, sizeof(float));
  buffers.writes("dq", dq, bytes);
  buffers.writes("dk", dk, bytes);
  buffers.writes("dv", dv, bytes);
  buffers.writes("dbias", dbias, sizeof(float));
  const py::gil_scoped_release release;
  kRun(params, reinterpret_cast<void*>(stream));
}

}  // namespace

void register_cuda_attention(py::module_& m) {
  m.def("cuda_attention_fwd", &attention_fwd<cuda::attention_fwd>);
  m.def("cuda_attention_bwd", &attention_bwd<cuda::attention_bwd>);
  m.attr("cuda_max_head_dim") = cuda::kMaxHeadDim;
#ifdef FASTATTN_HOPPER
  m.def("hopper_attention_fwd", &attention_fwd<cuda::hopper_attention_fwd>);
  m.def("hopper_attention_bwd", &attention_bwd<cuda::hopper_attention_bwd>);
  m.attr("hopper_max_head_dim") = cuda::kHopperMaxHeadDim;
#endif
}

}  // namespace fastattn::bindings
