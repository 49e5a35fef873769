// How a tensor comes from Python: as its pointer, sizes and strides.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/params.h"

namespace fastattn::bindings {

// Strides are in elements.
using View = std::tuple<uintptr_t, std::vector<int64_t>, std::vector<int64_t>>;
using OptionalView = std::optional<View>;

inline void* pointer(const View& view) { return reinterpret_cast<void*>(std::get<0>(view)); }
inline const std::vector<int64_t>& sizes(const View& view) { return std::get<1>(view); }
inline const std::vector<int64_t>& strides(const View& view) { return std::get<2>(view); }

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// The seed of a CPU's kernel is a number, that of a GPU's kernel a tensor of one int64 there.
template <class Params>
void set_seed(Params& params, uint64_t seed) {
  params.seed = seed;
}
template <class Params>
void set_seed(Params& params, const OptionalView& seed) {
  params.seed_ptr = seed.has_value() ? static_cast<const int64_t*>(pointer(*seed)) : nullptr;
}

inline ElementType element_type(const std::string& name) {
  if (name == "float32") return ElementType::kFloat32;
  if (name == "float64") return ElementType::kFloat64;
  if (name == "float16") return ElementType::kFloat16;
  if (name == "bfloat16") return ElementType::kBFloat16;
  throw std::invalid_argument("fastattn: dtype must be a floating-point type; got " + name);
}

}  // namespace fastattn::bindings
