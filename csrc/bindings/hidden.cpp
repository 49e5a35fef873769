// Python arguments -> the CPU kernels on hidden states: dropout + residual + LayerNorm, bias +
// GELU, dropout. fastattn/backends/cpu.py is the caller and has checked types and values; what is
// checked again here is what protects memory.
#include <string>
#include <tuple>
#include <vector>

#include "bindings/view.h"
#include "cpu/dispatch.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

// A matrix of the shape of `like`.
MatrixRef matrix(const View& view, const View& like) {
  require(sizes(view).size() == 2 && sizes(view) == sizes(like),
          "hidden states: matrices must have two dimensions, and the same sizes");
  require(sizes(view)[1] <= 1 || strides(view)[1] == 1,
          "hidden states: rows of matrices must be contiguous");
  return {pointer(view), strides(view)[0]};
}

// A contiguous vector.
void* vector(const View& view, int64_t size) {
  require(sizes(view) == std::vector<int64_t>{size} && (size <= 1 || strides(view)[0] == 1),
          "hidden states: a vector must be contiguous and have one number for each row or column");
  return pointer(view);
}
void* vector(const OptionalView& view, int64_t size) {
  return view.has_value() ? vector(*view, size) : nullptr;
}

void set_inputs(LayerNormParams& params, const std::string& x_dtype, const std::string& dtype,
                const View& x, const View& residual, const View& weight, const OptionalView& x_bias,
                const View& mean, const View& rstd, uint64_t seed, uint32_t drop_threshold,
                int num_threads) {
  params.x_dtype = element_type(x_dtype);
  params.dtype = element_type(dtype);
  const bool is_half =
      params.x_dtype == ElementType::kFloat16 || params.x_dtype == ElementType::kBFloat16;
  require(params.dtype == params.x_dtype || (is_half && params.dtype == ElementType::kFloat32),
          "hidden states: residual must have the dtype of x, or be float32 where x has 16 bits");
  params.x = matrix(x, x);
  params.residual = matrix(residual, x);
  params.rows = sizes(x)[0];
  params.hidden_size = sizes(x)[1];
  params.weight = vector(weight, params.hidden_size);
  params.x_bias = vector(x_bias, params.hidden_size);
  params.mean = vector(mean, params.rows);
  params.rstd = vector(rstd, params.rows);
  params.seed = seed;
  params.drop_threshold = drop_threshold;
  params.num_threads = num_threads;
}

void cpu_layer_norm_fwd(const std::string& x_dtype, const std::string& dtype, const View& out,
                        const View& mean, const View& rstd, const View& x, const View& residual,
                        const View& weight, const View& bias, const OptionalView& x_bias,
                        double eps, uint64_t seed, uint32_t drop_threshold, int num_threads) {
  LayerNormParams params;
  set_inputs(params, x_dtype, dtype, x, residual, weight, x_bias, mean, rstd, seed, drop_threshold,
             num_threads);
  params.out = matrix(out, x);
  params.bias = vector(bias, params.hidden_size);
  params.eps = eps;
  const py::gil_scoped_release release;
  cpu::layer_norm_fwd(params);
}

void cpu_layer_norm_bwd(const std::string& x_dtype, const std::string& dtype,
                        const OptionalView& dx, const View& dresidual, const View& dweight,
                        const View& dbias, const OptionalView& dx_bias, const View& dout,
                        const View& x, const View& residual, const View& weight,
                        const OptionalView& x_bias, const View& mean, const View& rstd,
                        uint64_t seed, uint32_t drop_threshold, int num_threads) {
  LayerNormBwdParams params;
  set_inputs(params, x_dtype, dtype, x, residual, weight, x_bias, mean, rstd, seed, drop_threshold,
             num_threads);
  params.dout = matrix(dout, x);
  params.dresidual = matrix(dresidual, x);
  if (dx.has_value()) params.dx = matrix(*dx, x);
  params.dweight = vector(dweight, params.hidden_size);
  params.dbias = vector(dbias, params.hidden_size);
  params.dx_bias = vector(dx_bias, params.hidden_size);
  const py::gil_scoped_release release;
  cpu::layer_norm_bwd(params);
}

void set_inputs(GeluParams& params, const std::string& dtype, const View& x,
                const OptionalView& bias, int num_threads) {
  params.dtype = element_type(dtype);
  params.x = matrix(x, x);
  params.rows = sizes(x)[0];
  params.cols = sizes(x)[1];
  params.bias = vector(bias, params.cols);
  params.num_threads = num_threads;
}

void cpu_gelu_fwd(const std::string& dtype, const View& out, const View& x,
                  const OptionalView& bias, int num_threads) {
  GeluParams params;
  set_inputs(params, dtype, x, bias, num_threads);
  params.out = matrix(out, x);
  const py::gil_scoped_release release;
  cpu::gelu_fwd(params);
}

void cpu_gelu_bwd(const std::string& dtype, const View& dx, const OptionalView& dbias,
                  const View& dout, const View& x, const OptionalView& bias, int num_threads) {
  GeluBwdParams params;
  set_inputs(params, dtype, x, bias, num_threads);
  params.dout = matrix(dout, x);
  params.dx = matrix(dx, x);
  params.dbias = vector(dbias, params.cols);
  const py::gil_scoped_release release;
  cpu::gelu_bwd(params);
}

void cpu_hidden_dropout(const std::string& dtype, const View& out, const View& x, uint64_t seed,
                        uint32_t drop_threshold, int num_threads) {
  HiddenDropoutParams params;
  params.dtype = element_type(dtype);
  params.x = matrix(x, x);
  params.out = matrix(out, x);
  params.rows = sizes(x)[0];
  params.hidden_size = sizes(x)[1];
  params.seed = seed;
  params.drop_threshold = drop_threshold;
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
