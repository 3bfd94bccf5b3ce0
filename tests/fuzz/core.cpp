// Fuzzes the C++ part with what comes out of strangers' banks: words, token states, keys and factors of adapters.
// Built by run.py with g++ under ASan and UBSan, with inputs by chance; with clang also as a libFuzzer target:
//   clang++ -std=c++17 -g -fsanitize=fuzzer,address,undefined -DLIBFUZZER -Icsrc tests/fuzz/core.cpp csrc/{gate,lexicon,mix,simd}.cpp
// With -D_GLIBCXX_SANITIZE_VECTOR one value past a vector's size is seen, even within its capacity.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gate.h"
#include "lexicon.h"
#include "mix.h"

namespace {

using namespace megart;

// Values off the front of an input; zeros past its end.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    template <class T>
    T take() {
        T value{};
        const std::size_t bytes = std::min(left_, sizeof value);
        if (bytes) std::memcpy(&value, data_, bytes);
        data_ += bytes;
        left_ -= bytes;
        return value;
    }

    std::size_t below(std::size_t most) { return take<std::uint8_t>() % most; }

    template <class T>
    std::vector<T> many(std::size_t count) {
        std::vector<T> made(count);
        for (T& value : made) value = take<T>();
        return made;
    }

    // A number that should be refused, or nearly so: about `limit`, below 0, or as far off as there is.
    template <class T>
    T odd(std::size_t limit) {
        const auto edge = static_cast<T>(limit);
        const T some[] = {edge,
                          static_cast<T>(edge + 1),
                          static_cast<T>(edge - 1),
                          static_cast<T>(-1),
                          std::numeric_limits<T>::max(),
                          std::numeric_limits<T>::lowest(),
                          take<T>()};
        return some[below(7)];
    }

    bool rare() { return take<std::uint8_t>() < 16; }

private:
    const std::uint8_t* data_;
    std::size_t left_;
};

// Offsets of `parts` parts of `total`, mostly right ones.
std::vector<std::int64_t> starts_of(Input& in, std::size_t parts, std::size_t total) {
    std::vector<std::int64_t> starts(1, 0);
    for (std::size_t i = 0; i < parts; ++i) {
        const auto before = static_cast<std::size_t>(starts.back());
        starts.push_back(static_cast<std::int64_t>(before + in.below(total - before + 1)));
    }
    starts.back() = parts ? static_cast<std::int64_t>(total) : 0;
    if (in.rare()) starts[in.below(starts.size())] = in.odd<std::int64_t>(total);
    return starts;
}

std::vector<float> weights_of(Input& in, std::size_t count) {
    std::vector<float> made(count);
    for (float& weight : made) weight = static_cast<float>(in.take<std::uint8_t>()) / 64;
    if (count && in.rare()) made[in.below(count)] = in.take<float>();
    return made;
}

void lexicon(Input& in) {
    const std::size_t memories = in.below(6), count = memories ? in.below(40) : 0, n = in.below(8);
    std::vector<std::uint32_t> terms(count);
    for (auto& term : terms)
        term =
            static_cast<std::uint32_t>(in.below(4)) << 12 | static_cast<std::uint32_t>(in.below(3));
    Lexicon made;
    if (!Lexicon::make(terms, starts_of(in, memories, count), made).ok()) return;
    std::vector<std::uint32_t> asked(n);
    for (auto& term : asked)
        term = in.rare() ? in.take<std::uint32_t>() : static_cast<std::uint32_t>(in.below(4)) << 12;
    const std::vector<float> idf = weights_of(in, n);
    std::vector<std::int64_t> df(n);
    made.document_frequency(asked.data(), n, df.data());
    std::vector<float> scores(made.size());
    (void)made.bm25(asked.data(), idf.data(), n, in.rare() ? in.take<float>() : 1.2f,
                    in.rare() ? in.take<float>() : 0.5f, scores.data());
    const std::size_t m = n ? in.below(4) : 0, rows = made.size() ? in.below(5) : 0;
    std::vector<std::int32_t> pairs(2 * m);
    for (auto& place : pairs) place = static_cast<std::int32_t>(in.below(n));
    if (m && in.rare()) pairs[in.below(2 * m)] = in.odd<std::int32_t>(n);
    std::vector<std::int64_t> chosen(rows);
    for (auto& row : chosen) row = static_cast<std::int64_t>(in.below(made.size()));
    if (rows && in.rare()) chosen[in.below(rows)] = in.odd<std::int64_t>(made.size());
    std::vector<std::uint8_t> present(rows * n);
    std::vector<float> shares(rows * Lexicon::kShares);
    (void)made.match(asked.data(), idf.data(), n, pairs.data(), m, chosen.data(), rows, 0.8f,
                     {present.data(), shares.data()});
}

void late(Input& in) {
    const std::size_t n = in.below(6), width = in.below(20), memories = in.below(5),
                      count = memories ? in.below(12) : 0;
    const auto query = in.many<std::int8_t>(n * width),
               tokens = in.many<std::int8_t>(count * width);
    const auto weights = weights_of(in, n);
    const auto known = in.many<std::uint8_t>(memories * n);
    const auto starts = starts_of(in, memories, count);
    std::vector<float> out(memories * kLikenesses);
    (void)late_interaction(query.data(), weights.data(), known.data(), n, width, tokens.data(),
                           count, starts.data(), memories, out.data());
}

void mixed(Input& in) {
    const std::size_t adapters = in.below(4),
                      wide = in.below(3) * 32 + (in.rare() ? in.below(32) : 0);
    const std::size_t high = in.below(70), room = in.below(4) * 32 + (in.rare() ? in.below(9) : 0);
    std::vector<std::vector<std::uint8_t>> kept;
    const auto made = [&](Type type, std::size_t rows, std::size_t cols) -> Matrix {
        kept.push_back(
            in.many<std::uint8_t>(std::min<std::size_t>(bytes_of(type, rows * cols), 400)));
        kept.back().resize(bytes_of(type, rows * cols), in.take<std::uint8_t>());
        return {kept.back().data(), type, rows, cols};
    };
    const auto typed = [&](std::size_t cols) {
        return static_cast<Type>(in.below(cols % kBlock ? 2 : 4));
    };
    MixTask task;
    for (std::size_t j = 0; j < adapters; ++j) {
        const std::size_t rank = in.rare() ? in.below(5) : in.below(2) * 32;
        task.a.push_back(made(typed(wide), rank, wide));
        task.b.push_back(made(typed(rank), high + (in.rare() ? in.below(3) : 0), rank));
    }
    const auto target = [&](std::size_t rows, std::size_t cols) -> OutMatrix {
        const auto type = static_cast<Type>(in.below(cols % kBlock ? 2 : 3));
        kept.emplace_back(bytes_of(type, rows * cols));
        return {kept.back().data(), type, rows, cols};
    };
    task.out_a = target(room, wide);
    task.out_b = target(high, room);
    const auto gates = weights_of(in, adapters);
    (void)mix_all({task}, gates.data(), adapters, 1 + static_cast<int>(in.below(2)));
}

void gated(Input& in) {
    const std::size_t count = in.below(9), width = in.below(40);
    const Type type = in.below(2) ? Type::f16 : Type::f32;
    const auto query = weights_of(in, width);
    const auto keys = in.many<std::uint8_t>(bytes_of(type, count * width));
    const Keys all{keys.data(), type, count, width};
    std::vector<float> out(count);
    (void)scores(query.data(), width, all, 1, out.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input in(data, size);
    const auto levels = simd::levels();
    const std::size_t target = in.below(4);
    simd::use_level(levels[in.below(levels.size())]);
    switch (target) {
        case 0: lexicon(in); break;
        case 1: late(in); break;
        case 2: mixed(in); break;
        default: gated(in);
    }
    return 0;
}

#ifndef LIBFUZZER
int main(int count, char** words) {
    const double seconds = count > 1 ? std::strtod(words[1], nullptr) : 10;
    std::mt19937_64 chance(count > 2 ? std::strtoull(words[2], nullptr, 10) : 1);
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    unsigned long long inputs = 0;
    for (; inputs % 256 || std::chrono::steady_clock::now() < until; ++inputs) {
        std::vector<std::uint8_t> data(chance() % 513);
        for (auto& byte : data) byte = static_cast<std::uint8_t>(chance());
        LLVMFuzzerTestOneInput(data.data(), data.size());
    }
    std::printf("core: %llu inputs, nothing found\n", inputs);
}
#endif
