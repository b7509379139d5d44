// Packed rows: the weights of a row in an order that integer dot products take as it is. Included inside the instruction
// set's namespace.
//
// A row is the float16 scales of all its blocks of 32, for types with minima then their float16 minima, then the quants
// in runs of 16 blocks, the last run having what is left. In a run of m blocks, block l owns lane l: four bytes in each
// line of 4 m bytes. A step is four neighbouring weights of every block, one byte each:
//   8 bits: 8 lines; line s holds step s.
//   4 bits: 4 lines; line i holds step 2 i in the low half of its bytes and step 2 i + 1 in the high half.
//   5 bits: the 4 lines of 4 bits, then a line whose bit s is the fifth bit of step s.
// So eight dot products of whole registers give the sums of 16 blocks, which meet their scales as these lie in memory.
//
// Q6_K: the float16 scales of all blocks of 256, then their 16 steps each, then 192 bytes a block: 16 lanes of 16
// weights; two lines of 4 bits as above, then a line whose bits 2 s and 2 s + 1 are the high ones of step s.
// Q8_0 is stored with 128 added. Q4_K becomes Q4_1 and Q5_K Q5_1, each scale and minimum rounded to float16 once: of
// all types these alone grow, by 11 and 9 %.

template <WeightType type>
struct Packed;
// kBits: of a quant as it is multiplied. kOffset: the power of two that was added to it. kLaneWeights: of one scale.
template <>
struct Packed<WeightType::Q4_0> {
    static constexpr int kBits = 4, kOffset = 3, kLaneWeights = 32;
    static constexpr bool kHasMinima = false;
};
template <>
struct Packed<WeightType::Q4_1> {
    static constexpr int kBits = 4, kOffset = 0, kLaneWeights = 32;
    static constexpr bool kHasMinima = true;
};
template <>
struct Packed<WeightType::Q5_0> {
    static constexpr int kBits = 5, kOffset = 4, kLaneWeights = 32;
    static constexpr bool kHasMinima = false;
};
template <>
struct Packed<WeightType::Q5_1> {
    static constexpr int kBits = 5, kOffset = 0, kLaneWeights = 32;
    static constexpr bool kHasMinima = true;
};
template <>
struct Packed<WeightType::Q8_0> {
    static constexpr int kBits = 8, kOffset = 7, kLaneWeights = 32;
    static constexpr bool kHasMinima = false;
};
template <>
struct Packed<WeightType::Q6_K> {
    static constexpr int kBits = 6, kOffset = 5, kLaneWeights = 16;
    static constexpr bool kHasMinima = false;
};

// Lines of a run, each of 4 bytes a lane.
template <WeightType type>
constexpr int kLines = Packed<type>::kBits * Packed<type>::kLaneWeights / 32;

// Bytes of a row before its quants.
template <WeightType type>
inline int64_t packed_head_bytes(int64_t cols) {
    if (Packed<type>::kLaneWeights == 16) return cols / 256 * 18;
    return cols / 32 * (Packed<type>::kHasMinima ? 4 : 2);
}

inline void put_half(uint8_t* halves, int64_t i, uint16_t value) { __builtin_memcpy(halves + 2 * i, &value, 2); }

// Packing is to keep up with memory, and reads a file's bytes once: everything below works on 16 bytes at a time, as the
// compiler's own vectors, which every instruction set has: from cache, Q4_0 at 12 GB/s a core on Zen 4, byte by byte
// at 0.4.
typedef uint32_t Words4 __attribute__((vector_size(16)));
#if defined(__clang__)
#define POWERINFER_WORDS_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define POWERINFER_WORDS_OF(a, b, ...) __builtin_shuffle(a, b, Words4{__VA_ARGS__})
#endif

inline Words4 load_words(const uint8_t* p) {
    Words4 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline void store_bytes(uint8_t* p, Bytes16 v) { __builtin_memcpy(p, &v, sizeof v); }

// Of four lanes' 16 bytes each, every four neighbours side by side: steps[i] has word i of each lane.
inline void transpose_words(const uint8_t* const* lanes, Words4* steps) {
    const Words4 a = load_words(lanes[0]), b = load_words(lanes[1]), c = load_words(lanes[2]), d = load_words(lanes[3]);
    const Words4 ab = POWERINFER_WORDS_OF(a, b, 0, 4, 1, 5), ab_high = POWERINFER_WORDS_OF(a, b, 2, 6, 3, 7);
    const Words4 cd = POWERINFER_WORDS_OF(c, d, 0, 4, 1, 5), cd_high = POWERINFER_WORDS_OF(c, d, 2, 6, 3, 7);
    steps[0] = POWERINFER_WORDS_OF(ab, cd, 0, 1, 4, 5);
    steps[1] = POWERINFER_WORDS_OF(ab, cd, 2, 3, 6, 7);
    steps[2] = POWERINFER_WORDS_OF(ab_high, cd_high, 0, 1, 4, 5);
    steps[3] = POWERINFER_WORDS_OF(ab_high, cd_high, 2, 3, 6, 7);
}
#undef POWERINFER_WORDS_OF

// Four lanes' part of each line of a run.
template <WeightType type>
inline void line_words(const Words4* steps, Words4* words) {
    constexpr int bits = Packed<type>::kBits, n_steps = Packed<type>::kLaneWeights / 4;
    if constexpr (bits == 8) {
        for (int s = 0; s < n_steps; s++) words[s] = steps[s];
    } else {
        const Words4 nibbles = Words4{} + 0x0f0f0f0fu;
        for (int i = 0; i < n_steps / 2; i++)
            words[i] = (steps[2 * i] & nibbles) | (steps[2 * i + 1] & nibbles) << 4;
    }
    if constexpr (bits == 5 || bits == 6) {
        const Words4 high_bits = Words4{} + (bits == 5 ? 0x01010101u : 0x03030303u);
        Words4 high = {};
        for (int s = 0; s < n_steps; s++) high |= (steps[s] >> 4 & high_bits) << (s * (bits - 4));
        words[n_steps / 2] = high;
    }
}

// `n_lanes` times kLaneWeights quants of one byte each, in the order of the weights, as the lines of a run.
template <WeightType type>
inline void pack_run(const uint8_t* w, int n_lanes, uint8_t* lines) {
    constexpr int lane_weights = Packed<type>::kLaneWeights;
    for (int lane = 0; lane < n_lanes; lane += 4) {
        Words4 steps[lane_weights / 4], words[kLines<type>];
        const int n = n_lanes - lane < 4 ? n_lanes - lane : 4;
        for (int half = 0; half < lane_weights / 16; half++) {
            const uint8_t* lanes[4];
            for (int i = 0; i < 4; i++) lanes[i] = w + (lane + (i < n ? i : 0)) * lane_weights + 16 * half;
            transpose_words(lanes, steps + 4 * half);
        }
        line_words<type>(steps, words);
        uint8_t* out = lines + 4 * lane;
        if (n == 4)
            for (int i = 0; i < kLines<type>; i++) __builtin_memcpy(out + i * 4 * n_lanes, &words[i], 16);
        else
            for (int i = 0; i < kLines<type>; i++)
                __builtin_memcpy(out + i * 4 * n_lanes, &words[i], 4 * static_cast<uint64_t>(n));
    }
}

// 16 where a bit of `bits` is set, 0 elsewhere: the fifth bits of 16 weights.
inline Bytes16 fifth_bits(uint16_t bits) {
    typedef uint64_t Long2 __attribute__((vector_size(16)));
    constexpr uint64_t kEveryByte = 0x0101010101010101u;
    const Bytes16 eight_times = reinterpret_cast<Bytes16>(Long2{(bits & 255u) * kEveryByte, (bits >> 8) * kEveryByte});
    const Bytes16 of_each = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return reinterpret_cast<Bytes16>((eight_times & of_each) != 0) & 16;
}

// The quants of a file's block of 32, all of them non-negative.
template <WeightType type>
inline void stored_quants(const uint8_t* block, uint8_t* w) {
    if constexpr (type == WeightType::Q8_0) {
        for (int i = 0; i < 32; i += 16) store_bytes(w + i, load_bytes(block + 2 + i) ^ 0x80);
    } else {
        constexpr bool five = type == WeightType::Q5_0 || type == WeightType::Q5_1;
        const uint8_t* bits = block + (Packed<type>::kHasMinima ? 4 : 2);
        const Bytes16 nibbles = load_bytes(bits + (five ? 4 : 0));
        Bytes16 low = nibbles & 15, high = nibbles >> 4;
        if constexpr (five) {
            low |= fifth_bits(read_u16(bits));
            high |= fifth_bits(read_u16(bits + 2));
        }
        store_bytes(w, low);
        store_bytes(w + 16, high);
    }
}

template <WeightType type>
inline void pack_blocks(const uint8_t* row, int64_t cols, uint8_t* out) {
    const int64_t n_blocks = cols / 32;
    uint8_t* lines = out + packed_head_bytes<type>(cols);
    for (int64_t first = 0; first < n_blocks; first += 16) {
        uint8_t w[512];
        const int n = n_blocks - first < 16 ? static_cast<int>(n_blocks - first) : 16;
        for (int b = 0; b < n; b++) {
            const uint8_t* block = row + (first + b) * Group<type>::kBytes;
            put_half(out, first + b, read_u16(block));
            if constexpr (Packed<type>::kHasMinima) put_half(out, n_blocks + first + b, read_u16(block + 2));
            stored_quants<type>(block, w + 32 * b);
        }
        pack_run<type>(w, n, lines);
        lines += kLines<type> * 4 * n;
    }
}

// The 256 quants of a Q6_K block of a file, 0 to 63.
inline void six_bit_weights(const uint8_t* block, uint8_t* w) {
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i += 16) {
            const Bytes16 even = load_bytes(block + 64 * half + i), odd = load_bytes(block + 64 * half + 32 + i);
            const Bytes16 high = load_bytes(block + 128 + 32 * half + i);
            uint8_t* out = w + 128 * half + i;
            store_bytes(out, (even & 15) | (high & 3) << 4);
            store_bytes(out + 32, (odd & 15) | (high >> 2 & 3) << 4);
            store_bytes(out + 64, even >> 4 | (high >> 4 & 3) << 4);
            store_bytes(out + 96, odd >> 4 | high >> 6 << 4);
        }
}

inline void pack_six_bits(const uint8_t* row, int64_t n_blocks, uint8_t* out) {
    uint8_t w[256];
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t* block = row + b * 210;
        put_half(out, b, read_u16(block + 208));
        __builtin_memcpy(out + 2 * n_blocks + b * 16, block + 192, 16);
        six_bit_weights(block, w);
        pack_run<WeightType::Q6_K>(w, 16, out + 18 * n_blocks + b * 192);
    }
}

// The 256 quants of a block of Q4_K or Q5_K, whose scales and minima become float16 numbers of 32 weights each.
template <WeightType type>
inline void superblock_weights(const uint8_t* block, uint8_t* w) {
    const uint8_t* nibbles = block + (type == WeightType::Q4_K ? 16 : 48);
#pragma GCC unroll 4
    for (int run = 0; run < 4; run++)  // unrolled so that shifts are constants
        for (int i = 0; i < 32; i += 16) {
            const Bytes16 both = load_bytes(nibbles + 32 * run + i);
            Bytes16 even = both & 15, odd = both >> 4;
            if constexpr (type == WeightType::Q5_K) {
                const Bytes16 high = load_bytes(block + 16 + i) >> (2 * run);
                even |= (high & 1) << 4;
                odd |= (high >> 1 & 1) << 4;
            }
            store_bytes(w + 64 * run + i, even);
            store_bytes(w + 64 * run + 32 + i, odd);
        }
}

template <WeightType type, WeightType packed>
inline void pack_superblocks(const uint8_t* row, int64_t cols, uint8_t* out) {
    const int64_t n_blocks = cols / 32;
    uint8_t* lines = out + 4 * n_blocks;
    for (int64_t first = 0; first < n_blocks; first += 16) {  // two blocks of 256, or the last one
        uint8_t w[512];
        const int n = n_blocks - first < 16 ? 8 : 16;
        for (int b = 0; b < n; b += 8) {
            const uint8_t* block = row + (first + b) / 8 * Group<type>::kBytes;
            const float d = read_half(block), d_minimum = read_half(block + 2);
            for (int j = 0; j < 8; j++) {
                const ScaleMin both = scale_min(block + 4, j);
                put_half(out, first + b + j, half_from_float(d * static_cast<float>(both.scale)));
                put_half(out, n_blocks + first + b + j, half_from_float(-d_minimum * static_cast<float>(both.minimum)));
            }
            superblock_weights<type>(block, w + 32 * b);
        }
        pack_run<packed>(w, n, lines);
        lines += kLines<packed> * 4 * n;
    }
}

// A row of a file (`type` is the file's) as a packed row.
void pack_row(WeightType type, const uint8_t* row, int64_t cols, uint8_t* out) {
    switch (type) {
        case WeightType::Q4_0: return pack_blocks<WeightType::Q4_0>(row, cols, out);
        case WeightType::Q4_1: return pack_blocks<WeightType::Q4_1>(row, cols, out);
        case WeightType::Q5_0: return pack_blocks<WeightType::Q5_0>(row, cols, out);
        case WeightType::Q5_1: return pack_blocks<WeightType::Q5_1>(row, cols, out);
        case WeightType::Q8_0: return pack_blocks<WeightType::Q8_0>(row, cols, out);
        case WeightType::Q4_K: return pack_superblocks<WeightType::Q4_K, WeightType::Q4_1>(row, cols, out);
        case WeightType::Q5_K: return pack_superblocks<WeightType::Q5_K, WeightType::Q5_1>(row, cols, out);
        case WeightType::Q6_K: return pack_six_bits(row, cols / 256, out);
        default: return;  // the caller packs these alone
    }
}
