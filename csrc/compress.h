// The mix of too many ranks as one adapter of fewer: the best approximation of the gated sum at the
// rank of the outputs, by QR of the stacked factors and a small SVD (one-sided Jacobi).
#pragma once

#include <vector>

#include "mix.h"

namespace megart {

// Squared Frobenius norms of one matrix of the mix: of all of it, and of what was dropped.
struct Loss {
    double total = 0, dropped = 0;
};

// As mix_all, but the ranks may add up to more than the outputs hold. A matrix whose ranks do fit is
// mixed exactly and counts with a loss of 0 of 0.
Status compress_all(const std::vector<MixTask>& tasks, const float* gates, std::size_t count,
                    int threads, std::vector<Loss>& losses);

}  // namespace megart
