// The CUDA kernels of attention. Part of _C, and of _emulated, where a CPU runs them.
#include "bindings/attention.h"
#include "bindings/cuda.h"
#include "cuda/attention.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

using DeviceOptions = Options<OptionalView>;

void cuda_attention_fwd(const std::string& dtype, const View& out, const View& lse, const View& q,
                        const View& k, const View& v, const DeviceOptions& options,
                        uintptr_t stream) {
  const AttentionParams params = fwd_params(dtype, out, lse, q, k, v, options);
  const py::gil_scoped_release release;
  cuda::attention_fwd(params, reinterpret_cast<void*>(stream));
}

void cuda_attention_bwd(const std::string& dtype, const View& dq, const View& dk, const View& dv,
                        const OptionalView& dbias, const View& delta, const View& dout,
                        const OptionalView& dlse, const View& q, const View& k, const View& v,
                        const View& out, const View& lse, const DeviceOptions& options,
                        uintptr_t stream) {
  AttentionBwdParams params =
      bwd_params(dtype, dq, dk, dv, dbias, dout, dlse, q, k, v, out, lse, options);
  params.delta = row_stats_ref(delta, sizes(q));
  const py::gil_scoped_release release;
  cuda::attention_bwd(params, reinterpret_cast<void*>(stream));
}

}  // namespace

void register_cuda_attention(py::module_& m) {
  m.def("cuda_attention_fwd", &cuda_attention_fwd);
  m.def("cuda_attention_bwd", &cuda_attention_bwd);
  m.attr("cuda_max_head_dim") = cuda::kMaxHeadDim;
}

}  // namespace fastattn::bindings
