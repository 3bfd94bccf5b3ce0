// Arithmetic kernels over f32 and f16, chosen at run time by what the processor can do.
// f16 goes through f32 and is rounded to nearest even: every level gives the same mix bit for bit;
// inner products differ between levels only by the order of summation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace megart {

enum class Type : int { f32 = 0, f16 = 1 };

inline std::size_t size_of(Type type) noexcept { return type == Type::f32 ? 4 : 2; }
inline const char* name_of(Type type) noexcept {
    return type == Type::f32 ? "float32" : "float16";
}

namespace simd {

using half = std::uint16_t;

// out[r * stride + i] = gate * in[r * run + i]  for r < rows, i < run (strides in elements)
using RowsFn = void (*)(const void* in, float gate, void* out, std::size_t rows, std::size_t run,
                        std::size_t stride);

struct Kernels {
    const char* name;
    float (*dot_f32)(const float* a, const float* b, std::size_t n);
    float (*dot_f16)(const half* a, const float* b, std::size_t n);
    RowsFn rows[2][2];  // [type of in][type of out]
};

const Kernels& kernels() noexcept;         // the level in use
std::vector<std::string> levels();         // what this processor can run, best first
bool use_level(const std::string& name);   // false: this processor cannot run it

}  // namespace simd
}  // namespace megart
