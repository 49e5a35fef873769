// The Python module fastattn._C: versions and one registration per group of functions.
#include <pybind11/pybind11.h>

#include "bindings/cuda.h"

namespace fastattn::bindings {
void register_cuda_build(pybind11::module_& m);
void register_cuda_runtime(pybind11::module_& m);
void register_cpu(pybind11::module_& m);
void register_hidden(pybind11::module_& m);
void register_matmul(pybind11::module_& m);
void register_peak(pybind11::module_& m);
}  // namespace fastattn::bindings

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of fastattn. They take raw pointers; fastattn.backends checks and calls them.";
  m.attr("__version__") = FASTATTN_VERSION;
  fastattn::bindings::register_cpu(m);
  fastattn::bindings::register_hidden(m);
  fastattn::bindings::register_matmul(m);
  fastattn::bindings::register_peak(m);
  fastattn::bindings::register_cuda_build(m);
#ifdef FASTATTN_CUDA
  fastattn::bindings::register_cuda_attention(m);
  fastattn::bindings::register_cuda_hidden(m);
  fastattn::bindings::register_cuda_runtime(m);
#endif
}
