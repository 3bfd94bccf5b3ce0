// Scores of a query against context keys, exact top-k, softmax over all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "status.h"

namespace megart {

enum class KeyType { f32, f16, i8 };

struct Keys {
    const void* data;  // [count, width], row after row
    KeyType type;
    std::size_t count;
    std::size_t width;
    const float* scales;  // of i8 only: [count], what one step of each row's whole numbers is worth
};

struct Opened {
    std::vector<std::int64_t> indices;  // best first; of equal scores the lower index first
    std::vector<float> scores;
    std::vector<float> weights;  // softmax over all keys of beta * score
};

// out[i] = <query, key i> in f32. Not finite in the query, or in any score: a value error.
// Against i8 keys the query becomes whole numbers too, as fine as a row's sum in an int32 allows
// (15 bits up to a width of 512): every level then gives the same scores bit for bit.
Status scores(const float* query, std::size_t width, const Keys& keys, int threads, float* out);

Status gate(const float* query, std::size_t width, const Keys& keys, std::int64_t k, double beta,
            int threads, Opened& out);

}  // namespace megart
