// What the build says about CUDA, in every module: the compiler, the architectures, or why none.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

py::dict cuda_build_info() {
  py::list architectures;
  std::istringstream numbers(FASTATTN_CUDA_ARCHITECTURES);
  for (int number; numbers >> number;) architectures.append(number);
  const std::string nvcc = FASTATTN_NVCC_VERSION, skipped = FASTATTN_CUDA_SKIPPED;
  py::dict info;
  info["nvcc"] = nvcc.empty() ? py::none() : py::object(py::str(nvcc));
  info["architectures"] = architectures;
  info["skipped"] = skipped.empty() ? py::none() : py::object(py::str(skipped));
  return info;
}

}  // namespace

void register_cuda_build(py::module_& m) { m.def("cuda_build_info", &cuda_build_info); }

}  // namespace fastattn::bindings
