// The Python module fastattn._emulated: the CUDA kernels on a CPU, and the controls of the
// emulator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings/cuda.h"
#include "emulator/control.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

emulator::Schedule schedule_of(const std::string& name) {
  if (name == "random") return emulator::Schedule::kRandom;
  if (name == "in-order") return emulator::Schedule::kInOrder;
  if (name == "reverse") return emulator::Schedule::kReverse;
  throw std::invalid_argument("emulator: schedule must be random, in-order or reverse; got " +
                              name);
}

// Options that are not named have their defaults.
void set_options(const py::kwargs& named) {
  emulator::Options options;
  for (const auto& [key, value] : named) {
    const auto name = key.cast<std::string>();
    if (name == "seed") {
      options.seed = value.cast<uint64_t>();
    } else if (name == "threads") {
      options.threads = value.cast<int>();
    } else if (name == "schedule") {
      options.schedule = schedule_of(value.cast<std::string>());
    } else if (name == "compute_capability") {
      options.compute_capability = value.cast<int>();
    } else if (name == "check_races") {
      options.check_races = value.cast<bool>();
    } else if (name == "check_uninitialised") {
      options.check_uninitialised = value.cast<bool>();
    } else if (name == "defer_copies") {
      options.defer_copies = value.cast<bool>();
    } else if (name == "count_conflicts") {
      options.count_conflicts = value.cast<bool>();
    } else if (name == "stack_bytes") {
      options.stack_bytes = value.cast<size_t>();
    } else {
      throw std::invalid_argument("emulator: there is no option " + name);
    }
  }
  emulator::set_options(options);
}

py::dict counters() {
  const emulator::Counters counts = emulator::counters();
  py::dict named;
  named["launches"] = counts.launches;
  named["blocks"] = counts.blocks;
  named["mma"] = counts.mma;
  named["wgmma"] = counts.wgmma;
  named["ldmatrix"] = counts.ldmatrix;
  named["ldmatrix_conflicts"] = counts.ldmatrix_conflicts;
  named["lds"] = counts.lds;
  named["lds_conflicts"] = counts.lds_conflicts;
  named["sts"] = counts.sts;
  named["sts_conflicts"] = counts.sts_conflicts;
  named["shuffles"] = counts.shuffles;
  named["sync_threads"] = counts.sync_threads;
  named["named_barriers"] = counts.named_barriers;
  named["sync_warps"] = counts.sync_warps;
  named["mbarrier_arrivals"] = counts.mbarrier_arrivals;
  named["cp_async"] = counts.cp_async;
  named["bytes_loaded"] = counts.bytes_loaded;
  named["bytes_stored"] = counts.bytes_stored;
  named["switches"] = counts.switches;
  return named;
}

}  // namespace
}  // namespace fastattn::bindings

PYBIND11_MODULE(_emulated, m) {
  using namespace fastattn;
  m.doc() = "The CUDA kernels of fastattn on a CPU, for tests; fastattn.backends calls them.";
  m.attr("__version__") = FASTATTN_VERSION;
  pybind11::register_exception<emulator::Finding>(m, "Finding", PyExc_AssertionError);
  m.def("set_options", &bindings::set_options);
  m.def("compute_capability", [] { return emulator::options().compute_capability; });
  m.def("counters", &bindings::counters);
  m.def("reset_counters", &emulator::reset_counters);
  m.def("conflict_sites", &emulator::conflict_sites);
  bindings::register_cuda_attention(m);
  bindings::register_cuda_hidden(m);
}
