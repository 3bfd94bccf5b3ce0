// Python's view of the gate: scores and the best keys.
#include "bindings.h"
#include "gate.h"

namespace megart {
namespace {

struct GateInput {
    py::array query, keys;
    Keys view;

    GateInput(py::handle query_object, py::handle keys_object)
        : query(checked(query_object, {"query"}, Accept::f32, 1).array) {
        const Checked all = checked(keys_object, {"keys"}, Accept::f32_or_f16, 2);
        keys = all.array;
        view = {keys.data(), all.type, extent(keys, 0), extent(keys, 1)};
    }
    const float* data() const { return static_cast<const float*>(query.data()); }
    std::size_t width() const { return extent(query, 0); }
};

py::array_t<float> py_scores(py::handle query, py::handle keys, int threads) {
    const GateInput in(query, keys);
    py::array_t<float> out(static_cast<py::ssize_t>(in.view.count));
    float* target = out.mutable_data();
    raise_unless_ok(
        without_gil([&] { return scores(in.data(), in.width(), in.view, threads, target); }));
    return out;
}

py::tuple py_gate(py::handle query, py::handle keys, std::int64_t k, double beta, int threads) {
    const GateInput in(query, keys);
    Opened opened;
    raise_unless_ok(without_gil(
        [&] { return gate(in.data(), in.width(), in.view, k, beta, threads, opened); }));
    const auto n = static_cast<py::ssize_t>(opened.indices.size());
    return py::make_tuple(to_array(std::move(opened.indices), {n}),
                          to_array(std::move(opened.scores), {n}),
                          to_array(std::move(opened.weights), {n}));
}

}  // namespace

void bind_gate(py::module_& m) {
    using py::arg;
    m.def("scores", py_scores, arg("query"), arg("keys"), arg("threads") = 1);
    m.def("gate", py_gate, arg("query"), arg("keys"), arg("k"), arg("beta") = 1.0,
          arg("threads") = 1);
}

}  // namespace megart
