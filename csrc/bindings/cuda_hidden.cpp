// The CUDA kernels on hidden states. Part of _C, and of _emulated, where a CPU runs them.
#include "bindings/cuda.h"
#include "bindings/hidden.h"
#include "cuda/hidden.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

// (sums, parts, columns): partial sums over rows, one for each block of a backward pass.
void set_partials(ColumnSumsRef& ref, const View& view, int64_t sums, int64_t columns) {
  require(sizes(view).size() == 3 && sizes(view)[0] == sums && sizes(view)[2] == columns,
          "hidden states: partial sums must have shape (sums, parts, columns)");
  ref.data = static_cast<float*>(pointer(view));
  ref.parts = sizes(view)[1];
}

constexpr size_t kStatBytes = sizeof(float);

void read_inputs(Buffers& buffers, const std::string& x_dtype, const std::string& dtype,
                 const View& x, const View& residual, const View& weight,
                 const OptionalView& x_bias, const OptionalView& seed) {
  buffers.reads("x", x, bytes_of(x_dtype));
  buffers.reads("residual", residual, bytes_of(dtype));
  buffers.reads("weight", weight, kStatBytes);
  buffers.reads("x_bias", x_bias, kStatBytes);
  buffers.reads("seed", seed, sizeof(int64_t));
}

void cuda_layer_norm_fwd(const std::string& x_dtype, const std::string& dtype, const View& out,
                         const View& mean, const View& rstd, const View& x, const View& residual,
                         const View& weight, const View& bias, const OptionalView& x_bias,
                         double eps, const OptionalView& seed, uint32_t drop_threshold,
                         uintptr_t stream) {
  const LayerNormParams params =
      layer_norm_fwd_params(x_dtype, dtype, out, mean, rstd, x, residual, weight, bias, x_bias, eps,
                            seed, drop_threshold);
  Buffers buffers;
  read_inputs(buffers, x_dtype, dtype, x, residual, weight, x_bias, seed);
  buffers.reads("bias", bias, kStatBytes);
  buffers.writes("out", out, bytes_of(dtype));
  buffers.writes("mean", mean, kStatBytes);
  buffers.writes("rstd", rstd, kStatBytes);
  const py::gil_scoped_release release;
  cuda::layer_norm_fwd(params, reinterpret_cast<void*>(stream));
}

void cuda_layer_norm_bwd(const std::string& x_dtype, const std::string& dtype,
                         const OptionalView& dx, const View& dresidual, const View& dweight,
                         const View& dbias, const OptionalView& dx_bias, const View& partials,
                         const View& dout, const View& x, const View& residual, const View& weight,
                         const OptionalView& x_bias, const View& mean, const View& rstd,
                         const OptionalView& seed, uint32_t drop_threshold, uintptr_t stream) {
  LayerNormBwdParams params =
      layer_norm_bwd_params(x_dtype, dtype, dx, dresidual, dweight, dbias, dx_bias, dout, x,
                            residual, weight, x_bias, mean, rstd, seed, drop_threshold);
  set_partials(params.partials, partials, dx_bias.has_value() ? 3 : 2, params.hidden_size);
  Buffers buffers;
  read_inputs(buffers, x_dtype, dtype, x, residual, weight, x_bias, seed);
  buffers.reads("dout", dout, bytes_of(dtype));
  buffers.reads("mean", mean, kStatBytes);
  buffers.reads("rstd", rstd, kStatBytes);
  buffers.writes("dx", dx, bytes_of(x_dtype));
  buffers.writes("dresidual", dresidual, bytes_of(dtype));
  buffers.writes("partials", partials, kStatBytes);
  buffers.writes("dweight", dweight, kStatBytes);
  buffers.writes("dbias", dbias, kStatBytes);
  buffers.writes("dx_bias", dx_bias, kStatBytes);
  const py::gil_scoped_release release;
  cuda::layer_norm_bwd(params, reinterpret_cast<void*>(stream));
}

void cuda_gelu_fwd(const std::string& dtype, const View& out, const View& x,
                   const OptionalView& bias, uintptr_t stream) {
  const GeluParams params = gelu_fwd_params(dtype, out, x, bias);
  Buffers buffers;
  buffers.reads("x", x, bytes_of(dtype));
  buffers.reads("bias", bias, kStatBytes);
  buffers.writes("out", out, bytes_of(dtype));
  const py::gil_scoped_release release;
  cuda::gelu_fwd(params, reinterpret_cast<void*>(stream));
}

void cuda_gelu_bwd(const std::string& dtype, const View& dx, const OptionalView& dbias,
                   const OptionalView& partials, const View& dout, const View& x,
                   const OptionalView& bias, uintptr_t stream) {
  GeluBwdParams params = gelu_bwd_params(dtype, dx, dbias, dout, x, bias);
  require(dbias.has_value() == partials.has_value(),
          "hidden states: dbias and its partial sums must come together");
  if (partials.has_value()) set_partials(params.partials, *partials, 1, params.cols);
  Buffers buffers;
  buffers.reads("x", x, bytes_of(dtype));
  buffers.reads("dout", dout, bytes_of(dtype));
  buffers.reads("bias", bias, kStatBytes);
  buffers.writes("dx", dx, bytes_of(dtype));
  buffers.writes("partials", partials, kStatBytes);
  buffers.writes("dbias", dbias, kStatBytes);
  const py::gil_scoped_release release;
  cuda::gelu_bwd(params, reinterpret_cast<void*>(stream));
}

void cuda_hidden_dropout(const std::string& dtype, const View& out, const View& x,
                         const OptionalView& seed, uint32_t drop_threshold, uintptr_t stream) {
  const HiddenDropoutParams params = hidden_dropout_params(dtype, out, x, seed, drop_threshold);
  Buffers buffers;
  buffers.reads("x", x, bytes_of(dtype));
  buffers.reads("seed", seed, sizeof(int64_t));
  buffers.writes("out", out, bytes_of(dtype));
  const py::gil_scoped_release release;
  cuda::hidden_dropout(params, reinterpret_cast<void*>(stream));
}

}  // namespace

void register_cuda_hidden(py::module_& m) {
  m.attr("cuda_max_hidden_size") = cuda::kMaxHiddenSize;
  m.def("cuda_layer_norm_fwd", &cuda_layer_norm_fwd);
  m.def("cuda_layer_norm_bwd", &cuda_layer_norm_bwd);
  m.def("cuda_gelu_fwd", &cuda_gelu_fwd);
  m.def("cuda_gelu_bwd", &cuda_gelu_bwd);
  m.def("cuda_hidden_dropout", &cuda_hidden_dropout);
}

}  // namespace fastattn::bindings
