// Python's view of the gate: scores.
#include "bindings.h"
#include "gate.h"

namespace megart {
namespace {

py::array_t<float> py_scores(py::handle query_object, py::handle keys_object, int threads) {
    const py::array query = checked(query_object, {"query"}, Accept::f32, 1).array;
    const Checked keys = checked(keys_object, {"keys"}, Accept::f32_or_f16, 2);
    const Keys view{keys.array.data(), keys.type, extent(keys.array, 0), extent(keys.array, 1)};
    py::array_t<float> out(static_cast<py::ssize_t>(view.count));
    const auto* values = static_cast<const float*>(query.data());
    const std::size_t width = extent(query, 0);
    float* target = out.mutable_data();
    raise_unless_ok(without_gil([&] { return scores(values, width, view, threads, target); }));
    return out;
}

}  // namespace

void bind_gate(py::module_& m) {
    using py::arg;
    m.def("scores", py_scores, arg("query"), arg("keys"), arg("threads") = 1);
}

}  // namespace megart
