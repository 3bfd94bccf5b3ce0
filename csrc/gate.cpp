#include "gate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <string>

#include "parallel.h"

namespace megart {
namespace {

constexpr std::size_t kKeysPerBlock = 256;
// Taking one exponential lasts as long as moving this many bytes.
constexpr std::size_t kBytesPerPower = 128;
constexpr std::size_t kNone = static_cast<std::size_t>(-1);

std::size_t blocks_of(std::size_t count) { return (count + kKeysPerBlock - 1) / kKeysPerBlock; }

// body(first, last) for every block of `count` items.
template <class Body>
void by_blocks(std::size_t count, int threads, const Body& body) {
    parallel_for(blocks_of(count), threads, [&](std::size_t block) {
        body(block * kKeysPerBlock, std::min(count, (block + 1) * kKeysPerBlock));
    });
}

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
    by_blocks(keys.count, workers, [&](std::size_t first, std::size_t last) {
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

Status gate(const float* query, std::size_t width, const Keys& keys, std::int64_t k, double beta,
            int threads, Opened& out) {
    if (k < 1)
        return Status::value(explain("k", std::to_string(k), "at least 1",
                                     "ask for the number of memories that may open"));
    if (!std::isfinite(beta) || beta < 0)
        return Status::value(
            explain("beta", std::to_string(beta), "a finite number, 0 or more", "pass beta=1.0"));
    std::vector<float> all(keys.count);
    Status status = scores(query, width, keys, threads, all.data());
    if (!status.ok()) return status;
    out = {};
    if (keys.count == 0) return {};

    const auto better = [&all](std::int64_t i, std::int64_t j) {
        const float x = all[static_cast<std::size_t>(i)], y = all[static_cast<std::size_t>(j)];
        return x > y || (x == y && i < j);
    };
    const std::size_t kept =
        static_cast<std::uint64_t>(k) < keys.count ? static_cast<std::size_t>(k) : keys.count;
    std::vector<std::int64_t> order(kept);
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::make_heap(order.begin(), order.end(), better);  // the worst that is kept stands in front
    for (std::size_t i = kept; i < keys.count; ++i) {
        // Of equals the lower index is there.
        if (all[i] <= all[static_cast<std::size_t>(order[0])]) continue;
        std::pop_heap(order.begin(), order.end(), better);
        order.back() = static_cast<std::int64_t>(i);
        std::push_heap(order.begin(), order.end(), better);
    }
    std::sort_heap(order.begin(), order.end(), better);

    const double best = all[static_cast<std::size_t>(order[0])];
    // Summed block by block: the total does not depend on the threads.
    std::vector<double> sums(blocks_of(keys.count));
    const int workers = worth(keys.count * kBytesPerPower, threads);
    by_blocks(keys.count, workers, [&](std::size_t first, std::size_t last) {
        double sum = 0;
        for (std::size_t i = first; i < last; ++i) sum += std::exp(beta * (all[i] - best));
        sums[first / kKeysPerBlock] = sum;
    });
    const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
    out.indices = std::move(order);
    for (const std::int64_t i : out.indices) {
        const float score = all[static_cast<std::size_t>(i)];
        out.scores.push_back(score);
        out.weights.push_back(static_cast<float>(std::exp(beta * (score - best)) / total));
    }
    return {};
}

}  // namespace megart
