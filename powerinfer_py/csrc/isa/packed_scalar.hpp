// Packed rows times tokens, portable: block after block, an exact integer sum times the scales. Included inside the
// instruction set's namespace.

template <WeightType type>
inline int packed_quant(const uint8_t* quants, int64_t n_blocks, int64_t b, int i) {
    if constexpr (!Packed<type>::kIsNibbles) return quants[b * 32 + i];
    const int64_t left = n_blocks - b / 4 * 4, group = b / 4 * 4;
    // A whole group of four blocks, else one of two, else one of one.
    const int64_t begin = left >= 4 ? group : (b - group < 2 && left >= 2 ? group : group + (left >= 2 ? 2 : 0));
    const int half = left >= 4 ? 64 : (begin == group && left >= 2 ? 32 : 16);
    const int64_t j = (b - begin) * 32 + i;
    const uint8_t pair = quants[begin * 16 + j % half];
    return j < half ? pair & 15 : pair >> 4;
}

template <WeightType type, int MR, int NT>
void packed_tile(const uint8_t* const* rows, const uint8_t* const*, const PackedToken* x, int64_t cols,
                 float* results, int n_tokens) {
    const int64_t n_blocks = cols / 32;
    for (int r = 0; r < MR; r++) {
        const uint8_t* quants = packed_quants<type>(rows[r], n_blocks);
        const uint8_t* minima = packed_minima<type>(rows[r], n_blocks);
        for (int t = 0; t < NT; t++) {
            float total = 0, correction = 0;
            for (int64_t b = 0; b < n_blocks; b++) {
                int dot = 0;
                for (int i = 0; i < 32; i++) dot += packed_quant<type>(quants, n_blocks, b, i) * x[t].q[b * 32 + i];
                total = madd1(static_cast<float>(dot), read_half(rows[r] + 2 * b) * x[t].scales[b], total);
                correction = madd1(read_half(minima + 2 * b), x[t].sums[b], correction);
            }
            results[r * n_tokens + t] = madd1(kSumFactor<type>, correction, total);
        }
    }
}
