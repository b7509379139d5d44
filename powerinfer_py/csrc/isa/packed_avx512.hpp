// Packed rows times tokens with AVX-512. Included inside the instruction set's namespace.
//
// Order of one product's sum: a run of 16 blocks after the other; within it, 64 weights at a time, lane l of the
// accumulator takes the integer sum of four neighbours times its block's scales; the lanes are added by sum(); the
// corrections through the tokens' sums are added up by block, 16 lanes wide, and come last.

// Sums of four neighbouring products u8 * s8, as int32.
inline __m512i dot4(__m512i u, __m512i s) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, s);
#else
    return _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1));
#endif
}

// As dot4 for bytes up to 255, where maddubs would saturate: their low and high halves apart.
inline __m512i dot4_bytes(__m512i u, __m512i s) {
#if defined(__AVX512VNNI__)
    return dot4(u, s);
#else
    const __m512i low = _mm512_and_si512(u, _mm512_set1_epi8(127));
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(u, 7), _mm512_set1_epi8(1));
    return _mm512_add_epi32(dot4(low, s), _mm512_slli_epi32(dot4(high, s), 7));
#endif
}

// Lanes 0 to 7 take block b of a run, lanes 8 to 15 block b + 1.
inline __m512i block_lanes(int b) {
    const __m512i pair = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_add_epi32(pair, _mm512_set1_epi32(b));
}

inline V halves16(const uint8_t* p, int n) {
    const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1u);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
inline V floats16(const float* p, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p); }

inline __m512i bytes64(const void* p, int n) {
    return n == 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, p);
}

// acc[r][t] += products of a group of `half` bytes of nibbles, whose first weight is number `b` * 32 of the run.
template <int MR, int NT>
inline void nibble_group(const uint8_t* const* quants, const PackedToken* x, int64_t begin, int half, int b,
                         const V (*scales)[NT], V (*acc)[NT]) {
    const __m512i low_blocks = block_lanes(b), high_blocks = block_lanes(b + half / 32);
    const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
        const __m512i pairs = bytes64(quants[r], half);
        const __m512i low = _mm512_and_si512(pairs, mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask);
#pragma GCC unroll 4
        for (int t = 0; t < NT; t++) {
            const V a = _mm512_cvtepi32_ps(dot4(low, bytes64(x[t].q + begin, half)));
            const V c = _mm512_cvtepi32_ps(dot4(high, bytes64(x[t].q + begin + half, half)));
            acc[r][t] = madd(a, _mm512_permutexvar_ps(low_blocks, scales[r][t]), acc[r][t]);
            acc[r][t] = madd(c, _mm512_permutexvar_ps(high_blocks, scales[r][t]), acc[r][t]);
        }
    }
}

template <int MR, int NT>
inline void byte_group(const uint8_t* const* quants, const PackedToken* x, int64_t begin, int n, int b,
                       const V (*scales)[NT], V (*acc)[NT]) {
    const __m512i blocks = block_lanes(b);
    for (int r = 0; r < MR; r++) {
        const __m512i w = bytes64(quants[r], n);
        for (int t = 0; t < NT; t++) {
            const V a = _mm512_cvtepi32_ps(dot4_bytes(w, bytes64(x[t].q + begin, n)));
            acc[r][t] = madd(a, _mm512_permutexvar_ps(blocks, scales[r][t]), acc[r][t]);
        }
    }
}

// One run: up to 16 blocks from block `first` of the row on; quants[r] is moved behind it.
template <WeightType type, int MR, int NT>
inline void packed_run(const uint8_t* const* rows, const uint8_t** quants, const uint8_t* const* next,
                       const PackedToken* x, int64_t first, int n_blocks, V (*acc)[NT]) {
    V scales[MR][NT];
    for (int r = 0; r < MR; r++) {
        const V d = halves16(rows[r] + 2 * first, n_blocks);
        for (int t = 0; t < NT; t++) scales[r][t] = _mm512_mul_ps(d, floats16(x[t].scales + first, n_blocks));
    }
    int b = 0;
    while (b < n_blocks) {
        const int left = n_blocks - b;
        const int64_t begin = (first + b) * 32;
        const int n_bytes = Packed<type>::kIsNibbles ? (left >= 4 ? 64 : left >= 2 ? 32 : 16) : (left >= 2 ? 64 : 32);
        if constexpr (Packed<type>::kIsNibbles)
            nibble_group<MR, NT>(quants, x, begin, n_bytes, b, scales, acc);
        else
            byte_group<MR, NT>(quants, x, begin, n_bytes, b, scales, acc);
        for (int r = 0; r < MR; r++) {
            __builtin_prefetch(next[r] + (quants[r] - rows[r]), 0, 2);
            quants[r] += n_bytes;
        }
        b += Packed<type>::kIsNibbles ? n_bytes / 16 : n_bytes / 32;
    }
}

// results[r * n_tokens + t] of MR rows and NT tokens; `next` are the rows to fetch meanwhile.
template <WeightType type, int MR, int NT>
void packed_tile(const uint8_t* const* rows, const uint8_t* const* next, const PackedToken* x, int64_t cols,
                 float* results, int n_tokens) {
    const int64_t n_blocks = cols / 32;
    V acc[MR][NT];
    const uint8_t* quants[MR];
    for (int r = 0; r < MR; r++) {
        quants[r] = packed_quants<type>(rows[r], n_blocks);
        for (int t = 0; t < NT; t++) acc[r][t] = set1(0);
    }
    int64_t first = 0;
    for (; first + 16 <= n_blocks; first += 16) packed_run<type, MR, NT>(rows, quants, next, x, first, 16, acc);
    if (first < n_blocks)
        packed_run<type, MR, NT>(rows, quants, next, x, first, static_cast<int>(n_blocks - first), acc);
    for (int r = 0; r < MR; r++) {
        const uint8_t* minima = packed_minima<type>(rows[r], n_blocks);
        for (int t = 0; t < NT; t++) {
            V correction = set1(0);
            for (int64_t b = 0; b < n_blocks; b += 16) {
                const int n = n_blocks - b < 16 ? static_cast<int>(n_blocks - b) : 16;
                correction = madd(halves16(minima + 2 * b, n), floats16(x[t].sums + b, n), correction);
            }
            results[r * n_tokens + t] = madd1(kSumFactor<type>, sum(correction), sum(acc[r][t]));
        }
    }
}
