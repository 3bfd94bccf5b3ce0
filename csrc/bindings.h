// Python's view of the core. Only these files know Python objects: checks of type and layout, the GIL, errors.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simd.h"
#include "status.h"

namespace megart {

namespace py = pybind11;

void bind_gate(py::module_& m);
void bind_hooks(py::module_& m);
void bind_lexicon(py::module_& m);
void bind_mix(py::module_& m);

void raise_unless_ok(const Status& status);

// Raises a TypeError.
[[noreturn]] void refuse(const std::string& what, const std::string& got,
                         const std::string& expected, const std::string& remedy);

std::string type_name(py::handle object);

template <class Body>
auto without_gil(const Body& body) {
    const py::gil_scoped_release release;
    return body();
}

enum class Accept { f32, f32_or_f16, slot, factor };
constexpr int kAnyDims = -1;

const char* accepted(Accept accept);

// The name of an argument, spelt out only when a message needs it: a, a[3], a[3][1].
struct Label {
    const char* name = "";
    std::ptrdiff_t i = -1, j = -1;

    std::string text() const {
        std::string result = name;
        for (const std::ptrdiff_t n : {i, j})
            if (n >= 0) result += "[" + std::to_string(n) + "]";
        return result;
    }
    Label at(std::size_t n) const {
        const auto index = static_cast<std::ptrdiff_t>(n);
        return i < 0 ? Label{name, index, -1} : Label{name, i, index};
    }
};

struct Checked {
    py::array array;
    Type type = Type::f32;
};

// Whether elements are ggml's blocks: a scale `d` and the values `qs`, without gaps (see quant.py).
bool is_blocks(const py::dtype& dtype, Type& type);

bool takes(Accept accept, Type blocks);

// Values of a row for each item of the array.
inline std::size_t per_item(Type type) { return is_plain(type) ? 1 : kBlock; }

// An array as it is: of the right type and layout, or an error; never a copy.
Checked checked(py::handle object, const Label& what, Accept accept, int dims,
                bool writable = false);

inline std::size_t extent(const py::array& array, int dim) {
    return static_cast<std::size_t>(array.shape(dim));
}

template <class T>
py::array_t<T> to_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    auto owner = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owner->data();
    if (owner->empty()) return py::array_t<T>(shape);
    const py::capsule base(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
    owner.release();
    return py::array_t<T>(std::move(shape), data, base);
}

}  // namespace megart
