// Python's view of the mix: lists of arrays in, arrays of the caller filled.
#include "bindings.h"
#include "mix.h"

namespace megart {
namespace {

// The arrays are kept here: another thread may empty the caller's lists while the GIL is free.
using Kept = std::vector<py::array>;

std::vector<Matrix> factors(Kept& kept, py::handle list, const Label& what) {
    if (!py::isinstance<py::list>(list) && !py::isinstance<py::tuple>(list))
        refuse(what.text(), type_name(list), "a list of arrays", "pass one array per adapter");
    std::vector<Matrix> result;
    for (const py::handle item : py::reinterpret_borrow<py::sequence>(list)) {
        Checked m = checked(item, what.at(result.size()), Accept::factor, 2);
        const std::size_t cols = extent(m.array, 1) * per_item(m.type);
        result.push_back({m.array.data(), m.type, extent(m.array, 0), cols});
        kept.push_back(std::move(m.array));
    }
    return result;
}

OutMatrix output(Kept& kept, py::handle object, const Label& what) {
    Checked m = checked(object, what, Accept::slot, 2, true);
    const OutMatrix out{m.array.mutable_data(), m.type, extent(m.array, 0),
                        extent(m.array, 1) * per_item(m.type)};
    kept.push_back(std::move(m.array));
    return out;
}

py::sequence sequence_of(py::handle object, const char* what) {
    if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object))
        refuse(what, type_name(object), "a list", "pass one item per matrix");
    return py::reinterpret_borrow<py::sequence>(object);
}

std::vector<MixTask> tasks_of(Kept& kept, py::handle a, py::handle b, py::handle out_a,
                              py::handle out_b) {
    const py::sequence as = sequence_of(a, "a"), bs = sequence_of(b, "b"),
                       out_as = sequence_of(out_a, "out_a"), out_bs = sequence_of(out_b, "out_b");
    const std::size_t n = out_as.size();
    if (as.size() != n || bs.size() != n || out_bs.size() != n)
        throw py::value_error(explain("a, b, out_a and out_b",
                                      std::to_string(as.size()) + ", " + std::to_string(bs.size()) +
                                          ", " + std::to_string(n) + " and " +
                                          std::to_string(out_bs.size()) + " items",
                                      "the same number", "pass one item per matrix in each"));
    std::vector<MixTask> tasks(n);
    for (std::size_t i = 0; i < n; ++i) {
        const py::object ai = as[i], bi = bs[i], out_ai = out_as[i], out_bi = out_bs[i];
        tasks[i].label = "[" + std::to_string(i) + "]";
        tasks[i].a = factors(kept, ai, Label{"a"}.at(i));
        tasks[i].b = factors(kept, bi, Label{"b"}.at(i));
        tasks[i].out_a = output(kept, out_ai, Label{"out_a"}.at(i));
        tasks[i].out_b = output(kept, out_bi, Label{"out_b"}.at(i));
    }
    return tasks;
}

void py_mix_all(py::handle a, py::handle b, py::handle gates, py::handle out_a, py::handle out_b,
                int threads) {
    Kept kept;
    const py::array weights = checked(gates, {"gates"}, Accept::f32, 1).array;
    const std::vector<MixTask> tasks = tasks_of(kept, a, b, out_a, out_b);
    const auto* values = static_cast<const float*>(weights.data());
    const std::size_t count = extent(weights, 0);
    raise_unless_ok(without_gil([&] { return mix_all(tasks, values, count, threads); }));
}

}  // namespace

void bind_mix(py::module_& m) {
    using py::arg;
    m.def("mix_all", py_mix_all, arg("a"), arg("b"), arg("gates"), arg("out_a"), arg("out_b"),
          arg("threads") = 1);
}

}  // namespace megart
