// What the CUDA runtime that is linked in says about this machine.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <string>

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

// Never fails: what is wrong is in the result, as (code, word, version of the driver, version of
// the runtime). Versions are as 13000 for 13.0; that of the driver is 0 where there is none.
py::tuple cuda_runtime_status() {
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  cudaGetLastError();  // so that no later call reports this one's error
  return py::make_tuple(static_cast<int>(code), std::string(cudaGetErrorString(code)), driver,
                        runtime);
}

}  // namespace

void register_cuda_runtime(py::module_& m) { m.def("cuda_runtime_status", &cuda_runtime_status); }

}  // namespace fastattn::bindings
