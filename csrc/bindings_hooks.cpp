// Python's view of the llama.cpp hooks.
#include <pybind11/stl.h>

#include "bindings.h"
#include "llama_hooks.h"

namespace megart {
namespace {

std::unique_ptr<llama::EvalHook> make_hook(const llama::Addresses& addresses) {
    std::unique_ptr<llama::EvalHook> hook;
    raise_unless_ok(llama::EvalHook::make(addresses, hook));
    return hook;
}

// The decoding thread may hold the hook's lock and wait for a device: never wait with the GIL.
void py_watch(llama::EvalHook& hook, const std::vector<std::string>& names, bool stop) {
    raise_unless_ok(without_gil([&] { return hook.watch(names, stop); }));
}

py::list py_take(llama::EvalHook& hook) {
    std::vector<llama::Rows> all;
    raise_unless_ok(without_gil([&] { return hook.take(all); }));
    py::list result;
    for (llama::Rows& rows : all)
        result.append(to_array(std::move(rows.values), {rows.count, rows.width}));
    return result;
}

py::list py_found(llama::EvalHook& hook) {
    const std::vector<llama::Found> all = without_gil([&] { return hook.found(); });
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

void py_tensor_set(const llama::Addresses& addresses, std::uintptr_t address, py::handle object) {
    llama::Functions fns{};
    raise_unless_ok(llama::resolve(addresses, fns));
    const Checked source = checked(object, {"array"}, Accept::slot, kAnyDims);
    const py::array& array = source.array;
    const void* data = array.data();
    const auto bytes = static_cast<std::size_t>(array.nbytes());
    raise_unless_ok(
        without_gil([&] { return llama::write_tensor(fns, address, source.type, data, bytes); }));
}

py::array py_host_array(std::uintptr_t address, const std::vector<py::ssize_t>& shape,
                        const py::object& dtype) {
    const py::dtype wanted = py::dtype::from_args(dtype);
    Type blocks{};
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

void bind_hooks(py::module_& m) {
    using py::arg;
    py::list names;
    for (const std::string& name : llama::function_names()) names.append(name);
    m.attr("HOOK_FUNCTIONS") = py::tuple(names);
    m.def("tensor_set", py_tensor_set, arg("fns"), arg("address"), arg("array"));
    m.def("host_array", py_host_array, arg("address"), arg("shape"), arg("dtype"));

    py::class_<llama::EvalHook>(m, "EvalHook")
        .def(py::init(&make_hook), arg("fns"))
        .def_property_readonly(
            "callback",
            [](const llama::EvalHook&) {
                return reinterpret_cast<std::uintptr_t>(&llama::EvalHook::callback);
            })
        .def_property_readonly(
            "user_data",
            [](const llama::EvalHook& hook) { return reinterpret_cast<std::uintptr_t>(&hook); })
        .def("watch", py_watch, arg("names"), arg("stop") = false)
        .def("take", py_take)
        .def(
            "discover",
            [](llama::EvalHook& hook, bool on) { without_gil([&] { hook.discover(on); }); },
            arg("on") = true)
        .def("found", py_found);
}

}  // namespace megart
