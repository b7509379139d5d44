// Packed rows times tokens with AVX2. Included inside the instruction set's namespace.
//
// Order of one product's sum: 32 weights after the other, lane l of the accumulator takes the integer sum of four
// neighbours times the block's scales; then the lanes; corrections are added up block by block and come last.

inline __m256i bytes32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Sums of four neighbouring products u8 * s8, as int32; no pair of products reaches 2^15.
inline __m256i dot4(__m256i u, __m256i s) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
}

// Signed times signed: the magnitudes of the first, the signs moved to the second. The offset is taken out first.
inline __m256i dot4_bytes(__m256i u, __m256i s) {
    const __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
    return dot4(_mm256_sign_epi8(w, w), _mm256_sign_epi8(s, w));
}

inline V integer_times(__m256i sums, float scale, V acc) { return madd(_mm256_cvtepi32_ps(sums), set1(scale), acc); }

inline float half_at(const uint8_t* halves, int64_t i) {
    uint16_t h;
    __builtin_memcpy(&h, halves + 2 * i, sizeof h);
    return _cvtsh_ss(h);
}

// One row and one token. Blocks are taken in the order in which the quants store them.
template <WeightType type>
inline float packed_product(const uint8_t* row, const uint8_t* next, const PackedToken& x, int64_t n_blocks) {
    const uint8_t* quants = packed_quants<type>(row, n_blocks);
    const __m256i mask = _mm256_set1_epi8(15);
    V acc = set1(0);
    int64_t b = 0;
    const auto block = [&](__m256i sums, int64_t i) {
        acc = integer_times(sums, half_at(row, i) * x.scales[i], acc);
    };
    if constexpr (Packed<type>::kIsNibbles) {
        for (; b + 4 <= n_blocks; b += 4, quants += 64) {
            __builtin_prefetch(next + (quants - row), 0, 2);
            const __m256i first = bytes32(quants), second = bytes32(quants + 32);
            const int8_t* q = x.q + b * 32;
            block(dot4(_mm256_and_si256(first, mask), bytes32(q)), b);
            block(dot4(_mm256_and_si256(second, mask), bytes32(q + 32)), b + 1);
            block(dot4(_mm256_and_si256(_mm256_srli_epi16(first, 4), mask), bytes32(q + 64)), b + 2);
            block(dot4(_mm256_and_si256(_mm256_srli_epi16(second, 4), mask), bytes32(q + 96)), b + 3);
        }
        if (b + 2 <= n_blocks) {
            const __m256i pairs = bytes32(quants);
            block(dot4(_mm256_and_si256(pairs, mask), bytes32(x.q + b * 32)), b);
            block(dot4(_mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask), bytes32(x.q + b * 32 + 32)), b + 1);
            b += 2;
            quants += 32;
        }
        if (b < n_blocks) {
            const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(quants));
            const __m256i both = _mm256_set_m128i(_mm_srli_epi16(pairs, 4), pairs);
            block(dot4(_mm256_and_si256(both, mask), bytes32(x.q + b * 32)), b);
        }
    } else {
        for (; b < n_blocks; b++, quants += 32) {
            __builtin_prefetch(next + (quants - row), 0, 2);
            block(dot4_bytes(bytes32(quants), bytes32(x.q + b * 32)), b);
        }
    }
    if constexpr (!Packed<type>::kIsNibbles) return sum(acc);
    const uint8_t* minima = packed_minima<type>(row, n_blocks);
    float correction = 0;
    for (int64_t i = 0; i < n_blocks; i++) correction = madd1(half_at(minima, i), x.sums[i], correction);
    return madd1(kSumFactor<type>, correction, sum(acc));
}

template <WeightType type, int MR, int NT>
void packed_tile(const uint8_t* const* rows, const uint8_t* const* next, const PackedToken* x, int64_t cols,
                 float* results, int n_tokens) {
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++)
            results[r * n_tokens + t] = packed_product<type>(rows[r], next[r], x[t], cols / 32);
}
