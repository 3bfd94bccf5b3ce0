#include "compress.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel.h"

namespace megart {
namespace {

constexpr int kSweeps = 16;
// Two columns are orthogonal when their cosine is below what f32 sums resolve.
constexpr float kOrthogonal = 4e-6f;
// A column this much smaller than the largest is noise of the rotations.
constexpr float kNegligible = 1e-7f;
// A square of which f32 can no longer take the reciprocal with precision.
constexpr float kNoise = 1e-10f;  // of a squared singular value, against the largest
constexpr float kNothing = 1e-30f;

// Columns one after the other.
struct Columns {
    std::size_t length = 0, count = 0;
    std::vector<float> values;

    Columns(std::size_t rows, std::size_t columns)
        : length(rows), count(columns), values(rows * columns) {}
    float* operator[](std::size_t j) { return values.data() + j * length; }
    const float* operator[](std::size_t j) const { return values.data() + j * length; }
};

float dot(const float* x, const float* y, std::size_t n) { return simd::kernels().dot_f32(x, y, n); }

void to_f32(const Matrix& m, float gate, float* out) {
    const std::size_t n = m.rows * m.cols;
    if (n) simd::kernels().rows[static_cast<int>(m.type)][0](m.data, gate, out, 1, n, n);
}

// Householder QR in place: below the diagonal stay the reflectors, above it R.
struct Reflected {
    Columns columns;
    std::size_t rank;             // reflectors, rows of R
    std::vector<float> diagonal;  // of R
    std::vector<float> tau;

    explicit Reflected(Columns&& input)
        : columns(std::move(input)),
          rank(std::min(columns.length, columns.count)),
          diagonal(rank),
          tau(rank) {
        for (std::size_t k = 0; k < rank; ++k) {
            float* v = columns[k] + k;
            const std::size_t n = columns.length - k;
            const float square = dot(v, v, n);
            if (square < kNothing) {  // nothing is left of this column: no reflection
                diagonal[k] = v[0];
                continue;
            }
            const float norm = std::sqrt(square);
            diagonal[k] = v[0] > 0 ? -norm : norm;
            v[0] -= diagonal[k];
            tau[k] = 2 / dot(v, v, n);
            for (std::size_t j = k + 1; j < columns.count; ++j) reflect(k, columns[j]);
        }
    }

    void reflect(std::size_t k, float* y) const {
        const float* v = columns[k] + k;
        const std::size_t n = columns.length - k;
        simd::kernels().axpy_f32(-tau[k] * dot(v, y + k, n), v, y + k, n);
    }

    float r(std::size_t row, std::size_t column) const {
        if (row == column) return diagonal[row];
        return row < column ? columns[column][row] : 0.0f;
    }

    // y: the coefficients in its first `rank` places, zeros after them.
    void apply_q(float* y) const {
        for (std::size_t k = rank; k-- > 0;) reflect(k, y);
    }
};

Columns stack_a(const MixTask& task, std::size_t rank) {
    Columns all(task.out_a.cols, rank);
    float* at = all.values.data();
    for (const Matrix& a : task.a) {
        to_f32(a, 1.0f, at);
        at += a.rows * a.cols;
    }
    return all;
}

Columns stack_b(const MixTask& task, const float* gates, std::size_t rank) {
    const std::size_t rows = task.out_b.rows;
    Columns all(rows, rank);
    std::vector<float> wide;
    std::size_t offset = 0;
    for (std::size_t j = 0; j < task.b.size(); ++j) {
        const Matrix& b = task.b[j];
        wide.resize(b.rows * b.cols);
        to_f32(b, gates[j], wide.data());
        for (std::size_t c = 0; c < b.cols; ++c)
            for (std::size_t r = 0; r < rows; ++r) all[offset + c][r] = wide[r * b.cols + c];
        offset += b.cols;
    }
    return all;
}

// M = R_b R_a^T, [rank_b, rank_a], by columns.
Columns core(const Reflected& b, const Reflected& a, std::size_t rank) {
    std::vector<float> rb(b.rank * rank), ra(a.rank * rank);
    for (std::size_t i = 0; i < b.rank; ++i)
        for (std::size_t k = 0; k < rank; ++k) rb[i * rank + k] = b.r(i, k);
    for (std::size_t i = 0; i < a.rank; ++i)
        for (std::size_t k = 0; k < rank; ++k) ra[i * rank + k] = a.r(i, k);
    Columns m(b.rank, a.rank);
    for (std::size_t j = 0; j < a.rank; ++j)
        for (std::size_t i = 0; i < b.rank; ++i) {
            const std::size_t from = std::max(i, j);  // both are triangular
            m[j][i] = dot(&rb[i * rank + from], &ra[j * rank + from], rank - from);
        }
    return m;
}

// Turns the columns until they are orthogonal: they are then left singular vectors times values.
// Returns the squared singular values.
std::vector<float> orthogonalise(Columns& m) {
    std::vector<float> size(m.count);
    if (m.count == 0) return size;
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
        for (std::size_t j = 0; j < m.count; ++j) size[j] = dot(m[j], m[j], m.length);
        const float least = *std::max_element(size.begin(), size.end()) * kNegligible * kNegligible;
        bool turned = false;
        for (std::size_t i = 0; i + 1 < m.count; ++i)
            for (std::size_t j = i + 1; j < m.count; ++j) {
                if (size[i] <= least || size[j] <= least) continue;
                const float cross = dot(m[i], m[j], m.length);
                if (std::fabs(cross) <= kOrthogonal * std::sqrt(size[i]) * std::sqrt(size[j])) continue;
                turned = true;
                const double zeta = (static_cast<double>(size[j]) - size[i]) / (2.0 * cross);
                const double t =
                    (zeta >= 0 ? 1.0 : -1.0) / (std::fabs(zeta) + std::sqrt(1.0 + zeta * zeta));
                const double c = 1.0 / std::sqrt(1.0 + t * t);
                simd::kernels().rotate_f32(m[i], m[j], static_cast<float>(c),
                                           static_cast<float>(c * t), m.length);
                size[i] = std::max(0.0f, size[i] - static_cast<float>(t) * cross);
                size[j] = std::max(0.0f, size[j] + static_cast<float>(t) * cross);
            }
        if (!turned) break;
    }
    for (std::size_t j = 0; j < m.count; ++j) size[j] = dot(m[j], m[j], m.length);
    return size;
}

void put(const OutMatrix& out, std::size_t row, std::size_t col, float value) {
    const std::size_t at = row * out.cols + col;
    void* target = static_cast<unsigned char*>(out.data) + at * size_of(out.type);
    simd::kernels().rows[0][static_cast<int>(out.type)](&value, 1.0f, target, 1, 1, 1);
}

Loss compress_one(const MixTask& task, const float* gates) {
    std::size_t rank = 0;
    for (const Matrix& a : task.a) rank += a.rows;
    const std::size_t kept = task.out_a.rows;
    if (rank <= kept) {
        mix_one(task, gates);
        return {};
    }
    const Reflected a(stack_a(task, rank)), b(stack_b(task, gates, rank));
    const Columns m = core(b, a, rank);
    Columns turned = m;
    const std::vector<float> squares = orthogonalise(turned);
    std::vector<std::size_t> order(squares.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t x, std::size_t y) { return squares[x] > squares[y]; });

    // Below it a left vector is noise, and the right one made from it would be noise enlarged.
    const float least = std::max(kNothing, squares.empty() ? 0.0f : kNoise * squares[order[0]]);
    Loss loss;
    std::vector<float> left(b.columns.length), right(a.columns.length);
    for (std::size_t i = 0; i < std::max(kept, order.size()); ++i) {
        const float square = i < order.size() ? squares[order[i]] : 0.0f;
        loss.total += square;
        if (i >= kept) {
            loss.dropped += square;
            continue;
        }
        std::fill(left.begin(), left.end(), 0.0f);
        std::fill(right.begin(), right.end(), 0.0f);
        if (square > least) {
            // B' gets u sqrt(s) and A' gets sqrt(s) v: both halves of one size, for f16's sake.
            const float* us = turned[order[i]];
            const float half = 1 / std::sqrt(std::sqrt(square));
            for (std::size_t k = 0; k < b.rank; ++k) left[k] = us[k] * half;
            for (std::size_t k = 0; k < a.rank; ++k)
                right[k] = dot(m[k], us, m.length) * half / std::sqrt(square);
            b.apply_q(left.data());
            a.apply_q(right.data());
        }
        for (std::size_t r = 0; r < task.out_b.rows; ++r) put(task.out_b, r, i, left[r]);
        simd::kernels().rows[0][static_cast<int>(task.out_a.type)](
            right.data(), 1.0f,
            static_cast<unsigned char*>(task.out_a.data) + bytes_of(task.out_a.type, i * right.size()),
            1, right.size(), right.size());
    }
    return loss;
}

}  // namespace

Status compress_all(const std::vector<MixTask>& tasks, const float* gates, std::size_t count,
                    int threads, std::vector<Loss>& losses) {
    const Status status = check_tasks(tasks, gates, count, threads, false);
    if (!status.ok()) return status;
    losses.assign(tasks.size(), Loss{});
    parallel_for(tasks.size(), threads,
                 [&](std::size_t i) { losses[i] = compress_one(tasks[i], gates); });
    return {};
}

}  // namespace megart
