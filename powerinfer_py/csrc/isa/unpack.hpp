// From stored rows to vectors and to float32 buffers. Included inside the instruction set's namespace.

// Groups without a version of their own in the vector header go through memory.
template <WeightType type>
struct Unpack {
    static void group(const uint8_t* p, V* w) {
        float buffer[32];
        Group<type>::to_float(p, buffer);
        for (int i = 0; i < 32 / kWidth; i++) w[i] = load(buffer + i * kWidth);
    }
};

// Weights [begin, begin + n) of a row into `out`. begin is a multiple of 256, so of every group; n is a number of whole
// groups for types with blocks.
template <WeightType type>
void dequantize(const uint8_t* row, int64_t begin, int64_t n, float* out) {
    using G = Group<type>;
    const uint8_t* p = row + begin / G::kWeights * G::kBytes;
    const int64_t n_groups = n / G::kWeights;
    for (int64_t g = 0; g < n_groups; g++) {
        if constexpr (G::kWeights == 32) {
            V w[32 / kWidth];
            Unpack<type>::group(p + g * G::kBytes, w);
            for (int i = 0; i < 32 / kWidth; i++) store(out + g * 32 + i * kWidth, w[i]);
        } else {
            G::to_float(p + g * G::kBytes, out + g * G::kWeights);
        }
    }
    if constexpr (G::kWeightBytes != 0)
        G::to_float(p + n_groups * G::kBytes, out + n_groups * 32, n - n_groups * 32);
}

// Asks for the bytes of weights [begin, begin + n) of a row ahead of their use; both are multiples of a group.
template <WeightType type>
void fetch(const uint8_t* row, int64_t begin, int64_t n) {
    using G = Group<type>;
    const uint8_t* p = row + begin / G::kWeights * G::kBytes;
    for (int64_t i = 0; i < n / G::kWeights * G::kBytes; i += 64) __builtin_prefetch(p + i);
}

// Calls action(tag) for the type; the tag's `value` is a constant.
template <WeightType type>
struct TypeTag {
    static constexpr WeightType value = type;
};

template <typename Action>
void with_type(WeightType type, const Action& action) {
    switch (type) {
        case WeightType::F32: return action(TypeTag<WeightType::F32>{});
        case WeightType::F16: return action(TypeTag<WeightType::F16>{});
        case WeightType::BF16: return action(TypeTag<WeightType::BF16>{});
        case WeightType::Q4_0: return action(TypeTag<WeightType::Q4_0>{});
        case WeightType::Q4_1: return action(TypeTag<WeightType::Q4_1>{});
        case WeightType::Q5_0: return action(TypeTag<WeightType::Q5_0>{});
        case WeightType::Q5_1: return action(TypeTag<WeightType::Q5_1>{});
        case WeightType::Q8_0: return action(TypeTag<WeightType::Q8_0>{});
        case WeightType::Q2_K: return action(TypeTag<WeightType::Q2_K>{});
        case WeightType::Q3_K: return action(TypeTag<WeightType::Q3_K>{});
        case WeightType::Q4_K: return action(TypeTag<WeightType::Q4_K>{});
        case WeightType::Q5_K: return action(TypeTag<WeightType::Q5_K>{});
        case WeightType::Q6_K: return action(TypeTag<WeightType::Q6_K>{});
    }
}
