// parallel_for(n, threads, body): body(i) for each i in [0, n), items handed out one by one.
// The first exception of any worker is carried back to the caller; the others stop early.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace megart {

// Starting a thread takes 25 microseconds, and milliseconds where every core is busy: with fewer bytes
// to move than this one thread alone is done sooner (measured).
constexpr std::size_t kBytesPerThread = std::size_t{8} << 20;

// How many of `threads` pay for work that moves `bytes`.
inline int worth(std::size_t bytes, int threads) {
    const auto most = static_cast<std::size_t>(std::max(threads, 1));
    return static_cast<int>(std::min(most, 1 + bytes / kBytesPerThread));
}

template <class Body>
void parallel_for(std::size_t n, int threads, const Body& body) {
    const std::size_t wanted = std::min(n, static_cast<std::size_t>(std::max(threads, 1)));
    if (wanted <= 1) {
        for (std::size_t i = 0; i < n; ++i) body(i);
        return;
    }
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    const auto work = [&]() noexcept {
        try {
            for (std::size_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(i);
        } catch (...) {
            next.store(n);
            const std::scoped_lock guard(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> workers;
    workers.reserve(wanted - 1);
    try {
        while (workers.size() + 1 < wanted) workers.emplace_back(work);
    } catch (const std::system_error&) {
        // No more threads to be had: the ones that started and this one do it all.
    }
    work();
    for (auto& worker : workers) worker.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace megart
