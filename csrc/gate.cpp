#include "gate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "parallel.h"

namespace megart {
namespace {

constexpr std::size_t kKeysPerBlock = 256;
constexpr std::size_t kNone = static_cast<std::size_t>(-1);

// Row after row in the order of memory: several rows at a time are slower, however they are fetched.
void scan(const float* query, const Keys& keys, std::size_t first, std::size_t last, float* out) {
    const simd::Kernels& kernels = simd::kernels();
    const std::size_t width = keys.width;
    if (keys.type == Type::f32) {
        const auto* rows = static_cast<const float*>(keys.data);
        for (std::size_t i = first; i < last; ++i)
            out[i] = kernels.dot_f32(rows + i * width, query, width);
    } else {
        const auto* rows = static_cast<const simd::half*>(keys.data);
        for (std::size_t i = first; i < last; ++i)
            out[i] = kernels.dot_f16(rows + i * width, query, width);
    }
}

}  // namespace

Status scores(const float* query, std::size_t width, const Keys& keys, int threads, float* out) {
    if (threads < 1)
        return Status::value(
            explain("threads", std::to_string(threads), "at least 1", "pass threads=1"));
    if (width == 0)
        return Status::value(
            explain("query", "0 values", "at least 1", "pass the embedding of the question"));
    if (keys.width != width)
        return Status::value(explain("keys", std::to_string(keys.width) + " columns",
                                     std::to_string(width) + " as in query",
                                     "take query and keys from the same base model"));
    for (std::size_t i = 0; i < width; ++i)
        if (!std::isfinite(query[i]))
            return Status::value(explain("query",
                                         "a value that is not finite at " + std::to_string(i),
                                         "finite numbers", "check the embedding of the question"));
    std::atomic<std::size_t> bad{kNone};
    const int workers = worth(bytes_of(keys.type, keys.count * width), threads);
    const std::size_t blocks = (keys.count + kKeysPerBlock - 1) / kKeysPerBlock;
    parallel_for(blocks, workers, [&](std::size_t block) {
        const std::size_t first = block * kKeysPerBlock;
        const std::size_t last = std::min(keys.count, first + kKeysPerBlock);
        scan(query, keys, first, last, out);
        for (std::size_t i = first; i < last; ++i)
            if (!std::isfinite(out[i])) {
                std::size_t known = bad.load();
                while (i < known && !bad.compare_exchange_weak(known, i)) continue;
                break;
            }
    });
    if (bad != kNone)
        return Status::value(explain("keys",
                                     "a score that is not finite for row " + std::to_string(bad),
                                     "finite keys", "compute the key of this memory again"));
    return {};
}

}  // namespace megart
