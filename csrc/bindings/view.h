// How a tensor comes from Python: as its pointer, sizes and strides.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/params.h"

namespace fastattn::bindings {

// One number for each dimension: a std::vector that takes no memory from the heap.
class Extents {
 public:
  static constexpr size_t kMaxDims = 4;

  Extents() = default;
  Extents(std::initializer_list<int64_t> values) {
    for (const int64_t value : values) push_back(value);
  }

  void push_back(int64_t value) { values_.at(size_++) = value; }
  size_t size() const { return size_; }
  int64_t operator[](size_t dim) const { return values_[dim]; }
  int64_t back() const { return values_[size_ - 1]; }
  void swap(size_t dim, size_t other) { std::swap(values_.at(dim), values_.at(other)); }
  const int64_t* begin() const { return values_.data(); }
  const int64_t* end() const { return values_.data() + size_; }
  bool operator==(const Extents& other) const {
    return std::equal(begin(), end(), other.begin(), other.end());
  }

 private:
  std::array<int64_t, kMaxDims> values_{};
  size_t size_ = 0;
};

struct View {
  void* data = nullptr;
  Extents sizes;
  Extents strides;  // in elements
};
using OptionalView = std::optional<View>;

inline void* pointer(const View& view) { return view.data; }
inline const Extents& sizes(const View& view) { return view.sizes; }
inline const Extents& strides(const View& view) { return view.strides; }

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

// Reads a tuple of ints; false for anything else.
inline bool load_extents(PyObject* source, Extents& extents) {
  if (!PyTuple_Check(source)) return false;
  const Py_ssize_t dims = PyTuple_GET_SIZE(source);
  if (dims > static_cast<Py_ssize_t>(Extents::kMaxDims)) return false;
  extents = {};
  for (Py_ssize_t dim = 0; dim < dims; ++dim) {
    const int64_t value = PyLong_AsLongLong(PyTuple_GET_ITEM(source, dim));
    if (value == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    extents.push_back(value);
  }
  return true;
}

}  // namespace fastattn::bindings

// (pointer, sizes, strides) -> View. pybind11's own conversion to vectors takes 0.2 us a tensor,
// and a backward pass has ten.
template <>
struct pybind11::detail::type_caster<fastattn::bindings::View> {
  PYBIND11_TYPE_CASTER(fastattn::bindings::View, const_name("tuple[int, tuple, tuple]"));

  bool load(handle source, bool /*convert*/) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 3) return false;
    value.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 0));
    if (value.data == nullptr && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    return fastattn::bindings::load_extents(PyTuple_GET_ITEM(source.ptr(), 1), value.sizes) &&
           fastattn::bindings::load_extents(PyTuple_GET_ITEM(source.ptr(), 2), value.strides) &&
           value.sizes.size() == value.strides.size();
  }
};
