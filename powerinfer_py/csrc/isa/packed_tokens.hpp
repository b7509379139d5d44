// What the versions of packed_products share. Included inside the instruction set's namespace.

// A token's activations in 8 bits: q (cols), scales and scale * sum of q for each block of 32.
struct PackedToken {
    const int8_t* q;
    const float* scales;
    const float* sums;
};

template <WeightType type>
struct Packed;
// kOffset: what is added to a quant before it is stored unsigned, taken out again through the tokens' sums.
// kBlockHalves: float16 numbers a block before the quants.
template <>
struct Packed<WeightType::Q4_0> {
    static constexpr bool kIsNibbles = true, kHasMinima = false;
    static constexpr float kOffset = 8;
    static constexpr int kBlockHalves = 1;
};
template <>
struct Packed<WeightType::Q4_1> {
    static constexpr bool kIsNibbles = true, kHasMinima = true;
    static constexpr float kOffset = 0;
    static constexpr int kBlockHalves = 2;
};
template <>
struct Packed<WeightType::Q8_0> {
    static constexpr bool kIsNibbles = false, kHasMinima = false;
    static constexpr float kOffset = 128;
    static constexpr int kBlockHalves = 1;
};

// Where the quants of a packed row begin, and the minima or, without minima, the scales, which meet the tokens' sums.
template <WeightType type>
inline const uint8_t* packed_quants(const uint8_t* row, int64_t n_blocks) {
    return row + 2 * Packed<type>::kBlockHalves * n_blocks;
}
template <WeightType type>
inline const uint8_t* packed_minima(const uint8_t* row, int64_t n_blocks) {
    return Packed<type>::kHasMinima ? row + 2 * n_blocks : row;
}
// What the sums are multiplied by: minima are added as they are, an offset is subtracted.
template <WeightType type>
inline constexpr float kSumFactor = Packed<type>::kHasMinima ? 1.0f : -Packed<type>::kOffset;

// A packed Q6_K row: the float16 scales of its blocks, then their 16 steps of 8 bits each, then their quants.
inline const uint8_t* six_bit_scales(const uint8_t* row, int64_t n_blocks) { return row + 2 * n_blocks; }
inline const uint8_t* six_bit_quants(const uint8_t* row, int64_t n_blocks) { return row + 18 * n_blocks; }
