// Sixteen floats in an AVX-512 register. Included inside the instruction set's namespace.

constexpr int kWidth = 16;
using V = __m512;

inline V load(const void* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V set1(float a) { return _mm512_set1_ps(a); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
// Bit i: number i is not zero. NaN is not.
inline uint32_t not_zero(V v) { return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
inline float madd1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float sum(V v) {
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 h = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

// Micro-tiles: 16 accumulators, 4 rows and 1 token at a time; 8 loads feed 16 multiply-adds.
constexpr int kTileTokens = 4;
constexpr int kRowTokens = 8;
// Sums of products with striped tokens: 6 rows and 4 tokens, where 10 loads feed 24 multiply-adds.
constexpr int kTileSums = 24;
// Rows that meet up to four tokens in registers: 16 accumulators of 32.
constexpr int kFewRows = 4;
// Rows of floats that meet one token at once: one, whose sums keep up with memory.
constexpr int kFloatRows = 1;
// Packed rows that meet several tokens at once.
constexpr int kPackedRows = 4;
// A stream of packed rows is left to the hardware (see FetchAhead).
constexpr int kStreamAhead = 0;

inline V half16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
// Broadcasting the 16 bits and converting all lanes takes two instructions, converting one lane first takes three.
inline V half_scale(const uint8_t* p) {
    short h;
    __builtin_memcpy(&h, p, sizeof h);
    return _mm512_cvtph_ps(_mm256_set1_epi16(h));
}

inline void to_half(const float* x, uint16_t* y, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), _mm512_cvtps_ph(load(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) y[i] = half_from_float(x[i]);
}

inline void store_scaled(Bytes16 q, float scale, float minimum, float* out) {
    const V w = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(__builtin_bit_cast(__m128i, q)));
    store(out, _mm512_sub_ps(_mm512_mul_ps(w, set1(scale)), set1(minimum)));
}

template <>
struct Unpack<WeightType::F32> {
    static void group(const uint8_t* p, V* w) {
        w[0] = load(p);
        w[1] = load(p + 64);
    }
};

template <>
struct Unpack<WeightType::F16> {
    static void group(const uint8_t* p, V* w) {
        w[0] = half16(p);
        w[1] = half16(p + 32);
    }
};

inline V brain16(const uint8_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <>
struct Unpack<WeightType::BF16> {
    static void group(const uint8_t* p, V* w) {
        w[0] = brain16(p);
        w[1] = brain16(p + 32);
    }
};

inline __m128i bytes16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

template <>
struct Unpack<WeightType::Q8_0> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p);
        w[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes16(p + 2))), d);
        w[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes16(p + 18))), d);
    }
};

// The 16 values a nibble can have are looked up in a register: the permutation reads only the low four bits of each
// index, so nothing is masked, and the scale is multiplied once per block instead of once per weight.
// Low nibbles are weights 0 to 15 of the block, high nibbles 16 to 31.
inline void nibbles(const uint8_t* p, V values, V* w) {
    const __m512i index = _mm512_cvtepu8_epi32(bytes16(p));
    w[0] = _mm512_permutexvar_ps(index, values);
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), values);
}
inline V count_from(float first) {
    return _mm512_add_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), set1(first));
}

template <>
struct Unpack<WeightType::Q4_0> {
    static void group(const uint8_t* p, V* w) { nibbles(p + 2, _mm512_mul_ps(count_from(-8), half_scale(p)), w); }
};

template <>
struct Unpack<WeightType::Q4_1> {
    static void group(const uint8_t* p, V* w) {
        nibbles(p + 4, add(_mm512_mul_ps(count_from(0), half_scale(p)), half_scale(p + 2)), w);
    }
};

// A fifth bit chooses between two such registers.
inline void five_bits(const uint8_t* p, V low, V high, V* w) {
    uint32_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    const __m512i index = _mm512_cvtepu8_epi32(bytes16(p + 4));
    const __m512i shifted = _mm512_srli_epi32(index, 4);
    w[0] = _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(index, low), static_cast<__mmask16>(bits), index, high);
    w[1] = _mm512_mask_permutexvar_ps(
        _mm512_permutexvar_ps(shifted, low), static_cast<__mmask16>(bits >> 16), shifted, high);
}

template <>
struct Unpack<WeightType::Q5_0> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p);
        five_bits(p + 2, _mm512_mul_ps(count_from(-16), d), _mm512_mul_ps(count_from(0), d), w);
    }
};

template <>
struct Unpack<WeightType::Q5_1> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p), m = half_scale(p + 2);
        five_bits(p + 4, add(_mm512_mul_ps(count_from(0), d), m), add(_mm512_mul_ps(count_from(16), d), m), w);
    }
};
