// The CPU kernels of attention, and the choice of their instruction set.
#include "bindings/attention.h"
#include "cpu/dispatch.h"

namespace fastattn::bindings {
namespace {

namespace py = pybind11;

void cpu_attention_fwd(const std::string& dtype, const View& out, const View& lse, const View& q,
                       const View& k, const View& v, const Options<uint64_t>& options,
                       bool heads_first) {
  const auto rows = [=](const View& view) { return heads_second(view, heads_first); };
  const AttentionParams params =
      fwd_params(dtype, rows(out), lse, rows(q), rows(k), rows(v), options);
  const py::gil_scoped_release release;
  cpu::attention_fwd(params);
}

void cpu_attention_bwd(const std::string& dtype, const View& dq, const View& dk, const View& dv,
                       const OptionalView& dbias, const View& dout, const OptionalView& dlse,
                       const View& q, const View& k, const View& v, const View& out,
                       const View& lse, const Options<uint64_t>& options, bool heads_first) {
  const auto rows = [=](const View& view) { return heads_second(view, heads_first); };
  const AttentionBwdParams params =
      bwd_params(dtype, rows(dq), rows(dk), rows(dv), dbias, rows(dout), dlse, rows(q), rows(k),
                 rows(v), rows(out), lse, options);
  const py::gil_scoped_release release;
  cpu::attention_bwd(params);
}

}  // namespace

void register_cpu(py::module_& m) {
  m.def("cpu_attention_fwd", &cpu_attention_fwd);
  m.def("cpu_attention_bwd", &cpu_attention_bwd);
  m.def("cpu_instruction_sets", &cpu::instruction_sets);
  m.def("cpu_instruction_set", &cpu::instruction_set);
  m.def("cpu_set_instruction_set", &cpu::set_instruction_set);
}

}  // namespace fastattn::bindings
