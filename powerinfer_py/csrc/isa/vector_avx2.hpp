// Eight floats in an AVX2 register, with FMA and F16C. Included inside the instruction set's namespace.

constexpr int kWidth = 8;
using V = __m256;

inline V load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V set1(float a) { return _mm256_set1_ps(a); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
// Bit i: number i is not zero. NaN is not.
inline uint32_t not_zero(V v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
}
inline float madd1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float sum(V v) {
    const __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

// Micro-tiles: 8 accumulators, 4 rows and 2 tokens live in the 16 registers; 6 loads feed 8 multiply-adds.
constexpr int kTileTokens = 2;
constexpr int kRowTokens = 8;
// Sums of products with striped tokens: 3 rows and 4 tokens, where 7 loads feed 12 multiply-adds.
constexpr int kTileSums = 12;
// Rows that meet up to four tokens in registers: 8 accumulators of 16.
constexpr int kFewRows = 2;
// Rows of floats that meet one token at once: the sums of one alone would wait for each other.
constexpr int kFloatRows = 2;
// Packed rows that meet several tokens at once.
constexpr int kPackedRows = 2;
// How many bytes ahead a stream of packed rows is asked for. On Zen 3 the hardware alone runs too little ahead of kernels
// that compute: with two threads, in turns, Q6_K came at 19.9 GB/s instead of 16.0, Q4_0 at 20.0 instead of 17.4, Q8_0 at
// 18.9 instead of 17.7; 512 and 2048 bytes ahead helped less.
constexpr int kStreamAhead = 1024;

inline V half8(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline V half_scale(const uint8_t* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, sizeof h);
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

inline void to_half(const float* x, uint16_t* y, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), _mm256_cvtps_ph(load(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) y[i] = half_from_float(x[i]);
}

// Sixteen signed or unsigned bytes as two vectors.
inline void widen_signed(__m128i bytes, V* w) {
    w[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    w[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)));
}

inline void store_scaled(Bytes16 q, float scale, float minimum, float* out) {
    V w[2];
    widen_signed(__builtin_bit_cast(__m128i, q), w);
    for (int i = 0; i < 2; i++)
        store(out + 8 * i, _mm256_sub_ps(_mm256_mul_ps(w[i], set1(scale)), set1(minimum)));
}

template <>
struct Unpack<WeightType::F32> {
    static void group(const uint8_t* p, V* w) {
        for (int i = 0; i < 4; i++) w[i] = load(p + 32 * i);
    }
};

template <>
struct Unpack<WeightType::F16> {
    static void group(const uint8_t* p, V* w) {
        for (int i = 0; i < 4; i++) w[i] = half8(p + 16 * i);
    }
};

template <>
struct Unpack<WeightType::BF16> {
    static void group(const uint8_t* p, V* w) {
        for (int i = 0; i < 4; i++) {
            const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
            w[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
        }
    }
};

template <>
struct Unpack<WeightType::Q8_0> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p);
        widen_signed(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2)), w);
        widen_signed(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 18)), w + 2);
        for (int i = 0; i < 4; i++) w[i] = _mm256_mul_ps(w[i], d);
    }
};

// Low nibbles are weights 0 to 15 of the block, high nibbles 16 to 31.
inline void nibbles(const uint8_t* p, __m128i offset, V* w) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
    widen_signed(_mm_sub_epi8(_mm_and_si128(bytes, mask), offset), w);
    widen_signed(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), offset), w + 2);
}

// With its highest bit turned a nibble is q - 8 as a signed number, and a byte widened with both of them serves twice.
template <>
struct Unpack<WeightType::Q4_0> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p);
        const __m128i bytes =
            _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2)), _mm_set1_epi8(-0x78));
        const __m256i both[2] = {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
        for (int i = 0; i < 2; i++) {
            const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(both[i], 28), 28);
            w[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(low), d);
            w[2 + i] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(both[i], 4)), d);
        }
    }
};

// n d - 8 d is exact, as both of its terms are. Shifts and shuffles share two of Zen 3's four pipes: here a nibble comes by
// one shift, or by an instruction that every pipe takes. Rows from cache are added up at 7.6 GB/s a core, at 5.5 with
// signed nibbles.
template <>
struct Summands<WeightType::Q4_0> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p), minus_8d = _mm256_mul_ps(d, set1(-8));
        for (int i = 0; i < 2; i++) {
            const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 2 + 8 * i)));
            w[i] = madd(_mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(15))), d, minus_8d);
            w[2 + i] = madd(_mm256_cvtepi32_ps(_mm256_srli_epi32(both, 4)), d, minus_8d);
        }
    }
};

template <>
struct Unpack<WeightType::Q4_1> {
    static void group(const uint8_t* p, V* w) {
        const V d = half_scale(p), m = half_scale(p + 2);
        nibbles(p + 4, _mm_setzero_si128(), w);
        for (int i = 0; i < 4; i++) w[i] = _mm256_add_ps(_mm256_mul_ps(w[i], d), m);
    }
};
