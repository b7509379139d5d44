// Packed Q6_K rows times tokens with AVX-512. Included inside the instruction set's namespace. Order of sums: 64 weights
// after the other, lane l takes the integer sum of four neighbours times the scales of its 16 weights; then the lanes.

template <int MR, int NT>
void six_bit_tile(const uint8_t* const* rows, const uint8_t* const* next, const PackedToken* x, int64_t cols,
                  float* results, int n_tokens) {
    const int64_t n_blocks = cols / 256;
    const __m512i low4 = _mm512_set1_epi8(15), two_high = _mm512_set1_epi8(0x30), offset = _mm512_set1_epi8(32);
    const __m512i pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i fours = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    V acc[MR][NT];
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) acc[r][t] = set1(0);
    for (int64_t b = 0; b < n_blocks; b++) {
        // What the offset of 32 adds to each sum of four is the same for every row.
        __m512i excess[NT][4];
        for (int t = 0; t < NT; t++)
            for (int v = 0; v < 4; v++) excess[t][v] = dot4(offset, bytes64(x[t].q + b * 256 + v * 64, 64));
#pragma GCC unroll 4
        for (int r = 0; r < MR; r++) {
            const uint8_t* quants = six_bit_quants(rows[r], n_blocks) + b * 192;
            for (int line = 0; line < 3; line++)
                __builtin_prefetch(next[r] + (quants - rows[r]) + 64 * line, 0, 2);
            const __m512i a = bytes64(quants, 64), c = bytes64(quants + 64, 64), high = bytes64(quants + 128, 64);
            const __m512i w[4] = {
                _mm512_or_si512(_mm512_and_si512(a, low4), _mm512_and_si512(_mm512_slli_epi16(high, 4), two_high)),
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(a, 4), low4),
                                _mm512_and_si512(_mm512_slli_epi16(high, 2), two_high)),
                _mm512_or_si512(_mm512_and_si512(c, low4), _mm512_and_si512(high, two_high)),
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(c, 4), low4),
                                _mm512_and_si512(_mm512_srli_epi16(high, 2), two_high))};
            const V steps = _mm512_mul_ps(
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes16(six_bit_scales(rows[r], n_blocks) + b * 16))),
                half_scale(rows[r] + 2 * b));
#pragma GCC unroll 4
            for (int t = 0; t < NT; t++) {
                const V scales = _mm512_mul_ps(
                    steps, _mm512_permutexvar_ps(pairs, _mm512_castps256_ps512(_mm256_loadu_ps(x[t].scales + b * 8))));
                for (int v = 0; v < 4; v++) {
                    const __m512i sums =
                        _mm512_sub_epi32(dot4(w[v], bytes64(x[t].q + b * 256 + v * 64, 64)), excess[t][v]);
                    const __m512i lanes = _mm512_add_epi32(fours, _mm512_set1_epi32(4 * v));
                    acc[r][t] = madd(_mm512_cvtepi32_ps(sums), _mm512_permutexvar_ps(lanes, scales), acc[r][t]);
                }
            }
        }
    }
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) results[r * n_tokens + t] = sum(acc[r][t]);
}
