// What bench_core.py holds the gate's scan against: how fast this machine reads memory at all.
// Sums 64-bit words with several threads; built by the benchmark with the machine's own instructions.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

std::uint64_t sum(const std::uint64_t* words, std::size_t n) {
    std::uint64_t lanes[64] = {};
    std::size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (std::size_t j = 0; j < 64; ++j) lanes[j] += words[i + j];
    for (; i < n; ++i) lanes[0] += words[i];
    std::uint64_t total = 0;
    for (const std::uint64_t lane : lanes) total += lane;
    return total;
}

}  // namespace

extern "C" std::uint64_t read_all(const std::uint64_t* words, std::size_t n, int threads) {
    const std::size_t share = n / static_cast<std::size_t>(threads);
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads));
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) {
        const auto at = static_cast<std::size_t>(t);
        others.emplace_back([=, &sums] { sums[at] = sum(words + at * share, share); });
    }
    sums[0] = sum(words, share);
    for (std::thread& other : others) other.join();
    std::uint64_t total = 0;
    for (const std::uint64_t part : sums) total += part;
    return total;
}
