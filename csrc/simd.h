// Arithmetic kernels over f32, f16 and ggml's blocks, chosen at run time by what the processor can do.
// f16 goes through f32 and is rounded to nearest even: every level gives the same mix bit for bit;
// inner products differ between levels only by the order of summation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace megart {

// A block of q8_0 or q4_0 is an f16 scale and 32 values of one row, 8 or 4 bits each. q4_0 is only read.
enum class Type : int { f32 = 0, f16 = 1, q8_0 = 2, q4_0 = 3 };
constexpr int kTypes = 4, kPlainTypes = 2;
constexpr std::size_t kBlock = 32, kQ8Bytes = 34, kQ4Bytes = 18;

inline bool is_plain(Type type) noexcept { return type == Type::f32 || type == Type::f16; }
// Bytes of one value of a plain type.
inline std::size_t size_of(Type type) noexcept { return type == Type::f32 ? 4 : 2; }
// Bytes of n values; of a block type n is a multiple of 32.
inline std::size_t bytes_of(Type type, std::size_t n) noexcept {
    if (type == Type::q8_0) return n / kBlock * kQ8Bytes;
    if (type == Type::q4_0) return n / kBlock * kQ4Bytes;
    return n * size_of(type);
}
inline const char* name_of(Type type) noexcept {
    switch (type) {
        case Type::f32: return "float32";
        case Type::f16: return "float16";
        case Type::q8_0: return "q8_0";
        case Type::q4_0: return "q4_0";
    }
    return "";
}

namespace simd {

using half = std::uint16_t;

// out[r * stride + i] = gate * in[r * run + i]  for r < rows, i < run (strides in values; a run of
// blocks is a multiple of 32)
using RowsFn = void (*)(const void* in, float gate, void* out, std::size_t rows, std::size_t run,
                        std::size_t stride);

struct Kernels {
    const char* name;
    float (*dot_f32)(const float* a, const float* b, std::size_t n);
    float (*dot_f16)(const half* a, const float* b, std::size_t n);
    RowsFn rows[kTypes][kPlainTypes];  // [type of in][type of out]
    void (*to_q8)(const float* in, void* out, std::size_t blocks);
};

const Kernels& kernels() noexcept;        // the level in use
std::vector<std::string> levels();        // what this processor can run, best first
bool use_level(const std::string& name);  // false: this processor cannot run it

}  // namespace simd
}  // namespace megart
