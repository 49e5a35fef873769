// Python arguments -> PeakParams -> the measurement of a CPU's arithmetic.
#include "bindings/view.h"
#include "cpu/dispatch.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

int64_t cpu_peak(const std::string& dtype, int64_t rounds, int num_threads) {
  require(rounds > 0 && num_threads > 0, "peak: rounds and num_threads must be positive");
  PeakParams params;
  params.dtype = element_type(dtype);
  params.rounds = rounds;
  params.num_threads = num_threads;
  const py::gil_scoped_release release;
  return cpu::peak(params);
}

}  // namespace

void register_peak(py::module_& m) { m.def("cpu_peak", &cpu_peak); }

}  // namespace fastattn::bindings
