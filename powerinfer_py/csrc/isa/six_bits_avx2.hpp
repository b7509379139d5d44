// Packed Q6_K rows times tokens with AVX2. Included inside the instruction set's namespace. Order of sums: 32 weights
// after the other, lane l takes the integer sum of four neighbours times the scales of its 16 weights; then the lanes.

// Sums of four neighbours of 32 weights number `half` of vector `v` of a block, the offset of 32 taken out.
inline __m256i six_bit_sums(const uint8_t* quants, int v, int half, __m256i x) {
    const __m256i pairs = bytes32(quants + (v / 2) * 64 + half * 32), high = bytes32(quants + 128 + half * 32);
    const __m256i low = _mm256_and_si256(v % 2 ? _mm256_srli_epi16(pairs, 4) : pairs, _mm256_set1_epi8(15));
    const __m256i moved = v == 0   ? _mm256_slli_epi16(high, 4)
                          : v == 1 ? _mm256_slli_epi16(high, 2)
                          : v == 2 ? high
                                   : _mm256_srli_epi16(high, 2);
    const __m256i w = _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
    return _mm256_sub_epi32(dot4(w, x), dot4(_mm256_set1_epi8(32), x));
}

inline float six_bit_product(const uint8_t* row, const uint8_t* next, const PackedToken& x, int64_t n_blocks) {
    V acc = set1(0);
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t* quants = six_bit_quants(row, n_blocks) + b * 192;
        const int8_t* steps = reinterpret_cast<const int8_t*>(six_bit_scales(row, n_blocks)) + b * 16;
        const float d = half_at(row, b);
        for (int line = 0; line < 3; line++) __builtin_prefetch(next + (quants - row) + 64 * line, 0, 2);
        for (int i = 0; i < 8; i++) {
            const float scale = d * x.scales[b * 8 + i];
            const V scales = _mm256_set_m128(
                _mm_set1_ps(scale * static_cast<float>(steps[2 * i + 1])),
                _mm_set1_ps(scale * static_cast<float>(steps[2 * i])));
            const __m256i sums = six_bit_sums(quants, i / 2, i % 2, bytes32(x.q + b * 256 + i * 32));
            acc = madd(_mm256_cvtepi32_ps(sums), scales, acc);
        }
    }
    return sum(acc);
}

template <int MR, int NT>
void six_bit_tile(const uint8_t* const* rows, const uint8_t* const* next, const PackedToken* x, int64_t cols,
                  float* results, int n_tokens) {
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++)
            results[r * n_tokens + t] = six_bit_product(rows[r], next[r], x[t], cols / 256);
}
