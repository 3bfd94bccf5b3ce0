// Scores of a query against context keys.
#pragma once

#include <cstddef>

#include "simd.h"
#include "status.h"

namespace megart {

struct Keys {
    const void* data = nullptr;  // [count, width], row after row
    Type type = Type::f32;       // or f16
    std::size_t count = 0;
    std::size_t width = 0;
};

// out[i] = <query, key i> in f32. Not finite in the query, or in any score: a value error.
Status scores(const float* query, std::size_t width, const Keys& keys, int threads, float* out);

}  // namespace megart
