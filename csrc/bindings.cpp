// The only file that knows Python objects: checks of type and layout, the GIL, errors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <new>

#include "bindings_lexicon.h"
#include "gate.h"
#include "llama_hooks.h"
#include "mix.h"
#include "simd.h"
#include "status.h"

namespace py = pybind11;

namespace megart {
namespace {

void raise_unless_ok(const Status& status) {
    const std::string& text = status.message;
    switch (status.code) {
        case Code::ok: return;
        case Code::value_error: throw py::value_error(text);
        case Code::type_error: throw py::type_error(text);
        case Code::memory_error: throw std::bad_alloc();
        case Code::runtime_error: throw std::runtime_error(text);
    }
}

[[noreturn]] void refuse(const std::string& what, const std::string& got,
                         const std::string& expected, const std::string& remedy) {
    throw py::type_error(explain(what, got, expected, remedy));
}

std::string type_name(py::handle object) {
    return py::str(py::type::handle_of(object).attr("__name__"));
}

enum class Accept { f32, f32_or_f16, slot, factor, key };
constexpr int kAnyDims = -1;

const char* accepted(Accept accept) {
    switch (accept) {
        case Accept::f32: return "float32";
        case Accept::f32_or_f16: return "float32 or float16";
        case Accept::slot: return "float32 or float16, or blocks of q8_0";
        case Accept::factor: return "float32 or float16, or blocks of q8_0 or q4_0";
        case Accept::key: return "float32 or float16, or int8";
    }
    return "";
}

// The name of an argument, spelt out only when a message needs it: a, a[3], a[3][1].
struct Label {
    const char* name;
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
    Type type;
};

// Whether elements are ggml's blocks: a scale `d` and the values `qs`, without gaps (see quant.py).
bool is_blocks(const py::dtype& dtype, Type& type) {
    if (dtype.kind() != 'V' || !dtype.has_fields()) return false;
    const auto bytes = static_cast<std::size_t>(dtype.itemsize());
    if (bytes != kQ8Bytes && bytes != kQ4Bytes) return false;
    const py::object names = py::make_tuple("d", "qs");
    if (!names.equal(dtype.attr("names"))) return false;
    type = bytes == kQ8Bytes ? Type::q8_0 : Type::q4_0;
    return true;
}

bool takes(Accept accept, Type blocks) {
    return accept == Accept::factor || (accept == Accept::slot && blocks == Type::q8_0);
}

// Values of a row for each item of the array.
std::size_t per_item(Type type) { return is_plain(type) ? 1 : kBlock; }

// An array as it is: of the right type and layout, or an error; never a copy.
Checked checked(py::handle object, const Label& what, Accept accept, int dims,
                bool writable = false) {
    if (!py::isinstance<py::array>(object))
        refuse(what.text(), type_name(object), "a numpy.ndarray", "pass numpy.asarray(...)");
    Checked result{py::reinterpret_borrow<py::array>(object), Type::f32};
    const py::array& array = result.array;
    const py::dtype dtype = array.dtype();
    const bool half = dtype.itemsize() == 2 && accept != Accept::f32;
    if (is_blocks(dtype, result.type) && takes(accept, result.type)) {
        // a type that only factors may have
    } else if (accept == Accept::key && dtype.kind() == 'i' && dtype.itemsize() == 1) {
        // whole numbers, which come with scales
    } else if (dtype.kind() != 'f' || dtype.byteorder() != '=' || !(half || dtype.itemsize() == 4)) {
        refuse(what.text(), py::str(static_cast<py::handle>(dtype)), accepted(accept),
               "convert it with .astype(numpy.float32)");
    } else if (half) {
        result.type = Type::f16;
    }
    if (dims != kAnyDims && array.ndim() != dims)
        throw py::value_error(explain(what.text(), std::to_string(array.ndim()) + " dimensions",
                                      std::to_string(dims), "reshape it"));
    const int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & wanted) != wanted)
        refuse(what.text(), "an array that is not C-contiguous and aligned",
               "rows one after the other without gaps", "pass numpy.ascontiguousarray(...)");
    if (writable && !array.writeable())
        refuse(what.text(), "a read-only array", "a writable one", "pass a copy");
    return result;
}

std::size_t extent(const py::array& array, int dim) {
    return static_cast<std::size_t>(array.shape(dim));
}

template <class T>
py::array_t<T> to_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    auto owner = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owner->data();
    if (owner->empty()) return py::array_t<T>(shape);
    py::capsule base(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
    owner.release();
    return py::array_t<T>(std::move(shape), data, base);
}

// ---- gate

struct GateInput {
    py::array query, keys, scales;
    const float* data;
    std::size_t width;
    Keys view;
};

GateInput gate_input(py::handle query, py::handle keys, py::handle scales) {
    GateInput in;
    in.query = checked(query, {"query"}, Accept::f32, 1).array;
    const Checked all = checked(keys, {"keys"}, Accept::key, 2);
    const bool whole = all.array.itemsize() == 1;
    in.keys = all.array;
    in.data = static_cast<const float*>(in.query.data());
    in.width = extent(in.query, 0);
    const KeyType type = whole ? KeyType::i8 : all.type == Type::f32 ? KeyType::f32 : KeyType::f16;
    in.view = {in.keys.data(), type, extent(in.keys, 0), extent(in.keys, 1), nullptr};
    if (!whole && !scales.is_none())
        refuse("scales", type_name(scales), "None beside keys that are not int8", "pass int8 keys, or no scales");
    if (!whole) return in;
    in.scales = checked(scales, {"scales"}, Accept::f32, 1).array;
    in.view.scales = static_cast<const float*>(in.scales.data());
    if (extent(in.scales, 0) != in.view.count)
        throw py::value_error(explain("scales", std::to_string(extent(in.scales, 0)) + " values",
                                      std::to_string(in.view.count) + ", one per key", "pass one scale per row"));
    return in;
}

py::array_t<float> py_scores(py::object query, py::object keys, int threads, py::object scales) {
    const GateInput in = gate_input(query, keys, scales);
    py::array_t<float> out(static_cast<py::ssize_t>(in.view.count));
    float* target = out.mutable_data();
    Status status;
    {
        py::gil_scoped_release release;
        status = scores(in.data, in.width, in.view, threads, target);
    }
    raise_unless_ok(status);
    return out;
}

py::tuple py_gate(py::object query, py::object keys, std::int64_t k, double beta, int threads,
                  py::object scales) {
    const GateInput in = gate_input(query, keys, scales);
    Opened opened;
    Status status;
    {
        py::gil_scoped_release release;
        status = gate(in.data, in.width, in.view, k, beta, threads, opened);
    }
    raise_unless_ok(status);
    const auto n = static_cast<py::ssize_t>(opened.indices.size());
    return py::make_tuple(to_array(std::move(opened.indices), {n}),
                          to_array(std::move(opened.scores), {n}),
                          to_array(std::move(opened.weights), {n}));
}

// ---- mix

// The arrays are kept here: another thread may empty the caller's lists while the GIL is free.
using Kept = std::vector<py::array>;

std::vector<Matrix> factors(Kept& kept, py::handle list, const Label& what) {
    if (!py::isinstance<py::list>(list) && !py::isinstance<py::tuple>(list))
        refuse(what.text(), type_name(list), "a list of arrays", "pass one array per adapter");
    std::vector<Matrix> result;
    for (py::handle item : py::reinterpret_borrow<py::sequence>(list)) {
        Checked m = checked(item, what.at(result.size()), Accept::factor, 2);
        const std::size_t cols = extent(m.array, 1) * per_item(m.type);
        result.push_back({m.array.data(), m.type, extent(m.array, 0), cols});
        kept.push_back(std::move(m.array));
    }
    return result;
}

OutMatrix output(Kept& kept, py::handle object, const Label& what, Accept accept) {
    Checked m = checked(object, what, accept, 2, true);
    const OutMatrix out{m.array.mutable_data(), m.type, extent(m.array, 0),
                        extent(m.array, 1) * per_item(m.type)};
    kept.push_back(std::move(m.array));
    return out;
}

// Runs body(tasks, gates, count) without the GIL.
template <class Body>
void run(const std::vector<MixTask>& tasks, const py::array& gates, const Body& body) {
    const auto* values = static_cast<const float*>(gates.data());
    const std::size_t count = extent(gates, 0);
    Status status;
    {
        py::gil_scoped_release release;
        status = body(tasks, values, count);
    }
    raise_unless_ok(status);
}

void run_mix(const std::vector<MixTask>& tasks, const py::array& gates, int threads) {
    run(tasks, gates, [threads](const auto& all, const float* values, std::size_t count) {
        return mix_all(all, values, count, threads);
    });
}

void py_mix(py::object a, py::object b, py::object gates, py::object out_a, py::object out_b) {
    Kept kept;
    const py::array weights = checked(gates, {"gates"}, Accept::f32, 1).array;
    std::vector<MixTask> tasks(1);
    tasks[0].a = factors(kept, a, {"a"});
    tasks[0].b = factors(kept, b, {"b"});
    tasks[0].out_a = output(kept, out_a, {"out_a"}, Accept::slot);
    tasks[0].out_b = output(kept, out_b, {"out_b"}, Accept::slot);
    run_mix(tasks, weights, 1);
}

py::sequence sequence_of(py::handle object, const char* what) {
    if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object))
        refuse(what, type_name(object), "a list", "pass one item per matrix");
    return py::reinterpret_borrow<py::sequence>(object);
}

std::vector<MixTask> tasks_of(Kept& kept, py::handle a, py::handle b, py::handle out_a,
                              py::handle out_b, Accept accept) {
    const py::sequence as = sequence_of(a, "a"), bs = sequence_of(b, "b"),
                       out_as = sequence_of(out_a, "out_a"), out_bs = sequence_of(out_b, "out_b");
    const std::size_t n = out_as.size();
    if (as.size() != n || bs.size() != n || out_bs.size() != n)
        throw py::value_error(explain(
            "a, b, out_a and out_b",
            std::to_string(as.size()) + ", " + std::to_string(bs.size()) + ", " +
                std::to_string(n) + " and " + std::to_string(out_bs.size()) + " items",
            "the same number", "pass one item per matrix in each"));
    std::vector<MixTask> tasks(n);
    for (std::size_t i = 0; i < n; ++i) {
        const py::object ai = as[i], bi = bs[i], out_ai = out_as[i], out_bi = out_bs[i];
        tasks[i].label = "[" + std::to_string(i) + "]";
        tasks[i].a = factors(kept, ai, Label{"a"}.at(i));
        tasks[i].b = factors(kept, bi, Label{"b"}.at(i));
        tasks[i].out_a = output(kept, out_ai, Label{"out_a"}.at(i), accept);
        tasks[i].out_b = output(kept, out_bi, Label{"out_b"}.at(i), accept);
    }
    return tasks;
}

void py_mix_all(py::object a, py::object b, py::object gates, py::object out_a, py::object out_b,
                int threads) {
    Kept kept;
    const py::array weights = checked(gates, {"gates"}, Accept::f32, 1).array;
    run_mix(tasks_of(kept, a, b, out_a, out_b, Accept::slot), weights, threads);
}

// ---- llama.cpp

llama::Functions resolved(const llama::Addresses& addresses) {
    llama::Functions fns{};
    raise_unless_ok(llama::resolve(addresses, fns));
    return fns;
}

void py_check_layout(const llama::Addresses& addresses) {
    std::int32_t op = 0;
    raise_unless_ok(llama::check_layout(resolved(addresses), op));
}

std::unique_ptr<llama::EvalHook> make_hook(const llama::Addresses& addresses) {
    llama::EvalHook* hook = nullptr;
    raise_unless_ok(llama::EvalHook::make(addresses, hook));
    return std::unique_ptr<llama::EvalHook>(hook);
}

// The decoding thread may hold the hook's lock and wait for a device: never wait with the GIL.
void py_watch(llama::EvalHook& hook, const std::string& name, bool stop) {
    Status status;
    {
        py::gil_scoped_release release;
        status = hook.watch(name, stop);
    }
    raise_unless_ok(status);
}

py::array_t<float> py_take(llama::EvalHook& hook) {
    llama::Rows rows;
    Status status;
    {
        py::gil_scoped_release release;
        status = hook.take(rows);
    }
    raise_unless_ok(status);
    return to_array(std::move(rows.values), {rows.count, rows.width});
}

py::list py_found(llama::EvalHook& hook) {
    std::vector<llama::Found> all;
    {
        py::gil_scoped_release release;
        all = hook.found();
    }
    py::list result;
    for (const llama::Found& f : all) {
        py::dict item;
        item["name"] = f.name;
        item["address"] = f.address;
        item["data"] = f.data;
        item["type"] = f.type;
        item["ne"] = py::make_tuple(f.ne[0], f.ne[1], f.ne[2], f.ne[3]);
        item["nb"] = py::make_tuple(f.nb[0], f.nb[1], f.nb[2], f.nb[3]);
        item["nbytes"] = f.nbytes;
        item["is_host"] = f.is_host;
        result.append(item);
    }
    return result;
}

void py_tensor_set(const llama::Addresses& addresses, std::uintptr_t address, py::object object) {
    const llama::Functions fns = resolved(addresses);
    const Checked source = checked(object, {"array"}, Accept::slot, kAnyDims);
    const py::array& array = source.array;
    const Type type = source.type;
    const void* data = array.data();
    const auto bytes = static_cast<std::size_t>(array.nbytes());
    Status status;
    {
        py::gil_scoped_release release;
        status = llama::write_tensor(fns, address, type, data, bytes);
    }
    raise_unless_ok(status);
}

py::array empty_of(Type type, std::int64_t rows, std::int64_t cols) {
    if (is_plain(type))
        return py::array(py::dtype(name_of(type)), std::vector<py::ssize_t>{rows, cols});
    py::list fields;  // as Q8_0 in quant.py
    fields.append(py::make_tuple("d", "<f2"));
    fields.append(py::make_tuple("qs", "i1", py::make_tuple(kBlock)));
    const auto blocks = static_cast<py::ssize_t>(cols / static_cast<std::int64_t>(kBlock));
    return py::array(py::dtype::from_args(fields), std::vector<py::ssize_t>{rows, blocks});
}

py::array py_tensor_get(const llama::Addresses& addresses, std::uintptr_t address) {
    const llama::Functions fns = resolved(addresses);
    llama::Shape2 shape{};
    raise_unless_ok(llama::describe_tensor(fns, address, shape));
    py::array out = empty_of(shape.type, shape.rows, shape.cols);
    void* data = out.mutable_data();
    const auto bytes = static_cast<std::size_t>(out.nbytes());
    Status status;
    {
        py::gil_scoped_release release;
        status = llama::read_tensor(fns, address, data, bytes);
    }
    raise_unless_ok(status);
    return out;
}

py::array py_host_array(std::uintptr_t address, const std::vector<py::ssize_t>& shape,
                        py::object dtype) {
    const py::dtype wanted = py::dtype::from_args(dtype);
    Type blocks;
    const bool known = is_blocks(wanted, blocks)
                           ? takes(Accept::slot, blocks)
                           : wanted.kind() == 'f' &&
                                 (wanted.itemsize() == 2 || wanted.itemsize() == 4) &&
                                 wanted.attr("isnative").cast<bool>();
    if (!known)
        refuse("dtype", py::str(wanted), accepted(Accept::slot), "pass the type of the tensor");
    if (address == 0 || address % static_cast<std::size_t>(wanted.alignment()) != 0)
        throw py::value_error(explain("address", std::to_string(address),
                                      "the aligned address of host memory",
                                      "take data from EvalHook.found() where is_host is true"));
    for (const py::ssize_t n : shape)
        if (n < 0)
            throw py::value_error(explain("shape", std::to_string(n), "lengths of 0 or more",
                                          "take ne from EvalHook.found()"));
    // Any base object at all keeps NumPy from copying; this one owns nothing.
    return py::array(wanted, shape, reinterpret_cast<void*>(address), py::none());
}

}  // namespace
}  // namespace megart

PYBIND11_MODULE(_core, m) {
    using namespace megart;
    using py::arg;
    m.doc() = "Gate, mix and llama.cpp hooks of megart. NumPy arrays in and out, no hidden "
              "copies, the GIL released. Signatures and errors: _core.pyi.";

    bind_lexicon(m);
    m.def("scores", py_scores, arg("query"), arg("keys"), arg("threads") = 1,
          arg("scales") = py::none());
    m.def("gate", py_gate, arg("query"), arg("keys"), arg("k"), arg("beta") = 1.0,
          arg("threads") = 1, arg("scales") = py::none());
    m.def("mix", py_mix, arg("a"), arg("b"), arg("gates"), arg("out_a"), arg("out_b"));
    m.def("mix_all", py_mix_all, arg("a"), arg("b"), arg("gates"), arg("out_a"), arg("out_b"),
          arg("threads") = 1);


    m.def("simd", [] { return std::string(simd::kernels().name); });
    m.def("simd_levels", simd::levels);
    m.def(
        "use_simd",
        [](const std::string& name) {
            if (!simd::use_level(name))
                throw py::value_error(explain("name", name, "one of simd_levels()",
                                              "choose a level that this processor has"));
        },
        arg("name"));

    py::list names;
    for (const std::string& name : llama::function_names()) names.append(name);
    m.attr("HOOK_FUNCTIONS") = py::tuple(names);
    m.def("check_layout", py_check_layout, arg("fns"));
    m.def("tensor_set", py_tensor_set, arg("fns"), arg("address"), arg("array"));
    m.def("tensor_get", py_tensor_get, arg("fns"), arg("address"));
    m.def("host_array", py_host_array, arg("address"), arg("shape"), arg("dtype"));

    py::class_<llama::EvalHook>(m, "EvalHook")
        .def(py::init(&make_hook), arg("fns"))
        .def_property_readonly("callback",
                               [](const llama::EvalHook&) {
                                   return reinterpret_cast<std::uintptr_t>(
                                       &llama::EvalHook::callback);
                               })
        .def_property_readonly(
            "user_data",
            [](const llama::EvalHook& hook) { return reinterpret_cast<std::uintptr_t>(&hook); })
        .def("watch", py_watch, arg("name"), arg("stop") = false)
        .def("take", py_take)
        .def(
            "discover",
            [](llama::EvalHook& hook, bool on) {
                py::gil_scoped_release release;
                hook.discover(on);
            },
            arg("on") = true)
        .def("found", py_found);
}
