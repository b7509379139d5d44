// How a block of each weight type becomes float32, in portable C++: the definition for the vector versions too.
// Included inside the instruction set's namespace. Every value is rounded exactly as the formula of the format reads:
// scale times integer, then plus or minus the minimum.

inline float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }

inline uint16_t read_u16(const uint8_t* p) {
    uint16_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

// Exact, subnormal numbers included; branch-free so that loops over it vectorise.
inline float float_from_half(uint16_t h) {
    const uint32_t magnitude = (h & 0x7fffu) << 13;
    const float finite = float_from_bits(magnitude) * 0x1p112f;
    const uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits_of(finite);
    return float_from_bits(bits | (h & 0x8000u) << 16);
}
inline float read_half(const uint8_t* p) { return float_from_half(read_u16(p)); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t half_from_float(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 puts the unit in the last place at 2^-24
        half = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    return static_cast<uint16_t>(sign | half);
}

// A group is what one step unpacks: a block, or 32 weights of a type without blocks. K-quants have 256.
template <WeightType type>
struct Group;

template <>
struct Group<WeightType::F32> {
    static constexpr int kWeights = 32, kBytes = 128, kWeightBytes = 4;
    static void to_float(const uint8_t* p, float* w, int64_t n = 32) {
        __builtin_memcpy(w, p, 4 * static_cast<uint64_t>(n));
    }
};

template <>
struct Group<WeightType::F16> {
    static constexpr int kWeights = 32, kBytes = 64, kWeightBytes = 2;
    static void to_float(const uint8_t* p, float* w, int64_t n = 32) {
        for (int64_t i = 0; i < n; i++) w[i] = read_half(p + 2 * i);
    }
};

template <>
struct Group<WeightType::BF16> {
    static constexpr int kWeights = 32, kBytes = 64, kWeightBytes = 2;
    static void to_float(const uint8_t* p, float* w, int64_t n = 32) {
        for (int64_t i = 0; i < n; i++) w[i] = float_from_bits(static_cast<uint32_t>(read_u16(p + 2 * i)) << 16);
    }
};

template <>
struct Group<WeightType::Q8_0> {
    static constexpr int kWeights = 32, kBytes = 34, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const float d = read_half(p);
        for (int i = 0; i < 32; i++) w[i] = static_cast<float>(static_cast<int8_t>(p[2 + i])) * d;
    }
};

template <>
struct Group<WeightType::Q4_0> {
    static constexpr int kWeights = 32, kBytes = 18, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const float d = read_half(p);
        for (int i = 0; i < 16; i++) {
            w[i] = static_cast<float>((p[2 + i] & 15) - 8) * d;
            w[i + 16] = static_cast<float>((p[2 + i] >> 4) - 8) * d;
        }
    }
};

template <>
struct Group<WeightType::Q4_1> {
    static constexpr int kWeights = 32, kBytes = 20, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const float d = read_half(p), m = read_half(p + 2);
        for (int i = 0; i < 16; i++) {
            w[i] = static_cast<float>(p[4 + i] & 15) * d + m;
            w[i + 16] = static_cast<float>(p[4 + i] >> 4) * d + m;
        }
    }
};

// Bit i of the four bytes at `p`, as the fifth bit of weight i; `nibbles` are 16 bytes.
inline void five_bit_values(const uint8_t* p, const uint8_t* nibbles, int* q) {
    uint32_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    for (int i = 0; i < 16; i++) {
        q[i] = (nibbles[i] & 15) | static_cast<int>(bits >> i & 1u) << 4;
        q[i + 16] = nibbles[i] >> 4 | static_cast<int>(bits >> (i + 16) & 1u) << 4;
    }
}

template <>
struct Group<WeightType::Q5_0> {
    static constexpr int kWeights = 32, kBytes = 22, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        int q[32];
        five_bit_values(p + 2, p + 6, q);
        const float d = read_half(p);
        for (int i = 0; i < 32; i++) w[i] = static_cast<float>(q[i] - 16) * d;
    }
};

template <>
struct Group<WeightType::Q5_1> {
    static constexpr int kWeights = 32, kBytes = 24, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        int q[32];
        five_bit_values(p + 4, p + 8, q);
        const float d = read_half(p), m = read_half(p + 2);
        for (int i = 0; i < 32; i++) w[i] = static_cast<float>(q[i]) * d + m;
    }
};

// Sixteen bytes at once, in the compiler's own vectors: shifts and masks of K-quants.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

inline Bytes16 load_bytes(const uint8_t* p) {
    Bytes16 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// out[i] = scale * q[i] - minimum for q as signed bytes. Each instruction set has its own. The loops over runs below are
// unrolled so that their shifts are constants: bytes have no shift by a variable.
void store_scaled(Bytes16 q, float scale, float minimum, float* out);

template <>
struct Group<WeightType::Q2_K> {
    static constexpr int kWeights = 256, kBytes = 84, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const uint8_t* scales = p;
        const float d = read_half(p + 80), d_min = read_half(p + 82);
#pragma GCC unroll 16
        for (int run = 0; run < 16; run++) {  // 16 weights share a scale
            const Bytes16 q = load_bytes(p + 16 + 32 * (run / 8) + 16 * (run % 2));
            const float scale = d * static_cast<float>(scales[run] & 15);
            const float minimum = d_min * static_cast<float>(scales[run] >> 4);
            store_scaled(q >> (2 * (run / 2 % 4)) & 3, scale, minimum, w + 16 * run);
        }
    }
};

template <>
struct Group<WeightType::Q3_K> {
    static constexpr int kWeights = 256, kBytes = 110, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const uint8_t* packed = p + 96;
        const float d = read_half(p + 108);
#pragma GCC unroll 16
        for (int run = 0; run < 16; run++) {  // 16 weights share a scale of 4 + 2 bits
            const int low = run < 8 ? packed[run] & 15 : packed[run - 8] >> 4;
            const int high = packed[8 + run % 4] >> (2 * (run / 4)) & 3;
            const float scale = d * static_cast<float>((low | high << 4) - 32);
            const Bytes16 q = load_bytes(p + 32 + 32 * (run / 8) + 16 * (run % 2));
            const Bytes16 high_bits = load_bytes(p + 16 * (run % 2)) >> (run / 2) & 1;
            store_scaled((q >> (2 * (run / 2 % 4)) & 3) + high_bits * 4 - 4, scale, 0.0f, w + 16 * run);
        }
    }
};

// Scale and minimum (6 bits each) of run `i` of 32 weights, out of the 12 bytes Q4_K and Q5_K pack them into.
struct ScaleMin {
    int scale, minimum;
};
inline ScaleMin scale_min(const uint8_t* p, int i) {
    if (i < 4) return {p[i] & 63, p[i + 4] & 63};
    return {(p[i + 4] & 15) | (p[i - 4] >> 6) << 4, p[i + 4] >> 4 | (p[i] >> 6) << 4};
}

template <>
struct Group<WeightType::Q4_K> {
    static constexpr int kWeights = 256, kBytes = 144, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const float d = read_half(p), d_min = read_half(p + 2);
#pragma GCC unroll 8
        for (int run = 0; run < 8; run++) {
            const ScaleMin packed = scale_min(p + 4, run);
            const float scale = d * static_cast<float>(packed.scale);
            const float minimum = d_min * static_cast<float>(packed.minimum);
            for (int i = 0; i < 32; i += 16) {
                const Bytes16 q = load_bytes(p + 16 + 32 * (run / 2) + i);
                store_scaled(q >> (4 * (run % 2)) & 15, scale, minimum, w + 32 * run + i);
            }
        }
    }
};

template <>
struct Group<WeightType::Q5_K> {
    static constexpr int kWeights = 256, kBytes = 176, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const float d = read_half(p), d_min = read_half(p + 2);
#pragma GCC unroll 8
        for (int run = 0; run < 8; run++) {
            const ScaleMin packed = scale_min(p + 4, run);
            const float scale = d * static_cast<float>(packed.scale);
            const float minimum = d_min * static_cast<float>(packed.minimum);
            for (int i = 0; i < 32; i += 16) {
                const Bytes16 q = load_bytes(p + 48 + 32 * (run / 2) + i) >> (4 * (run % 2)) & 15;
                const Bytes16 high_bits = load_bytes(p + 16 + i) >> run & 1;
                store_scaled(q + high_bits * 16, scale, minimum, w + 32 * run + i);
            }
        }
    }
};

template <>
struct Group<WeightType::Q6_K> {
    static constexpr int kWeights = 256, kBytes = 210, kWeightBytes = 0;
    static void to_float(const uint8_t* p, float* w) {
        const uint8_t* scales = p + 192;
        const float d = read_half(p + 208);
#pragma GCC unroll 16
        for (int run = 0; run < 16; run++) {  // 16 weights share a scale
            const int half = run / 8, quarter = run % 8 / 2;
            const Bytes16 low = load_bytes(p + 64 * half + 32 * (quarter % 2) + 16 * (run % 2));
            const Bytes16 high = load_bytes(p + 128 + 32 * half + 16 * (run % 2));
            const float scale = d * static_cast<float>(static_cast<int8_t>(scales[run]));
            const Bytes16 q = (low >> (4 * (quarter / 2)) & 15) | (high >> (2 * quarter) & 3) << 4;
            store_scaled(q - 32, scale, 0.0f, w + 16 * run);
        }
    }
};
