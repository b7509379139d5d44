// Vectors for any CPU: four floats that every supported compiler maps to the baseline's registers (SSE2, NEON, ...).
// Included inside the instruction set's namespace. There is no fused multiply-add here: products round before the sum.

constexpr int kWidth = 4;
typedef float V __attribute__((vector_size(16)));

inline V load(const void* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
inline V set1(float a) { return V{a, a, a, a}; }
inline V add(V a, V b) { return a + b; }
inline V madd(V a, V b, V c) { return a * b + c; }
// Bit i: number i is not zero. NaN is not.
inline uint32_t not_zero(V v) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < 4; i++) bits |= static_cast<uint32_t>(v[i] != 0) << i;
    return bits;
}
inline float madd1(float a, float b, float c) { return a * b + c; }
inline float sum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }

// Micro-tiles: 8 accumulators, 4 rows and 1 token live in the 16 registers of SSE2.
constexpr int kTileTokens = 2;
constexpr int kRowTokens = 8;
// Sums of products with striped tokens: 2 rows and 4 tokens.
constexpr int kTileSums = 8;
constexpr int kFewRows = 2;
// Rows of floats that meet one token at once: the sums of one alone would wait for each other.
constexpr int kFloatRows = 4;
// Packed rows that meet several tokens at once.
constexpr int kPackedRows = 1;
constexpr int kStreamAhead = 0;

inline V half_scale(const uint8_t* p) { return set1(read_half(p)); }

inline void to_half(const float* x, uint16_t* y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = half_from_float(x[i]);
}

inline void store_scaled(Bytes16 q, float scale, float minimum, float* out) {
    for (int i = 0; i < 16; i++) out[i] = static_cast<float>(static_cast<int8_t>(q[i])) * scale - minimum;
}
