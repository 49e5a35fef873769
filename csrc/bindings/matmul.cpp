// Python arguments -> MatmulParams -> the CPU's matrix product. fastattn/backends/cpu.py is the
// caller; what is checked again here is what protects memory.
#include "bindings/view.h"
#include "cpu/dispatch.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

MatrixRef matrix(const View& view) {
  require(sizes(view).size() == 2, "matmul: a, b and c must have two dimensions");
  require(sizes(view)[1] <= 1 || strides(view)[1] == 1,
          "matmul: rows of a, b and c must be contiguous");
  return {pointer(view), strides(view)[0]};
}

void cpu_matmul(const View& c, const View& a, const View& b, const OptionalView& bias,
                bool a_transposed, bool b_transposed, bool accumulate, int num_threads) {
  MatmulParams params;
  params.a = matrix(a);
  params.b = matrix(b);
  params.c = matrix(c);
  params.a_transposed = a_transposed;
  params.b_transposed = b_transposed;
  params.accumulate = accumulate;
  params.m = sizes(c)[0];
  params.n = sizes(c)[1];
  params.k = sizes(a)[a_transposed ? 0 : 1];
  require(sizes(a)[a_transposed ? 1 : 0] == params.m &&
              sizes(b)[b_transposed ? 1 : 0] == params.k &&
              sizes(b)[b_transposed ? 0 : 1] == params.n,
          "matmul: the sizes of a, b and c must fit each other");
  if (bias.has_value()) {
    require(!accumulate, "matmul: there is no bias where the product is added to c");
    require(sizes(*bias) == Extents{params.n} && (params.n <= 1 || strides(*bias)[0] == 1),
            "matmul: bias must be contiguous and have one number for each column of c");
    params.bias = static_cast<const float*>(pointer(*bias));
  }
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  cpu::matmul(params);
}

}  // namespace

void register_matmul(py::module_& m) {
  m.def("cpu_matmul", &cpu_matmul);
  m.def("cpu_prefers_own_matmul", &cpu::prefers_own_matmul);
  m.attr("CPU_FEW_ROWS") = cpu::kFewRows;
}

}  // namespace fastattn::bindings
