#pragma once

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace megart {

void bind_lexicon(py::module_& m);

}  // namespace megart
