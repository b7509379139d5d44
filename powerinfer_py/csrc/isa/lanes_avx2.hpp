// Eight lanes of four bytes in an AVX2 register. Included inside the instruction set's namespace.

using I = __m256i;

inline I lane_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// n lanes from memory, the others zero.
inline I load_lanes(const void* p, int n) {
    return n == 8 ? _mm256_loadu_si256(static_cast<const __m256i*>(p))
                  : _mm256_maskload_epi32(static_cast<const int*>(p), lane_mask(n));
}
inline V load_floats(const float* p, int n) { return n == 8 ? load(p) : _mm256_maskload_ps(p, lane_mask(n)); }
// Behind the halves of n lanes lie 16 bytes or more of the same row.
inline V load_halves(const uint8_t* p, int n) {
    return n == 8 ? half8(p) : _mm256_and_ps(half8(p), _mm256_castsi256_ps(lane_mask(n)));
}
// Eight of 16 signed bytes, from lane `begin` on, as floats.
inline V load_signed_bytes(const uint8_t* p, int begin) {
    int64_t bytes;
    __builtin_memcpy(&bytes, p + begin, sizeof bytes);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)));
}
// p[(begin + i) / 2]: a number for two neighbouring lanes each.
inline V load_pairs(const float* p, int begin) {
    const __m256i pairs = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + begin / 2)), pairs);
}

inline V multiply(V a, V b) { return _mm256_mul_ps(a, b); }
inline V as_floats(I v) { return _mm256_cvtepi32_ps(v); }
inline I lane_zero() { return _mm256_setzero_si256(); }
inline I lane_add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I either(I a, I b) { return _mm256_or_si256(a, b); }
template <int bits>
inline I times_power_of_two(I v) { return _mm256_slli_epi32(v, bits); }
// Every byte moved right by `shift` (left where it is negative), but for the bits of `mask`.
template <int shift, int mask>
inline I byte_bits(I v) {
    const I moved = shift >= 0 ? _mm256_srli_epi16(v, shift > 0 ? shift : 0) : _mm256_slli_epi16(v, shift < 0 ? -shift : 0);
    return _mm256_and_si256(moved, _mm256_set1_epi8(mask));
}

inline I add_pairs(I pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Bytes of 8 bits are multiplied as signed numbers: |w| <= 128 and |s| <= 127, so that a pair of products stays below
// 2^15, where unsigned ones would saturate.
constexpr bool kSignedBytes = true;
inline I signed_bytes(I u) { return _mm256_xor_si256(u, _mm256_set1_epi8(-128)); }
inline I pair_products(I w, I s, bool is_signed) {
    return is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(s, w)) : _mm256_maddubs_epi16(w, s);
}

// Adds the products of two steps. 16 bits hold eight pairs of 4 bits by 8 (8 * 2 * 15 * 127 < 2^15), so to the end; of 5
// and 6 bits two (2 * 2 * 63 * 127).
template <int bits>
inline I add_products(I sums, I w0, I s0, I w1, I s1) {
    const I first = pair_products(w0, s0, bits == 8), second = pair_products(w1, s1, bits == 8);
    if constexpr (bits == 4) return _mm256_add_epi16(_mm256_add_epi16(sums, first), second);
    if constexpr (bits < 8) return lane_add(sums, add_pairs(_mm256_add_epi16(first, second)));
    return lane_add(lane_add(sums, add_pairs(first)), add_pairs(second));
}
template <int bits>
inline I finished(I sums) {
    if constexpr (bits == 4) return add_pairs(sums);
    return sums;
}
