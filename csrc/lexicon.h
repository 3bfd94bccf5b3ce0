// Words of the memories: an inverted index with BM25, and what of a question stands in one memory.
// Words come as 32-bit hashes; 0 ends a sentence.
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

    struct Matches {
        std::uint8_t* present;  // [rows, terms]: does the term stand in the memory
        float* sentence;        // [rows]: the largest idf sum of the terms of one sentence
        float* pairs;           // [rows]: idf sum of the pairs that stand side by side
    };
    // pairs: [m, 2] positions in terms
    Status match(const std::uint32_t* terms, const float* idf, std::size_t n,
                 const std::int32_t* pairs, std::size_t m, const std::int64_t* rows,
                 std::size_t count, Matches out) const;

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

// Late interaction (ColBERT's MaxSim): out[c] = sum_i weights[i] max_j cos(query_i, token_j) over
// sum_i weights[i], j over [starts[c], starts[c + 1]). No tokens or no weight: 0. The sums are whole
// numbers until the division: every processor gives the same result.
Status late_interaction(const std::int8_t* query, const float* weights, std::size_t n,
                        std::size_t width, const std::int8_t* tokens, std::size_t count,
                        const std::int64_t* starts, std::size_t memories, float* out);

}  // namespace megart
