// Scores of a query against context keys, exact top-k, softmax over all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd.h"
#include "status.h"

namespace megart {

struct Keys {
    const void* data = nullptr;  // [count, width], row after row
    Type type = Type::f32;       // or f16
    std::size_t count = 0;
    std::size_t width = 0;
};

struct Opened {
    std::vector<std::int64_t> indices;  // best first; of equal scores the lower index first
    std::vector<float> scores;
    std::vector<float> weights;  // softmax over all keys of beta * score
};

// out[i] = <query, key i> in f32. Not finite in the query, or in any score: a value error.
Status scores(const float* query, std::size_t width, const Keys& keys, int threads, float* out);

Status gate(const float* query, std::size_t width, const Keys& keys, std::int64_t k, double beta,
            int threads, Opened& out);

}  // namespace megart
