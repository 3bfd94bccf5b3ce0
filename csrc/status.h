// Results of the core: a code that the bindings map to one Python exception, and one clear line.
#pragma once

#include <string>
#include <utility>

namespace megart {

enum class Code { ok, value_error, memory_error, runtime_error };

struct Status {
    Code code = Code::ok;
    std::string message;

    bool ok() const noexcept { return code == Code::ok; }

    static Status value(std::string text) { return {Code::value_error, std::move(text)}; }
    static Status memory(std::string text) { return {Code::memory_error, std::move(text)}; }
    static Status runtime(std::string text) { return {Code::runtime_error, std::move(text)}; }
};

// Every message of the core has this form.
inline std::string explain(const std::string& what, const std::string& got,
                           const std::string& expected, const std::string& remedy) {
    return what + ": got " + got + ", expected " + expected + "; " + remedy;
}

}  // namespace megart
