// Words of the memories: an inverted index with BM25, and what of a question stands in one memory.
// Words come as 32-bit hashes, the upper 20 bits of which are those of the word's root; 0 ends a sentence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "status.h"

namespace megart {

class Lexicon {
public:
    // terms: the words of all memories in their order; memory i has [starts[i], starts[i + 1]).
    static Status make(std::vector<std::uint32_t> terms, std::vector<std::int64_t> starts,
                       Lexicon& out);

    std::size_t size() const noexcept { return lengths_.size(); }

    // out[q] = in how many memories the term stands
    void document_frequency(const std::uint32_t* terms, std::size_t n, std::int64_t* out) const;

    // out[i] = sum over terms of idf * tf (k1 + 1) / (tf + k1 (1 - b + b length_i / mean length))
    Status bm25(const std::uint32_t* terms, const float* idf, std::size_t n, float k1, float b,
                float* out) const;

    static constexpr std::size_t kShares = 3;
    struct Matches {
        // [rows, terms]: 2 the term stands in the memory, 1 a relative, 0 neither
        std::uint8_t* present;
        float* shares;  // [rows, kShares]: idf sums
    };
    // Shares: of the best sentence; of the pairs (positions in terms, [m, 2]) that stand side by side; of
    // the first sentence (a title) and the best one together, each relative counting kin.
    Status match(const std::uint32_t* terms, const float* idf, std::size_t n,
                 const std::int32_t* pairs, std::size_t m, const std::int64_t* rows,
                 std::size_t count, float kin, Matches out) const;

private:
    struct Posting {
        std::uint32_t memory;
        float count;
    };
    std::pair<std::size_t, std::size_t> postings_of(std::uint32_t term) const;

    std::vector<std::uint32_t> terms_;
    std::vector<std::int64_t> starts_;
    std::vector<float> lengths_;  // words of each memory
    float mean_length_ = 0;
    std::vector<std::uint32_t> vocabulary_;  // sorted
    std::vector<std::size_t> offsets_;       // [vocabulary + 1] into postings_
    std::vector<Posting> postings_;
};

// Late interaction (ColBERT's MaxSim) of a question's tokens with those of memories, each of which has
// [starts[c], starts[c + 1]) of them, rows of zeros between sentences. With best_i the largest cosine of
// query_i with a token, out[c] holds three weighted means: of the best sentence (the first one, which may
// be a title, counts with each); of best_i where known[c, i] is 0, else 0; of best_i squared.
// No tokens or no weight: 0. The products are whole numbers until the division: every processor gives
// the same result.
constexpr std::size_t kLikenesses = 3;
Status late_interaction(const std::int8_t* query, const float* weights, const std::uint8_t* known,
                        std::size_t n, std::size_t width, const std::int8_t* tokens,
                        std::size_t count, const std::int64_t* starts, std::size_t memories,
                        float* out);

}  // namespace megart
