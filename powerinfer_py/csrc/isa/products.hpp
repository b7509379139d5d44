// Dot products of rows and tokens. Included inside the instruction set's namespace.
//
// The order of one product's sum is its definition, whatever micro-tile computes it: column c is added into lane
// c mod kWidth of one accumulator, in ascending order, over the whole vectors of the row; the lanes are then added in
// the fixed order of sum(); columns beyond the last whole vector follow one by one. Hence a product has the same bits
// in a tile of 4 x 4, of 4 x 1, alone, and straight from the stored row.

constexpr int kRowTile = 8;
// Columns dequantised at a time: 8 rows of 512 floats are 16 KB, which leaves room in L1 for the tokens' 8 KB.
constexpr int64_t kChunkCols = 512;
constexpr int kMaxTokens = 64;
// Few tokens (kFewTokens) take so many rows at once. With more tokens than that, unpacking into a buffer is paid back: at
// four tokens it took 3.3 times the time of one.
constexpr int kMaxRows = 64;

// acc[t * kRowTile + r] += products of `n` columns (a multiple of kWidth) of MR rows and NR tokens.
template <int MR, int NR>
void micro_tile(const float* w, const float* const* x, int64_t x_begin, int64_t n, V* acc) {
    V sums[NR][MR];
    for (int t = 0; t < NR; t++)
        for (int r = 0; r < MR; r++) sums[t][r] = acc[t * kRowTile + r];
    for (int64_t c = 0; c < n; c += kWidth) {
        V rows[MR];
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) rows[r] = load(w + r * kChunkCols + c);
#pragma GCC unroll 8
        for (int t = 0; t < NR; t++) {
            const V token = load(x[t] + x_begin + c);
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) sums[t][r] = madd(rows[r], token, sums[t][r]);
        }
    }
    for (int t = 0; t < NR; t++)
        for (int r = 0; r < MR; r++) acc[t * kRowTile + r] = sums[t][r];
}

template <int MR, int NR>
void tile_rows(const float* w, const float* const* x, int n_tokens, int64_t x_begin, int64_t n, V* acc) {
    int t = 0;
    for (; t + NR <= n_tokens; t += NR) micro_tile<MR, NR>(w, x + t, x_begin, n, acc + t * kRowTile);
    for (; t < n_tokens; t++) micro_tile<MR, 1>(w, x + t, x_begin, n, acc + t * kRowTile);
}

inline float finish(V acc, const float* w_rest, const float* x_rest, int64_t n) {
    float total = sum(acc);
    for (int64_t i = 0; i < n; i++) total = madd1(w_rest[i], x_rest[i], total);
    return total;
}

// results[r * n_tokens + t] for up to kRowTile rows and kMaxTokens tokens, each row dequantised once, in chunks.
template <WeightType type>
void products_through_buffer(
    const uint8_t* const* rows, int n_rows, const float* const* x, int n_tokens, int64_t cols, float* results) {
    alignas(64) float w[kRowTile * kChunkCols];
    alignas(64) V acc[kMaxTokens * kRowTile];
    for (int i = 0; i < n_tokens * kRowTile; i++) acc[i] = set1(0);
    int64_t begin = 0, whole = 0;
    for (; begin < cols; begin += kChunkCols) {
        const int64_t n = cols - begin < kChunkCols ? cols - begin : kChunkCols;
        whole = n / kWidth * kWidth;
        const int64_t ahead = cols - begin - n < kChunkCols ? cols - begin - n : kChunkCols;
        for (int r = 0; r < n_rows; r++) {
            fetch<type>(rows[r], begin + n, ahead);
            dequantize<type>(rows[r], begin, n, w + r * kChunkCols);
        }
        int r = 0;
        for (; r + 4 <= n_rows; r += 4)
            tile_rows<4, kTileTokens>(w + r * kChunkCols, x, n_tokens, begin, whole, acc + r);
        for (; r < n_rows; r++) tile_rows<1, kRowTokens>(w + r * kChunkCols, x, n_tokens, begin, whole, acc + r);
        if (n < kChunkCols) break;
    }
    // The rest of the last chunk is still in the buffer; there is none if the columns end with a whole chunk.
    const int64_t rest = cols % kWidth, rest_begin = cols - rest;
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tokens; t++)
            results[r * n_tokens + t] =
                finish(acc[t * kRowTile + r], w + r * kChunkCols + whole, x[t] + rest_begin, rest);
}

// MR rows times NT tokens without a buffer: what is unpacked meets few tokens, so it stays in registers. `next` are the
// rows that follow: a row is too short for the hardware to see a stream in it, and quantised rows came from memory at
// 7 GB/s a core without this, from cache at 17.
template <WeightType type, int MR, int NT, bool kFetch = true>
void products_in_registers(const uint8_t* const* rows, const uint8_t* const* next, const float* const* x,
                           int64_t cols, float* results, int n_tokens) {
    using G = Group<type>;
    constexpr int kVectors = 32 / kWidth;
    V acc[MR][NT];
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) acc[r][t] = set1(0);
    const int64_t n_groups = cols / 32;
    for (int64_t g = 0; g < n_groups; g++) {
        V token[NT][kVectors];
#pragma GCC unroll 4
        for (int t = 0; t < NT; t++)
            for (int i = 0; i < kVectors; i++) token[t][i] = load(x[t] + g * 32 + i * kWidth);
#pragma GCC unroll 4
        for (int r = 0; r < MR; r++) {
            V w[kVectors];
            if constexpr (kFetch) __builtin_prefetch(next[r] + g * G::kBytes, 0, 2);
            Unpack<type>::group(rows[r] + g * G::kBytes, w);
            for (int i = 0; i < kVectors; i++)
                for (int t = 0; t < NT; t++) acc[r][t] = madd(w[i], token[t][i], acc[r][t]);
        }
    }
    const int64_t begin = n_groups * 32, n = cols - begin, whole = n / kWidth * kWidth;
    for (int r = 0; r < MR; r++) {
        float w[32];
        if constexpr (G::kWeightBytes != 0) G::to_float(rows[r] + n_groups * G::kBytes, w, n);
        for (int t = 0; t < NT; t++) {
            for (int64_t c = 0; c < whole; c += kWidth)
                acc[r][t] = madd(load(w + c), load(x[t] + begin + c), acc[r][t]);
            results[r * n_tokens + t] = finish(acc[r][t], w + whole, x[t] + begin + whole, n - whole);
        }
    }
}

// All rows times NT of the tokens, MR rows at a time; each group of rows asks for the next while it computes.
template <WeightType type, int MR, int NT>
void rows_times_few(const uint8_t* const* rows, int n_rows, const float* const* x, int64_t cols, float* results,
                    int n_tokens) {
    int r = 0;
    for (; r + MR <= n_rows; r += MR) {
        const uint8_t* const* next = rows + (r + 2 * MR <= n_rows ? r + MR : r);
        products_in_registers<type, MR, NT>(rows + r, next, x, cols, results + r * n_tokens, n_tokens);
    }
    for (; r < n_rows; r++)
        products_in_registers<type, 1, NT>(rows + r, rows + r, x, cols, results + r * n_tokens, n_tokens);
}

// One token. Rows of plain floats need so little arithmetic that memory is waited for, and where they lie side by side it
// likes one stream a thread. Apart, their length is enough for the hardware to see four streams: rows of 8 KB came at
// 19 GB/s a core on Zen 4, at 12 one after the other, however early they were asked for.
template <WeightType type>
void rows_times_one(const uint8_t* const* rows, int n_rows, const float* const* x, int64_t cols, float* results) {
    using G = Group<type>;
    if constexpr (G::kWeightBytes != 0) {
        if (lie_side_by_side(rows, n_rows, cols * G::kWeightBytes)) {
            int r = 0;
            for (; r + kFloatRows <= n_rows; r += kFloatRows)
                products_in_registers<type, kFloatRows, 1, false>(rows + r, rows + r, x, cols, results + r, 1);
            for (; r < n_rows; r++)
                products_in_registers<type, 1, 1, false>(rows + r, rows + r, x, cols, results + r, 1);
            return;
        }
    }
    rows_times_few<type, 4, 1>(rows, n_rows, x, cols, results, 1);
}

// results[r * n_tokens + t] for as many rows and tokens as products() takes.
template <WeightType type>
void products_of_few(
    const uint8_t* const* rows, int n_rows, const float* const* x, int n_tokens, int64_t cols, float* results) {
    if constexpr (Group<type>::kWeights == 32) {
        if (n_tokens == 1) return rows_times_one<type>(rows, n_rows, x, cols, results);
        int t = 0;
        for (; t + 4 <= n_tokens; t += 4)
            rows_times_few<type, kFewRows, 4>(rows, n_rows, x + t, cols, results + t, n_tokens);
        switch (n_tokens - t) {
            case 3: return rows_times_few<type, kFewRows, 3>(rows, n_rows, x + t, cols, results + t, n_tokens);
            case 2: return rows_times_few<type, kFewRows, 2>(rows, n_rows, x + t, cols, results + t, n_tokens);
            case 1: return rows_times_few<type, 4, 1>(rows, n_rows, x + t, cols, results + t, n_tokens);
        }
    } else {
        for (int r = 0; r < n_rows; r += kRowTile) {
            const int n = n_rows - r < kRowTile ? n_rows - r : kRowTile;
            products_through_buffer<type>(rows + r, n, x, n_tokens, cols, results + r * n_tokens);
        }
    }
}

// results[r * n_tokens + t] for up to kRowTile rows, or kMaxRows where there are few tokens.
template <WeightType type>
void products(
    const uint8_t* const* rows, int n_rows, const float* const* x, int n_tokens, int64_t cols, float* results) {
    // A plain float is unpacked by one instruction, which no buffer would pay back: on Zen 4, one core, 32 tokens meet rows
    // of F16 in registers at 99 GFLOP/s, through the buffer at 70.
    if (n_tokens <= kFewTokens || Group<type>::kWeightBytes != 0)
        return products_of_few<type>(rows, n_rows, x, n_tokens, cols, results);
    products_through_buffer<type>(rows, n_rows, x, n_tokens, cols, results);
}
