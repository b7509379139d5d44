// Packed rows times tokens in 8 bits. Included inside the instruction set's namespace.
//
// The order of one product's sum, whatever tile computes it: run after run (block of 256 after block in Q6_K), and kWidth
// lanes of it after the other, lane l of one accumulator takes scale * scale of the token * the exact integer sum of its
// weights, the offset taken out; minima times the token's sums follow in the same accumulator. A last run of fewer than
// 16 lanes is added up apart, then to the others; then sum() of the lanes.

// Steps 2 * pair and 2 * pair + 1 of `n` lanes; `quants` points at their bytes in line 0, `high` holds their last line.
template <WeightType type, int pair>
[[gnu::always_inline]] inline void two_steps(const uint8_t* quants, int64_t line, int n, [[maybe_unused]] I high, I* w) {
    constexpr int bits = Packed<type>::kBits;
    if constexpr (bits == 8) {
        w[0] = signed_bytes(load_lanes(quants + 2 * pair * line, n));
        w[1] = signed_bytes(load_lanes(quants + (2 * pair + 1) * line, n));
    } else {
        const I both = load_lanes(quants + pair * line, n);
        w[0] = byte_bits<0, 15>(both);
        w[1] = byte_bits<4, 15>(both);
        if constexpr (bits == 5) {
            w[0] = either(w[0], byte_bits<2 * pair - 4, 16>(high));
            w[1] = either(w[1], byte_bits<2 * pair - 3, 16>(high));
        }
        if constexpr (bits == 6) {
            w[0] = either(w[0], byte_bits<4 * pair - 4, 0x30>(high));
            w[1] = either(w[1], byte_bits<4 * pair - 2, 0x30>(high));
        }
    }
}

// Adds the products of steps 2 * pair and 2 * pair + 1, and of those that follow, to the integer sums.
template <WeightType type, int MR, int NT, int pair>
[[gnu::always_inline]] inline void add_steps(const uint8_t* const* quants, const int8_t* const* q, int64_t line, int n, const I* high,
                      I (*sums)[NT]) {
    constexpr int bits = Packed<type>::kBits;
    I w[MR][2];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) two_steps<type, pair>(quants[r], line, n, high[r], w[r]);
#pragma GCC unroll 8
    for (int t = 0; t < NT; t++) {
        const I even = load_lanes(q[t] + 2 * pair * line, n), odd = load_lanes(q[t] + (2 * pair + 1) * line, n);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) sums[r][t] = add_products<bits>(sums[r][t], w[r][0], even, w[r][1], odd);
    }
    if constexpr (2 * pair + 2 < Packed<type>::kLaneWeights / 4)
        add_steps<type, MR, NT, pair + 1>(quants, q, line, n, high, sums);
}

// The scales of the lanes from lane `lane` of the row on, and what the token multiplies them by.
template <WeightType type>
inline V row_scales(const uint8_t* row, int64_t cols, int64_t lane, int n) {
    if constexpr (Packed<type>::kLaneWeights == 16) {
        const int64_t block = lane / 16;
        const uint8_t* steps = row + cols / 256 * 2 + block * 16;
        return multiply(load_signed_bytes(steps, static_cast<int>(lane % 16)), half_scale(row + 2 * block));
    }
    return load_halves(row + 2 * lane, n);
}
template <WeightType type>
inline V token_scales(const PackedToken& x, int64_t lane, int n) {
    if constexpr (Packed<type>::kLaneWeights == 16)
        return load_pairs(x.scales + lane / 16 * 8, static_cast<int>(lane % 16));
    return load_floats(x.scales + lane, n);
}

// `n` lanes from lane `lane` of the row on, which lie `offset` bytes into the lines of their run.
template <WeightType type, int MR, int NT>
[[gnu::always_inline]] inline void add_lanes(const uint8_t* const* rows, const PackedToken* x, int64_t cols, int64_t lane, int64_t offset,
                      int64_t line, int n, V (*acc)[NT]) {
    using P = Packed<type>;
    const int64_t run = lane / 16 * 16, head = packed_head_bytes<type>(cols);
    const uint8_t* quants[MR];
    const int8_t* q[NT];
    I sums[MR][NT], high[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
        quants[r] = rows[r] + head + run * 4 * kLines<type> + offset;
        high[r] = P::kBits == 5 || P::kBits == 6 ? load_lanes(quants[r] + (kLines<type> - 1) * line, n) : lane_zero();
        for (int t = 0; t < NT; t++) sums[r][t] = lane_zero();
    }
    for (int t = 0; t < NT; t++) q[t] = x[t].q + run * P::kLaneWeights + offset;
    add_steps<type, MR, NT, 0>(quants, q, line, n, high, sums);
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
        const V scales = row_scales<type>(rows[r], cols, lane, n);
        const V minima = P::kHasMinima ? load_halves(rows[r] + cols / 16 + 2 * lane, n) : scales;
#pragma GCC unroll 8
        for (int t = 0; t < NT; t++) {
            I total = finished<P::kBits>(sums[r][t]);
            if constexpr (!P::kHasMinima && !(P::kBits == 8 && kSignedBytes))
                total = lane_add(total, times_power_of_two<P::kOffset>(load_lanes(x[t].negative_sums + lane, n)));
            acc[r][t] = madd(as_floats(total), multiply(scales, token_scales<type>(x[t], lane, n)), acc[r][t]);
            if constexpr (P::kHasMinima) acc[r][t] = madd(minima, load_floats(x[t].sums + lane, n), acc[r][t]);
        }
    }
}

// The last run of a row, of fewer than 16 lanes.
template <WeightType type, int MR, int NT>
[[gnu::always_inline]] inline void add_rest(const uint8_t* const* rows, const PackedToken* x, int64_t cols, int64_t lane,
                                            int n_lanes, V (*acc)[NT]) {
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) acc[r][t] = set1(0);
    int part = 0;
    for (; part + kWidth <= n_lanes; part += kWidth)
        add_lanes<type, MR, NT>(rows, x, cols, lane + part, 4 * part, 4 * n_lanes, kWidth, acc);
    if (part < n_lanes)
        add_lanes<type, MR, NT>(rows, x, cols, lane + part, 4 * part, 4 * n_lanes, n_lanes - part, acc);
}
template <WeightType type, int MR, int NT>
[[gnu::noinline]] void add_rest_apart(const uint8_t* const* rows, const PackedToken* x, int64_t cols, int64_t lane,
                                      int n_lanes, V (*acc)[NT]) {
    add_rest<type, MR, NT>(rows, x, cols, lane, n_lanes, acc);
}

// What a tile asks for while it computes: of n bytes from `p` on in its first row it says that they are read next.
struct FetchNothing {
    void operator()(const uint8_t*, int64_t) const {}
};
// What lies kStreamAhead bytes behind them.
struct FetchStream {
    [[gnu::always_inline]] void operator()(const uint8_t* p, int64_t n) const {
        if constexpr (kStreamAhead > 0) prefetch(p + kStreamAhead, n);
    }
};

// results[r * n_tokens + t] of MR rows and NT tokens.
template <WeightType type, int MR, int NT, typename Fetch = FetchNothing>
void packed_tile(const uint8_t* const* rows, const PackedToken* x, int64_t cols, float* results, int n_tokens,
                 const Fetch& fetch = {}) {
    constexpr int lane_bytes = 4 * kLines<type>;
    const int64_t n_lanes = cols / Packed<type>::kLaneWeights, head = packed_head_bytes<type>(cols);
    V acc[MR][NT];
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) acc[r][t] = set1(0);
    int64_t lane = 0;
    for (; lane + 16 <= n_lanes; lane += 16) {
        fetch(rows[0] + head + lane * lane_bytes, 16 * lane_bytes);
#pragma GCC unroll 4
        for (int part = 0; part < 16; part += kWidth)
            add_lanes<type, MR, NT>(rows, x, cols, lane + part, 4 * part, 64, kWidth, acc);
    }
    // The last run, and the scales of the row behind: what is asked for in part is left out by the hardware.
    fetch(rows[0] + head + lane * lane_bytes, head + (n_lanes - lane) * lane_bytes);
    if (lane < n_lanes) {
        V rest[MR][NT];
        // With more products it is apart, so that the sums of whole runs never leave their registers.
        constexpr auto add_last = MR * NT == 1 ? add_rest<type, MR, NT> : add_rest_apart<type, MR, NT>;
        add_last(rows, x, cols, lane, static_cast<int>(n_lanes - lane), rest);
        for (int r = 0; r < MR; r++)
            for (int t = 0; t < NT; t++) acc[r][t] = add(acc[r][t], rest[r][t]);
    }
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) results[r * n_tokens + t] = sum(acc[r][t]);
}

// All rows times NT tokens, MR rows at a time.
template <WeightType type, int MR, int NT>
void packed_rows(const uint8_t* const* rows, int n_rows, const PackedToken* x, int64_t cols, float* results,
                 int n_tokens) {
    int r = 0;
    for (; r + MR <= n_rows; r += MR)
        packed_tile<type, MR, NT>(rows + r, x, cols, results + r * n_tokens, n_tokens);
    for (; r < n_rows; r++)
        packed_tile<type, 1, NT>(rows + r, x, cols, results + r * n_tokens, n_tokens);
}

// Rows one after the other times one token; `n_ahead` more follow them in `rows`, which are only asked for.
template <WeightType type>
void packed_rows_of_one(
    const uint8_t* const* rows, int n_rows, int n_ahead, const PackedToken* x, int64_t cols, float* results) {
    const int64_t n_bytes = packed_head_bytes<type>(cols) + cols / 8 * Packed<type>::kBits;
    const FetchAhead fetch(rows, n_rows, n_ahead, n_bytes);
    for (int r = 0; r < n_rows; r++) {
        fetch.before(r);
        if (fetch.is_stream)
            packed_tile<type, 1, 1>(rows + r, x, cols, results + r, 1, FetchStream{});
        else
            packed_tile<type, 1, 1>(rows + r, x, cols, results + r, 1);
    }
}

// results[r * n_tokens + t]; `n_ahead` rows follow those of the products.
template <WeightType type>
void packed_products(
    const uint8_t* const* rows, int n_rows, int n_ahead, const PackedToken* x, int n_tokens, int64_t cols,
    float* results) {
    if (n_tokens == 1) return packed_rows_of_one<type>(rows, n_rows, n_ahead, x, cols, results);
    int t = 0;
    for (; t + 4 <= n_tokens; t += 4)
        packed_rows<type, kPackedRows, 4>(rows, n_rows, x + t, cols, results + t, n_tokens);
    switch (n_tokens - t) {
        case 3: return packed_rows<type, kPackedRows, 3>(rows, n_rows, x + t, cols, results + t, n_tokens);
        case 2: return packed_rows<type, kPackedRows, 2>(rows, n_rows, x + t, cols, results + t, n_tokens);
        case 1: return packed_rows<type, kPackedRows, 1>(rows, n_rows, x + t, cols, results + t, n_tokens);
    }
}

// with_type() of the types whose rows can be packed; does nothing for others.
template <typename Action>
void with_packed_type(WeightType type, const Action& action) {
    switch (type) {
        case WeightType::Q4_0: return action(TypeTag<WeightType::Q4_0>{});
        case WeightType::Q4_1: return action(TypeTag<WeightType::Q4_1>{});
        case WeightType::Q5_0: return action(TypeTag<WeightType::Q5_0>{});
        case WeightType::Q5_1: return action(TypeTag<WeightType::Q5_1>{});
        case WeightType::Q8_0: return action(TypeTag<WeightType::Q8_0>{});
        case WeightType::Q6_K: return action(TypeTag<WeightType::Q6_K>{});
        default: return;
    }
}
