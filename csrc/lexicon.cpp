#include "lexicon.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace megart {
namespace {

// The lower bits of a term's hash are the word's own, the upper ones its root's (megart/gate/words.py).
constexpr int kRootShift = 12;
constexpr std::uint8_t kRelated = 1, kSame = 2;

Status check_starts(const std::int64_t* starts, std::size_t n, std::size_t total) {
    bool good = n > 0 && starts[0] == 0 && static_cast<std::size_t>(starts[n - 1]) == total;
    for (std::size_t i = 1; good && i < n; ++i) good = starts[i - 1] <= starts[i];
    if (good) return {};
    return Status::value(explain("starts", "offsets that do not partition the rows",
                                 "growing numbers from 0 to " + std::to_string(total),
                                 "pass the running sum of the lengths"));
}

Status check_idf(const float* idf, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i)
        if (!std::isfinite(idf[i]) || idf[i] < 0)
            return Status::value(
                explain("idf", "a weight that is negative or not finite at " + std::to_string(i),
                        "finite numbers, 0 or more", "weigh the words of the question again"));
    return {};
}

}  // namespace

Status Lexicon::make(std::vector<std::uint32_t> terms, std::vector<std::int64_t> starts,
                     Lexicon& out) {
    Status status = check_starts(starts.data(), starts.size(), terms.size());
    if (!status.ok()) return status;
    const std::size_t memories = starts.size() - 1;
    if (memories >= std::numeric_limits<std::uint32_t>::max())
        return Status::value(explain("starts", std::to_string(memories) + " memories",
                                     "fewer than 2^32", "split the bank"));
    Lexicon made;
    made.lengths_.resize(memories);
    // term above memory: one sort groups by term, each group in the order of the memories
    std::vector<std::uint64_t> pairs;
    pairs.reserve(terms.size());
    double words = 0;
    for (std::size_t i = 0; i < memories; ++i) {
        for (std::int64_t t = starts[i]; t < starts[i + 1]; ++t) {
            const std::uint32_t term = terms[static_cast<std::size_t>(t)];
            if (term == 0) continue;
            pairs.push_back(static_cast<std::uint64_t>(term) << 32 | i);
            made.lengths_[i] += 1;
        }
        words += static_cast<double>(made.lengths_[i]);
    }
    made.mean_length_ = memories ? static_cast<float>(words / static_cast<double>(memories)) : 0;
    std::sort(pairs.begin(), pairs.end());
    for (std::size_t i = 0; i < pairs.size();) {
        std::size_t end = i + 1;
        while (end < pairs.size() && pairs[end] == pairs[i]) ++end;
        const auto term = static_cast<std::uint32_t>(pairs[i] >> 32);
        if (made.vocabulary_.empty() || made.vocabulary_.back() != term) {
            made.vocabulary_.push_back(term);
            made.offsets_.push_back(made.postings_.size());
        }
        made.postings_.push_back(
            {static_cast<std::uint32_t>(pairs[i]), static_cast<float>(end - i)});
        i = end;
    }
    made.offsets_.push_back(made.postings_.size());
    made.terms_ = std::move(terms);
    made.starts_ = std::move(starts);
    out = std::move(made);
    return {};
}

std::pair<std::size_t, std::size_t> Lexicon::postings_of(std::uint32_t term) const {
    const auto at = std::lower_bound(vocabulary_.begin(), vocabulary_.end(), term);
    if (at == vocabulary_.end() || *at != term) return {0, 0};
    const auto i = static_cast<std::size_t>(at - vocabulary_.begin());
    return {offsets_[i], offsets_[i + 1]};
}

void Lexicon::document_frequency(const std::uint32_t* terms, std::size_t n,
                                 std::int64_t* out) const {
    for (std::size_t q = 0; q < n; ++q) {
        const auto [first, last] = postings_of(terms[q]);
        out[q] = static_cast<std::int64_t>(last - first);
    }
}

Status Lexicon::bm25(const std::uint32_t* terms, const float* idf, std::size_t n, float k1, float b,
                     float* out) const {
    Status status = check_idf(idf, n);
    if (!status.ok()) return status;
    if (!(k1 >= 0 && b >= 0 && b <= 1))
        return Status::value(explain("k1 and b", std::to_string(k1) + " and " + std::to_string(b),
                                     "k1 of 0 or more, b from 0 to 1", "pass k1=1.2, b=0.5"));
    std::fill(out, out + size(), 0.0f);
    for (std::size_t q = 0; q < n; ++q) {
        const auto [first, last] = postings_of(terms[q]);
        for (std::size_t p = first; p < last; ++p) {
            const Posting& found = postings_[p];
            const float length = lengths_[found.memory] / mean_length_;
            out[found.memory] +=
                idf[q] * found.count * (k1 + 1) / (found.count + k1 * (1 - b + b * length));
        }
    }
    return {};
}

Status Lexicon::match(const std::uint32_t* terms, const float* idf, std::size_t n,
                      const std::int32_t* pairs, std::size_t m, const std::int64_t* rows,
                      std::size_t count, float kin, Matches out) const {
    Status status = check_idf(idf, n);
    if (!status.ok()) return status;
    if (!(kin >= 0 && kin <= 1))
        return Status::value(explain("kin", std::to_string(kin), "0 to 1", "pass kin=0.8"));
    for (std::size_t p = 0; p < 2 * m; ++p)
        if (pairs[p] < 0 || static_cast<std::size_t>(pairs[p]) >= n)
            return Status::value(explain("pairs", std::to_string(pairs[p]),
                                         "positions in terms, under " + std::to_string(n),
                                         "number the words of the question from 0"));
    for (std::size_t r = 0; r < count; ++r)
        if (rows[r] < 0 || static_cast<std::size_t>(rows[r]) >= size())
            return Status::value(explain("rows", std::to_string(rows[r]),
                                         "numbers of memories, under " + std::to_string(size()),
                                         "take them from this index"));
    std::vector<std::uint8_t> first(n), here(n), beside(m);
    for (std::size_t r = 0; r < count; ++r) {
        const auto row = static_cast<std::size_t>(rows[r]);
        std::uint8_t* present = out.present + r * n;
        float* shares = out.shares + r * kShares;
        std::fill(present, present + n, std::uint8_t{0});
        std::fill(shares, shares + kShares, 0.0f);
        std::fill(here.begin(), here.end(), std::uint8_t{0});
        std::fill(beside.begin(), beside.end(), std::uint8_t{0});
        bool is_first = true;
        const auto close = [&] {
            if (is_first) first = here;
            is_first = false;
            float alone = 0, related = 0;
            for (std::size_t q = 0; q < n; ++q) {
                const std::uint8_t found = std::max(first[q], here[q]);
                alone += here[q] == kSame ? idf[q] : 0;
                related += found == kSame ? idf[q] : found == kRelated ? kin * idf[q] : 0;
                present[q] = std::max(present[q], here[q]);
            }
            shares[0] = std::max(shares[0], alone);
            shares[2] = std::max(shares[2], related);
            std::fill(here.begin(), here.end(), std::uint8_t{0});
        };
        std::uint32_t before = 0;
        for (std::int64_t t = starts_[row]; t < starts_[row + 1]; ++t) {
            const std::uint32_t term = terms_[static_cast<std::size_t>(t)];
            if (term == 0) {
                close();
            } else {
                for (std::size_t q = 0; q < n; ++q)
                    if (terms[q] == term)
                        here[q] = kSame;
                    else if (terms[q] >> kRootShift == term >> kRootShift)
                        here[q] = std::max(here[q], kRelated);
            }
            for (std::size_t p = 0; p < m; ++p)
                if (before != 0 && term != 0 && terms[pairs[2 * p]] == before &&
                    terms[pairs[2 * p + 1]] == term)
                    beside[p] = 1;
            before = term;
        }
        close();
        for (std::size_t p = 0; p < m; ++p)
            if (beside[p]) shares[1] += idf[pairs[2 * p]] + idf[pairs[2 * p + 1]];
    }
    return {};
}

Status late_interaction(const std::int8_t* query, const float* weights, const std::uint8_t* known,
                        std::size_t n, std::size_t width, const std::int8_t* tokens,
                        std::size_t count, const std::int64_t* starts, std::size_t memories,
                        float* out) {
    Status status = check_starts(starts, memories + 1, count);
    if (!status.ok()) return status;
    double total = 0;
    for (std::size_t i = 0; i < n; ++i) {
        if (!std::isfinite(weights[i]) || weights[i] < 0)
            return Status::value(explain(
                "weights", "a weight that is negative or not finite at " + std::to_string(i),
                "finite numbers, 0 or more", "weigh the tokens of the question again"));
        total += static_cast<double>(weights[i]);
    }
    // 127 * 127 * width must fit an int32: width < 2^17
    if (width == 0 || width >= (std::size_t{1} << 17))
        return Status::value(explain("query", std::to_string(width) + " columns", "1 to 131071",
                                     "pass the token states of this base"));
    const auto dot = [width](const std::int8_t* a, const std::int8_t* b) {
        std::int32_t sum = 0;
        for (std::size_t k = 0; k < width; ++k) sum += std::int32_t{a[k]} * std::int32_t{b[k]};
        return sum;
    };
    std::vector<double> lengths(n);
    for (std::size_t i = 0; i < n; ++i)
        lengths[i] = std::sqrt(static_cast<double>(dot(query + i * width, query + i * width)));
    std::vector<double> best(n), first(n), here(n);
    for (std::size_t c = 0; c < memories; ++c) {
        float* means = out + c * kLikenesses;
        std::fill(means, means + kLikenesses, 0.0f);
        std::fill(best.begin(), best.end(), -1.0);
        std::fill(here.begin(), here.end(), -1.0);
        double sentence = -1;
        bool is_first = true, any = false;
        const auto close = [&] {
            if (is_first) first = here;
            is_first = false;
            double sum = 0;
            for (std::size_t i = 0; i < n; ++i) {
                sum += static_cast<double>(weights[i]) * std::max(first[i], here[i]);
                best[i] = std::max(best[i], here[i]);
            }
            sentence = std::max(sentence, sum / total);
            std::fill(here.begin(), here.end(), -1.0);
        };
        for (std::int64_t j = starts[c]; j < starts[c + 1]; ++j) {
            const std::int8_t* token = tokens + static_cast<std::size_t>(j) * width;
            const double length = std::sqrt(static_cast<double>(dot(token, token)));
            if (length == 0) {
                close();
                continue;
            }
            any = true;
            for (std::size_t i = 0; i < n; ++i) {
                if (weights[i] == 0) continue;
                const double scale = lengths[i] * length;
                const double cosine = scale > 0 ? dot(query + i * width, token) / scale : 0;
                here[i] = std::max(here[i], cosine);
            }
        }
        if (!any || total <= 0) continue;
        close();
        double news = 0, squares = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const auto weight = static_cast<double>(weights[i]);
            if (!known[c * n + i]) news += weight * best[i];
            squares += weight * std::max(best[i], 0.0) * std::max(best[i], 0.0);
        }
        means[0] = static_cast<float>(sentence);
        means[1] = static_cast<float>(news / total);
        means[2] = static_cast<float>(squares / total);
    }
    return {};
}

}  // namespace megart
