// Sixteen lanes of four bytes in an AVX-512 register. Included inside the instruction set's namespace.

using I = __m512i;

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

// n lanes from memory, the others zero.
inline I load_lanes(const void* p, int n) {
    return n == 16 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(first_lanes(n), p);
}
inline V load_floats(const float* p, int n) {
    return n == 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_lanes(n), p);
}
inline V load_halves(const uint8_t* p, int n) {
    return n == 16 ? half16(p) : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
// 16 signed bytes, from lane `begin` on, as floats.
inline V load_signed_bytes(const uint8_t* p, int) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes16(p))); }
// p[i / 2]: a number for two neighbouring lanes each.
inline V load_pairs(const float* p, int) {
    const I pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(pairs, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}

inline V multiply(V a, V b) { return _mm512_mul_ps(a, b); }
inline V as_floats(I v) { return _mm512_cvtepi32_ps(v); }
inline I lane_zero() { return _mm512_setzero_si512(); }
inline I lane_add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I either(I a, I b) { return _mm512_or_si512(a, b); }
template <int bits>
inline I times_power_of_two(I v) { return _mm512_slli_epi32(v, bits); }
// Every byte moved right by `shift` (left where it is negative), but for the bits of `mask`.
template <int shift, int mask>
inline I byte_bits(I v) {
    const I moved = shift >= 0 ? _mm512_srli_epi16(v, shift > 0 ? shift : 0) : _mm512_slli_epi16(v, shift < 0 ? -shift : 0);
    return _mm512_and_si512(moved, _mm512_set1_epi8(mask));
}

#if defined(__AVX512VNNI__)
constexpr bool kSignedBytes = false;
inline I signed_bytes(I u) { return u; }
// What products of up to `bits` bits by 8 are added up in; finished() makes it a sum of four neighbours a lane.
template <int bits>
inline I add_products(I sums, I w0, I s0, I w1, I s1) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, w0, s0), w1, s1);
}
template <int bits>
inline I finished(I sums) { return sums; }
#else
inline I add_pairs(I pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }

// As in lanes_avx2.hpp.
constexpr bool kSignedBytes = true;
inline I signed_bytes(I u) { return _mm512_xor_si512(u, _mm512_set1_epi8(-128)); }
inline I pair_products(I w, I s, bool is_signed) {
    if (!is_signed) return _mm512_maddubs_epi16(w, s);
    const I signs = _mm512_mask_sub_epi8(s, _mm512_movepi8_mask(w), _mm512_setzero_si512(), s);
    return _mm512_maddubs_epi16(_mm512_abs_epi8(w), signs);
}
template <int bits>
inline I add_products(I sums, I w0, I s0, I w1, I s1) {
    const I first = pair_products(w0, s0, bits == 8), second = pair_products(w1, s1, bits == 8);
    if constexpr (bits == 4) return _mm512_add_epi16(_mm512_add_epi16(sums, first), second);
    if constexpr (bits < 8) return lane_add(sums, add_pairs(_mm512_add_epi16(first, second)));
    return lane_add(lane_add(sums, add_pairs(first)), add_pairs(second));
}
template <int bits>
inline I finished(I sums) {
    if constexpr (bits == 4) return add_pairs(sums);
    return sums;
}
#endif
