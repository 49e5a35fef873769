// Python arguments -> the parameters of the kernels on hidden states: dropout + residual +
// LayerNorm, bias + GELU, dropout. The backends in fastattn/backends are the callers and have
// checked types and values; what is checked again here is what protects memory.
#pragma once

#include <string>

#include "bindings/view.h"

namespace fastattn::bindings {

// A matrix of the shape of `like`.
inline MatrixRef matrix(const View& view, const View& like) {
  require(sizes(view).size() == 2 && sizes(view) == sizes(like),
          "hidden states: matrices must have two dimensions, and the same sizes");
  require(sizes(view)[1] <= 1 || strides(view)[1] == 1,
          "hidden states: rows of matrices must be contiguous");
  return {pointer(view), strides(view)[0]};
}

// A contiguous vector.
inline void* vector(const View& view, int64_t size) {
  require(sizes(view) == Extents{size} && (size <= 1 || strides(view)[0] == 1),
          "hidden states: a vector must be contiguous and have one number for each row or column");
  return pointer(view);
}
inline void* vector(const OptionalView& view, int64_t size) {
  return view.has_value() ? vector(*view, size) : nullptr;
}

template <class Seed>
void set_inputs(LayerNormParams& params, const std::string& x_dtype, const std::string& dtype,
                const View& x, const View& residual, const View& weight, const OptionalView& x_bias,
                const View& mean, const View& rstd, const Seed& seed, uint32_t drop_threshold) {
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
  set_seed(params, seed);
  params.drop_threshold = drop_threshold;
}

template <class Seed>
LayerNormParams layer_norm_fwd_params(const std::string& x_dtype, const std::string& dtype,
                                      const View& out, const View& mean, const View& rstd,
                                      const View& x, const View& residual, const View& weight,
                                      const View& bias, const OptionalView& x_bias, double eps,
                                      const Seed& seed, uint32_t drop_threshold) {
  LayerNormParams params;
  set_inputs(params, x_dtype, dtype, x, residual, weight, x_bias, mean, rstd, seed, drop_threshold);
  params.out = matrix(out, x);
  params.bias = vector(bias, params.hidden_size);
  params.eps = eps;
  return params;
}

template <class Seed>
LayerNormBwdParams layer_norm_bwd_params(const std::string& x_dtype, const std::string& dtype,
                                         const OptionalView& dx, const View& dresidual,
                                         const View& dweight, const View& dbias,
                                         const OptionalView& dx_bias, const View& dout,
                                         const View& x, const View& residual, const View& weight,
                                         const OptionalView& x_bias, const View& mean,
                                         const View& rstd, const Seed& seed,
                                         uint32_t drop_threshold) {
  LayerNormBwdParams params;
  set_inputs(params, x_dtype, dtype, x, residual, weight, x_bias, mean, rstd, seed, drop_threshold);
  params.dout = matrix(dout, x);
  params.dresidual = matrix(dresidual, x);
  if (dx.has_value()) params.dx = matrix(*dx, x);
  params.dweight = vector(dweight, params.hidden_size);
  params.dbias = vector(dbias, params.hidden_size);
  params.dx_bias = vector(dx_bias, params.hidden_size);
  return params;
}

inline void set_inputs(GeluParams& params, const std::string& dtype, const View& x,
                       const OptionalView& bias) {
  params.dtype = element_type(dtype);
  params.x = matrix(x, x);
  params.rows = sizes(x)[0];
  params.cols = sizes(x)[1];
  params.bias = vector(bias, params.cols);
}

inline GeluParams gelu_fwd_params(const std::string& dtype, const View& out, const View& x,
                                  const OptionalView& bias) {
  GeluParams params;
  set_inputs(params, dtype, x, bias);
  params.out = matrix(out, x);
  return params;
}

inline GeluBwdParams gelu_bwd_params(const std::string& dtype, const View& dx,
                                     const OptionalView& dbias, const View& dout, const View& x,
                                     const OptionalView& bias) {
  GeluBwdParams params;
  set_inputs(params, dtype, x, bias);
  params.dout = matrix(dout, x);
  params.dx = matrix(dx, x);
  params.dbias = vector(dbias, params.cols);
  return params;
}

template <class Seed>
HiddenDropoutParams hidden_dropout_params(const std::string& dtype, const View& out, const View& x,
                                          const Seed& seed, uint32_t drop_threshold) {
  HiddenDropoutParams params;
  params.dtype = element_type(dtype);
  params.x = matrix(x, x);
  params.out = matrix(out, x);
  params.rows = sizes(x)[0];
  params.hidden_size = sizes(x)[1];
  set_seed(params, seed);
  params.drop_threshold = drop_threshold;
  return params;
}

}  // namespace fastattn::bindings
