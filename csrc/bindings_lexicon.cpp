// Python's view of the word index and of late interaction: types, shapes, the GIL.
#include "bindings.h"
#include "lexicon.h"

namespace megart {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::size_t extent(const Array<T>& array, const char* what, int dims, int dim = 0) {
    if (array.ndim() != dims)
        throw py::value_error(explain(what, std::to_string(array.ndim()) + " dimensions",
                                      std::to_string(dims), "reshape it"));
    return static_cast<std::size_t>(array.shape(dim));
}

void check_same(std::size_t got, std::size_t expected, const char* what, const char* as) {
    if (got != expected)
        throw py::value_error(explain(what, std::to_string(got),
                                      std::to_string(expected) + " as in " + as,
                                      "pass one per row"));
}

std::unique_ptr<Lexicon> make(const Array<std::uint32_t>& terms,
                              const Array<std::int64_t>& starts) {
    const std::size_t n = extent(terms, "terms", 1), m = extent(starts, "starts", 1);
    std::vector<std::uint32_t> words(terms.data(), terms.data() + n);
    std::vector<std::int64_t> offsets(starts.data(), starts.data() + m);
    auto made = std::make_unique<Lexicon>();
    raise_unless_ok(
        without_gil([&] { return Lexicon::make(std::move(words), std::move(offsets), *made); }));
    return made;
}

Array<std::int64_t> frequency(const Lexicon& lexicon, const Array<std::uint32_t>& terms) {
    Array<std::int64_t> out(static_cast<py::ssize_t>(extent(terms, "terms", 1)));
    lexicon.document_frequency(terms.data(), extent(terms, "terms", 1), out.mutable_data());
    return out;
}

Array<float> bm25(const Lexicon& lexicon, const Array<std::uint32_t>& terms,
                  const Array<float>& idf, float k1, float b) {
    const std::size_t n = extent(terms, "terms", 1);
    check_same(extent(idf, "idf", 1), n, "idf", "terms");
    Array<float> out(static_cast<py::ssize_t>(lexicon.size()));
    float* target = out.mutable_data();
    raise_unless_ok(
        without_gil([&] { return lexicon.bm25(terms.data(), idf.data(), n, k1, b, target); }));
    return out;
}

py::tuple match(const Lexicon& lexicon, const Array<std::uint32_t>& terms, const Array<float>& idf,
                const Array<std::int32_t>& pairs, const Array<std::int64_t>& rows, float kin) {
    const std::size_t n = extent(terms, "terms", 1), count = extent(rows, "rows", 1);
    check_same(extent(idf, "idf", 1), n, "idf", "terms");
    const std::size_t m = extent(pairs, "pairs", 2);
    check_same(extent(pairs, "pairs", 2, 1), 2, "columns of pairs", "a pair");
    const auto height = static_cast<py::ssize_t>(count);
    Array<std::uint8_t> present({height, static_cast<py::ssize_t>(n)});
    Array<float> shares({height, static_cast<py::ssize_t>(Lexicon::kShares)});
    const Lexicon::Matches out{present.mutable_data(), shares.mutable_data()};
    raise_unless_ok(without_gil([&] {
        return lexicon.match(terms.data(), idf.data(), n, pairs.data(), m, rows.data(), count, kin,
                             out);
    }));
    return py::make_tuple(present, shares);
}

Array<float> late(const Array<std::int8_t>& query, const Array<float>& weights,
                  const Array<std::uint8_t>& known, const Array<std::int8_t>& tokens,
                  const Array<std::int64_t>& starts) {
    const std::size_t n = extent(query, "query", 2), width = extent(query, "query", 2, 1);
    const std::size_t count = extent(tokens, "tokens", 2), m = extent(starts, "starts", 1);
    check_same(extent(tokens, "tokens", 2, 1), width, "columns of tokens", "query");
    check_same(extent(weights, "weights", 1), n, "weights", "query");
    if (m == 0) throw py::value_error(explain("starts", "0 values", "at least 1", "pass [0]"));
    check_same(extent(known, "known", 2), m - 1, "rows of known", "starts, less one");
    check_same(extent(known, "known", 2, 1), n, "columns of known", "query");
    Array<float> out({static_cast<py::ssize_t>(m - 1), static_cast<py::ssize_t>(kLikenesses)});
    float* target = out.mutable_data();
    raise_unless_ok(without_gil([&] {
        return late_interaction(query.data(), weights.data(), known.data(), n, width, tokens.data(),
                                count, starts.data(), m - 1, target);
    }));
    return out;
}

}  // namespace

void bind_lexicon(py::module_& m) {
    const auto as_is = [](const char* name) { return py::arg(name).noconvert(); };
    py::class_<Lexicon>(m, "Lexicon")
        .def(py::init(&make), as_is("terms"), as_is("starts"))
        .def("__len__", &Lexicon::size)
        .def("df", frequency, as_is("terms"))
        .def("bm25", bm25, as_is("terms"), as_is("idf"), py::arg("k1") = 1.2f, py::arg("b") = 0.5f)
        .def("match", match, as_is("terms"), as_is("idf"), as_is("pairs"), as_is("rows"),
             py::arg("kin") = 0.8f);
    m.def("late_interaction", late, as_is("query"), as_is("weights"), as_is("known"),
          as_is("tokens"), as_is("starts"));
}

}  // namespace megart
