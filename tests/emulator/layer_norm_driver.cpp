// LayerNorm's kernels behind one C function, for tests of kernels that were changed on purpose.
#include <exception>
#include <string>

#include "cuda/hidden.h"
#include "emulator/control.h"

using namespace fastattn;

// Contiguous float32: matrices (rows, hidden_size), vectors (hidden_size,) and (rows,).
struct Call {
  float *x, *residual, *weight, *bias, *dout;
  float *out, *mean, *rstd, *dx, *dresidual, *dweight, *dbias, *partials;
  int64_t* seed;
  int64_t rows, hidden_size, parts, drop_threshold;
};

namespace {

void run(const Call& call) {
  const auto matrix = [&](float* data) { return MatrixRef{data, call.hidden_size}; };
  LayerNormBwdParams params;
  params.x = matrix(call.x), params.residual = matrix(call.residual), params.out = matrix(call.out);
  params.weight = call.weight, params.bias = call.bias;
  params.mean = call.mean, params.rstd = call.rstd;
  params.rows = call.rows, params.hidden_size = call.hidden_size;
  params.eps = 1e-5;
  params.seed_ptr = call.seed;
  params.drop_threshold = static_cast<uint32_t>(call.drop_threshold);
  params.dout = matrix(call.dout), params.dresidual = matrix(call.dresidual);
  params.dx = matrix(call.dx);
  params.dweight = call.dweight, params.dbias = call.dbias;
  params.partials = {call.partials, call.parts};

  emulator::GlobalBuffers buffers;
  const auto add = [&](const char* name, const float* data, int64_t count, bool writable) {
    buffers.add(name, data, count * sizeof(float), writable);
  };
  const int64_t size = call.rows * call.hidden_size;
  add("x", call.x, size, /*writable=*/false);
  add("residual", call.residual, size, /*writable=*/false);
  add("weight", call.weight, call.hidden_size, /*writable=*/false);
  add("bias", call.bias, call.hidden_size, /*writable=*/false);
  add("dout", call.dout, size, /*writable=*/false);
  buffers.add("seed", call.seed, sizeof(int64_t), /*writable=*/false);
  add("out", call.out, size, /*writable=*/true);
  add("mean", call.mean, call.rows, /*writable=*/true);
  add("rstd", call.rstd, call.rows, /*writable=*/true);
  add("dx", call.dx, size, /*writable=*/true);
  add("dresidual", call.dresidual, size, /*writable=*/true);
  add("dweight", call.dweight, call.hidden_size, /*writable=*/true);
  add("dbias", call.dbias, call.hidden_size, /*writable=*/true);
  add("partials", call.partials, 2 * call.parts * call.hidden_size, /*writable=*/true);
  cuda::layer_norm_fwd(params, nullptr);
  cuda::layer_norm_bwd(params, nullptr);
}

}  // namespace

// Forward, then backward. Returns what was found, or null.
extern "C" const char* layer_norm(const Call* call) {
  static std::string message;
  try {
    run(*call);
  } catch (const std::exception& caught) {
    message = caught.what();
    return message.c_str();
  }
  return nullptr;
}
