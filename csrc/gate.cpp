#include "gate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "parallel.h"

namespace megart {
namespace {

constexpr std::size_t kKeysPerBlock = 256;

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
            return Status::value(explain("query", "a value that is not finite at " +
                                         std::to_string(i), "finite numbers",
                                         "check the embedding of the question"));
    const simd::Kernels& kernels = simd::kernels();
    const std::size_t blocks = (keys.count + kKeysPerBlock - 1) / kKeysPerBlock;
    parallel_for(blocks, threads, [&](std::size_t block) {
        const std::size_t end = std::min(keys.count, (block + 1) * kKeysPerBlock);
        for (std::size_t i = block * kKeysPerBlock; i < end; ++i)
            out[i] = keys.type == Type::f32
                         ? kernels.dot_f32(static_cast<const float*>(keys.data) + i * width, query,
                                           width)
                         : kernels.dot_f16(static_cast<const simd::half*>(keys.data) + i * width,
                                           query, width);
    });
    for (std::size_t i = 0; i < keys.count; ++i)
        if (!std::isfinite(out[i]))
            return Status::value(explain("keys", "a score that is not finite for row " +
                                         std::to_string(i), "finite keys",
                                         "compute the key of this memory again"));
    return {};
}

Status gate(const float* query, std::size_t width, const Keys& keys, std::int64_t k, double beta,
            int threads, Opened& out) {
    if (k < 1)
        return Status::value(explain("k", std::to_string(k), "at least 1",
                                     "ask for the number of memories that may open"));
    if (!std::isfinite(beta) || beta < 0)
        return Status::value(explain("beta", std::to_string(beta), "a finite number, 0 or more",
                                     "pass beta=1.0"));
    std::vector<float> all(keys.count);
    Status status = scores(query, width, keys, threads, all.data());
    if (!status.ok()) return status;
    out = {};
    if (keys.count == 0) return {};

    std::vector<std::int64_t> order(keys.count);
    std::iota(order.begin(), order.end(), std::int64_t{0});
    const std::size_t kept =
        static_cast<std::uint64_t>(k) < keys.count ? static_cast<std::size_t>(k) : keys.count;
    const auto better = [&all](std::int64_t i, std::int64_t j) {
        const float x = all[static_cast<std::size_t>(i)], y = all[static_cast<std::size_t>(j)];
        return x > y || (x == y && i < j);
    };
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept),
                      order.end(), better);

    const double best = all[static_cast<std::size_t>(order[0])];
    double total = 0;
    for (const float score : all) total += std::exp(beta * (score - best));
    out.indices.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept));
    for (const std::int64_t i : out.indices) {
        const float score = all[static_cast<std::size_t>(i)];
        out.scores.push_back(score);
        out.weights.push_back(static_cast<float>(std::exp(beta * (score - best)) / total));
    }
    return {};
}

}  // namespace megart
