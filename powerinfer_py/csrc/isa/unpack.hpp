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

// What sums of rows add: the same numbers, where zero may have the other sign and infinity may be NaN.
template <WeightType type>
struct Summands {
    static void group(const uint8_t* p, V* w) { Unpack<type>::group(p, w); }
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

// Asks for n bytes ahead of their use. Into the second cache, whose queue of misses is twice as long as the first's: bare
// reads of a random third of rows of 2304 bytes come at 30 GB/s this way, at 22 through the first (Zen 4, two cores).
// Inlined: GCC leaves out calls of a function that does nothing but prefetch.
[[gnu::always_inline]] inline void prefetch(const uint8_t* p, int64_t n) {
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// The same for weights [begin, begin + n) of a row; both are multiples of a group.
template <WeightType type>
[[gnu::always_inline]] inline void fetch(const uint8_t* row, int64_t begin, int64_t n) {
    using G = Group<type>;
    prefetch(row + begin / G::kWeights * G::kBytes, n / G::kWeights * G::kBytes);
}

inline bool lie_side_by_side(const uint8_t* const* rows, int n_rows, int64_t row_bytes) {
    return rows[n_rows - 1] - rows[0] == (n_rows - 1) * row_bytes;
}

// Rows that one token meets one after the other, and how they are asked for ahead of their use.
//
// Rows that lie side by side are a single stream, which the hardware fetches by itself; prefetches, or two rows of a page
// at once, disturb it: on Zen 4, one core, 27 GB/s instead of 12, as much as a bare read (where prefetches help, as on
// Zen 3, there is `kStreamAhead`). Rows that lie apart begin with
// misses that the hardware does not foresee, and end before it has seen a stream in them: 8 to 9 GB/s a core left to
// themselves, 12 with the next row asked for bit by bit, 13 to 14 with all of it at once, 15 to 16 three rows ahead.
constexpr int kRowsAhead = 3;

struct FetchAhead {
    const uint8_t* const* rows;
    int n_rows;
    int64_t row_bytes;
    bool is_stream;

    // `n` to be computed, then `n_ahead` that will be asked for next: these tell whether a single one lies apart.
    FetchAhead(const uint8_t* const* given, int n, int n_ahead, int64_t n_bytes)
        : rows(given), n_rows(n + n_ahead), row_bytes(n_bytes),
          is_stream(lie_side_by_side(given, n_ahead ? n + 1 : n, n_bytes)) {}

    // To be called before row r is computed.
    [[gnu::always_inline]] void before(int r) const {
        if (!is_stream && r + kRowsAhead < n_rows) prefetch(rows[r + kRowsAhead], row_bytes);
    }
};

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
