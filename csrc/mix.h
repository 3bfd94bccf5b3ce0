// The exact gated sum of LoRA adapters as one adapter: A factors stacked, B factors side by side
// with the gate folded in, so that out_b @ out_a == sum_j gate_j * (b_j @ a_j).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "simd.h"
#include "status.h"

namespace megart {

struct Matrix {
    const void* data = nullptr;  // [rows, cols], row after row; of any type
    Type type = Type::f32;
    std::size_t rows = 0;
    std::size_t cols = 0;
};

struct OutMatrix {
    void* data = nullptr;
    Type type = Type::f32;  // or f16 or q8_0
    std::size_t rows = 0;
    std::size_t cols = 0;
};

struct MixTask {
    std::vector<Matrix> a;  // [rank_j, in]
    std::vector<Matrix> b;  // [out, rank_j]
    OutMatrix out_a;        // [R, in], rows not used become zero
    OutMatrix out_b;        // [out, R], columns not used become zero
    std::string label;      // where it stands in the call, for messages: "" or "[3]"
};

// Checks every task before it writes anything.
Status mix_all(const std::vector<MixTask>& tasks, const float* gates, std::size_t count,
               int threads);

}  // namespace megart
