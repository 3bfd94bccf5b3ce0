#include "bindings.h"

#include <pybind11/stl.h>

#include <new>
#include <stdexcept>

namespace megart {

void raise_unless_ok(const Status& status) {
    const std::string& text = status.message;
    switch (status.code) {
        case Code::ok: return;
        case Code::value_error: throw py::value_error(text);
        case Code::memory_error: throw std::bad_alloc();
        case Code::runtime_error: throw std::runtime_error(text);
    }
}

void refuse(const std::string& what, const std::string& got, const std::string& expected,
            const std::string& remedy) {
    throw py::type_error(explain(what, got, expected, remedy));
}

std::string type_name(py::handle object) {
    return py::str(py::type::handle_of(object).attr("__name__"));
}

const char* accepted(Accept accept) {
    switch (accept) {
        case Accept::f32: return "float32";
        case Accept::f32_or_f16: return "float32 or float16";
        case Accept::slot: return "float32 or float16, or blocks of q8_0";
        case Accept::factor: return "float32 or float16, or blocks of q8_0 or q4_0";
    }
    return "";
}

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

Checked checked(py::handle object, const Label& what, Accept accept, int dims, bool writable) {
    if (!py::isinstance<py::array>(object))
        refuse(what.text(), type_name(object), "a numpy.ndarray", "pass numpy.asarray(...)");
    Checked result{py::reinterpret_borrow<py::array>(object), Type::f32};
    const py::array& array = result.array;
    const py::dtype dtype = array.dtype();
    const bool half = dtype.itemsize() == 2 && accept != Accept::f32;
    if (is_blocks(dtype, result.type) && takes(accept, result.type)) {
        // a type that only factors may have
    } else if (dtype.kind() != 'f' || dtype.byteorder() != '=' ||
               !(half || dtype.itemsize() == 4)) {
        refuse(what.text(), py::str(static_cast<py::handle>(dtype)), accepted(accept),
               "convert it with .astype(numpy.float32)");
    } else if (half) {
        result.type = Type::f16;
    }
    if (dims != kAnyDims && array.ndim() != dims)
        throw py::value_error(explain(what.text(), std::to_string(array.ndim()) + " dimensions",
                                      std::to_string(dims), "reshape it"));
    using api = py::detail::npy_api;
    const int wanted = api::NPY_ARRAY_C_CONTIGUOUS_ | api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & wanted) != wanted)
        refuse(what.text(), "an array that is not C-contiguous and aligned",
               "rows one after the other without gaps", "pass numpy.ascontiguousarray(...)");
    if (writable && !array.writeable())
        refuse(what.text(), "a read-only array", "a writable one", "pass a copy");
    return result;
}

}  // namespace megart

// What the macro declares is pybind11's own.
PYBIND11_MODULE(_core, m) {  // NOLINT(misc-const-correctness)
    using namespace megart;
    m.doc() =
        "Gate, mix and llama.cpp hooks of megart. NumPy arrays in and out, no hidden "
        "copies, the GIL released. Signatures and errors: _core.pyi.";

    bind_gate(m);
    bind_lexicon(m);
    bind_mix(m);
    bind_hooks(m);

    m.def("simd", [] { return std::string(simd::kernels().name); });
    m.def("simd_levels", simd::levels);
    m.def(
        "use_simd",
        [](const std::string& name) {
            if (!simd::use_level(name))
                throw py::value_error(explain("name", name, "one of simd_levels()",
                                              "choose a level that this processor has"));
        },
        py::arg("name"));
}
