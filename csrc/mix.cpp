#include "mix.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "parallel.h"

namespace megart {
namespace {

// Small enough that the rows being interleaved stay in the first-level cache.
constexpr std::size_t kRowsPerBlock = 32;
// Values on their way into blocks, for the same reason.
constexpr std::size_t kRoom = 4096;

std::string shape(std::size_t rows, std::size_t cols) {
    return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

Status check(const MixTask& task, std::size_t count) {
    const std::string& at = task.label;
    if (task.a.size() != count || task.b.size() != count)
        return Status::value(explain(
            "a" + at + " and b" + at,
            std::to_string(task.a.size()) + " and " + std::to_string(task.b.size()) + " adapters",
            std::to_string(count) + ", one per gate", "pass one factor of each kind per gate"));
    if (task.out_a.rows != task.out_b.cols)
        return Status::value(explain("out_a" + at + " and out_b" + at,
                                     shape(task.out_a.rows, task.out_a.cols) + " and " +
                                         shape(task.out_b.rows, task.out_b.cols),
                                     "[R, in] and [out, R]", "give both the rank of the slot"));
    std::size_t total = 0;
    for (std::size_t j = 0; j < count; ++j) {
        const Matrix &a = task.a[j], &b = task.b[j];
        const auto named = [&](const char* what) {
            return what + at + "[" + std::to_string(j) + "]";
        };
        if (a.cols != task.out_a.cols)
            return Status::value(explain(named("a"), shape(a.rows, a.cols),
                                         "[rank, " + std::to_string(task.out_a.cols) + "]",
                                         "use adapters made for this base model"));
        if (b.rows != task.out_b.rows)
            return Status::value(explain(named("b"), shape(b.rows, b.cols),
                                         "[" + std::to_string(task.out_b.rows) + ", rank]",
                                         "use adapters made for this base model"));
        if (a.rows != b.cols)
            return Status::value(
                explain(named("a") + " and " + named("b"),
                        "ranks " + std::to_string(a.rows) + " and " + std::to_string(b.cols),
                        "the same rank", "take both factors from one adapter"));
        total += a.rows;
    }
    if (total > task.out_a.rows)
        return Status::value(explain("a" + at, "total rank " + std::to_string(total),
                                     "at most " + std::to_string(task.out_a.rows),
                                     "open fewer memories or make the slot larger"));
    return {};
}

struct Span {
    std::uintptr_t begin, end;
};

template <class M>
Span span_of(const M& m) {
    const auto begin = reinterpret_cast<std::uintptr_t>(m.data);
    return {begin, begin + bytes_of(m.type, m.rows * m.cols)};
}

Status check_overlap(const std::vector<MixTask>& tasks) {
    std::vector<Span> outs;
    for (const MixTask& task : tasks)
        for (const Span s : {span_of(task.out_a), span_of(task.out_b)})
            if (s.begin < s.end) outs.push_back(s);
    std::sort(outs.begin(), outs.end(), [](Span x, Span y) { return x.begin < y.begin; });
    for (std::size_t i = 1; i < outs.size(); ++i)
        if (outs[i].begin < outs[i - 1].end)
            return Status::value(explain("out_a and out_b", "outputs that share memory",
                                         "separate arrays", "allocate each output by itself"));
    const auto hit = [&outs](const Matrix& m) {
        const Span s = span_of(m);
        const auto after =
            std::lower_bound(outs.begin(), outs.end(), s.end,
                             [](Span x, std::uintptr_t end) { return x.begin < end; });
        return s.begin < s.end && after != outs.begin() && std::prev(after)->end > s.begin;
    };
    for (const MixTask& task : tasks)
        if (std::any_of(task.a.begin(), task.a.end(), hit) ||
            std::any_of(task.b.begin(), task.b.end(), hit))
            return Status::value(explain("a and b", "a factor that shares memory with an output",
                                         "separate arrays", "pass a copy of the factor"));
    return {};
}

// Where the value (row, col) begins; in blocks, col 0.
unsigned char* element(const OutMatrix& m, std::size_t row, std::size_t col) {
    return static_cast<unsigned char*>(m.data) + bytes_of(m.type, row * m.cols + col);
}

const unsigned char* row_of(const Matrix& m, std::size_t row) {
    return static_cast<const unsigned char*>(m.data) + bytes_of(m.type, row * m.cols);
}

// A length known to the compiler: plain moves in place of a call per row.
template <std::size_t Bytes>
void copy_rows(unsigned char* target, const unsigned char* source, std::size_t rows,
               std::size_t step) {
    for (std::size_t r = 0; r < rows; ++r)
        std::memcpy(target + r * step, source + r * Bytes, Bytes);
}

// rows x run elements into a matrix whose rows are `stride` long.
void place(const void* in, Type in_type, float gate, void* out, Type out_type, std::size_t rows,
           std::size_t run, std::size_t stride) {
    if (run == 0 || rows == 0) return;
    if (in_type == out_type && gate == 1.0f) {
        const std::size_t bytes = bytes_of(in_type, run), step = bytes_of(in_type, stride);
        if (run == stride) {
            std::memcpy(out, in, rows * bytes);
            return;
        }
        auto* target = static_cast<unsigned char*>(out);
        const auto* source = static_cast<const unsigned char*>(in);
        switch (bytes) {
            case 8: return copy_rows<8>(target, source, rows, step);
            case 16: return copy_rows<16>(target, source, rows, step);
            case 32: return copy_rows<32>(target, source, rows, step);
            case 64: return copy_rows<64>(target, source, rows, step);
            case 128: return copy_rows<128>(target, source, rows, step);
            case 256: return copy_rows<256>(target, source, rows, step);
            default: break;
        }
        for (std::size_t r = 0; r < rows; ++r)
            std::memcpy(target + r * step, source + r * bytes, bytes);
        return;
    }
    assert(is_plain(out_type));  // nothing becomes blocks here
    // NOLINTNEXTLINE(clang-analyzer-security.ArrayBound)
    simd::kernels().rows[static_cast<int>(in_type)][static_cast<int>(out_type)](in, gate, out, rows,
                                                                                run, stride);
}

// A factor of whole rows into rows of `out`, a value or a block at a time as its type wants it.
void stack(const Matrix& a, unsigned char* out, Type type) {
    const std::size_t n = a.rows * a.cols;
    if (n == 0) return;
    if (type != Type::q8_0) return place(a.data, a.type, 1.0f, out, type, 1, n, n);
    if (a.type == Type::q8_0) {
        std::memcpy(out, a.data, bytes_of(type, n));
        return;
    }
    float room[kRoom];
    for (std::size_t i = 0; i < n; i += kRoom) {
        const std::size_t run = std::min(kRoom, n - i);
        const auto* in = static_cast<const unsigned char*>(a.data) + bytes_of(a.type, i);
        place(in, a.type, 1.0f, room, Type::f32, 1, run, run);
        simd::kernels().to_q8(room, out + bytes_of(type, i), run / kBlock);
    }
}

// Rows `first` and on of every factor, gated, side by side in `out`; the rest of out's columns zero.
void side_by_side(const MixTask& task, const float* gates, std::size_t first,
                  const OutMatrix& out) {
    std::size_t used = 0;
    for (std::size_t j = 0; j < task.b.size(); ++j) {
        const Matrix& b = task.b[j];
        place(row_of(b, first), b.type, gates[j], element(out, 0, used), out.type, out.rows, b.cols,
              out.cols);
        used += b.cols;
    }
    if (used < out.cols)
        for (std::size_t r = 0; r < out.rows; ++r)
            std::memset(element(out, r, used), 0, bytes_of(out.type, out.cols - used));
}

// One task that was checked.
void mix_one(const MixTask& task, const float* gates) {
    const OutMatrix &out_a = task.out_a, &out_b = task.out_b;
    std::size_t used = 0;
    for (const Matrix& a : task.a) {
        stack(a, element(out_a, used, 0), out_a.type);
        used += a.rows;
    }
    if (used < out_a.rows && out_a.cols > 0)
        std::memset(element(out_a, used, 0), 0,
                    bytes_of(out_a.type, (out_a.rows - used) * out_a.cols));

    // Blocks that nothing is to be done to need not become values and blocks again.
    bool as_is = is_plain(out_b.type) || !task.b.empty();
    for (std::size_t j = 0; j < task.b.size(); ++j)
        as_is =
            as_is && (is_plain(out_b.type) || (task.b[j].type == out_b.type && gates[j] == 1.0f));
    std::vector<float> room(as_is ? 0 : kRowsPerBlock * out_b.cols);
    for (std::size_t row = 0; row < out_b.rows; row += kRowsPerBlock) {
        const std::size_t rows = std::min(kRowsPerBlock, out_b.rows - row);
        unsigned char* const target = element(out_b, row, 0);
        if (as_is) {
            side_by_side(task, gates, row, {target, out_b.type, rows, out_b.cols});
        } else {
            side_by_side(task, gates, row, {room.data(), Type::f32, rows, out_b.cols});
            simd::kernels().to_q8(room.data(), target, rows * out_b.cols / kBlock);
        }
    }
}

Status check_all(const std::vector<MixTask>& tasks, const float* gates, std::size_t count,
                 int threads) {
    if (threads < 1)
        return Status::value(
            explain("threads", std::to_string(threads), "at least 1", "pass threads=1"));
    for (std::size_t j = 0; j < count; ++j)
        if (!std::isfinite(gates[j]))
            return Status::value(explain("gates",
                                         "a value that is not finite at " + std::to_string(j),
                                         "finite numbers", "check the weights of the gate"));
    for (const MixTask& task : tasks) {
        Status status = check(task, count);
        if (!status.ok()) return status;
    }
    return check_overlap(tasks);
}

}  // namespace

Status mix_all(const std::vector<MixTask>& tasks, const float* gates, std::size_t count,
               int threads) {
    Status status = check_all(tasks, gates, count, threads);
    if (!status.ok()) return status;
    std::size_t bytes = 0;
    for (const MixTask& task : tasks)
        for (const OutMatrix& out : {task.out_a, task.out_b})
            bytes += bytes_of(out.type, out.rows * out.cols);
    parallel_for(tasks.size(), worth(bytes, threads),
                 [&](std::size_t i) { mix_one(tasks[i], gates); });
    return {};
}

}  // namespace megart
