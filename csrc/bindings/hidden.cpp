// The CPU kernels on hidden states.
#include "bindings/hidden.h"

#include "cpu/dispatch.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

void cpu_layer_norm_fwd(const std::string& x_dtype, const std::string& dtype, const View& out,
                        const View& mean, const View& rstd, const View& x, const View& residual,
                        const View& weight, const View& bias, const OptionalView& x_bias,
                        double eps, uint64_t seed, uint32_t drop_threshold, int num_threads) {
  LayerNormParams params = layer_norm_fwd_params(x_dtype, dtype, out, mean, rstd, x, residual,
                                                 weight, bias, x_bias, eps, seed, drop_threshold);
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  cpu::layer_norm_fwd(params);
}

void cpu_layer_norm_bwd(const std::string& x_dtype, const std::string& dtype,
                        const OptionalView& dx, const View& dresidual, const View& dweight,
                        const View& dbias, const OptionalView& dx_bias, const View& dout,
                        const View& x, const View& residual, const View& weight,
                        const OptionalView& x_bias, const View& mean, const View& rstd,
                        uint64_t seed, uint32_t drop_threshold, int num_threads) {
  LayerNormBwdParams params =
      layer_norm_bwd_params(x_dtype, dtype, dx, dresidual, dweight, dbias, dx_bias, dout, x,
                            residual, weight, x_bias, mean, rstd, seed, drop_threshold);
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  cpu::layer_norm_bwd(params);
}

void cpu_gelu_fwd(const std::string& dtype, const View& out, const View& x,
                  const OptionalView& bias, int num_threads) {
  GeluParams params = gelu_fwd_params(dtype, out, x, bias);
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  cpu::gelu_fwd(params);
}

void cpu_gelu_bwd(const std::string& dtype, const View& dx, const OptionalView& dbias,
                  const View& dout, const View& x, const OptionalView& bias, int num_threads) {
  GeluBwdParams params = gelu_bwd_params(dtype, dx, dbias, dout, x, bias);
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  cpu::gelu_bwd(params);
}

void cpu_hidden_dropout(const std::string& dtype, const View& out, const View& x, uint64_t seed,
                        uint32_t drop_threshold, int num_threads) {
  HiddenDropoutParams params = hidden_dropout_params(dtype, out, x, seed, drop_threshold);
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  cpu::hidden_dropout(params);
}

}  // namespace

void register_hidden(py::module_& m) {
  m.def("cpu_layer_norm_fwd", &cpu_layer_norm_fwd);
  m.def("cpu_layer_norm_bwd", &cpu_layer_norm_bwd);
  m.def("cpu_gelu_fwd", &cpu_gelu_fwd);
  m.def("cpu_gelu_bwd", &cpu_gelu_bwd);
  m.def("cpu_hidden_dropout", &cpu_hidden_dropout);
}

}  // namespace fastattn::bindings
