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
// One token takes so many rows at once: each group of four asks for the next four while it computes.
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

// MR rows times one token without a buffer: what is unpacked is used once, so it stays in registers. `next` are the rows
// that follow: a row is too short for the hardware to see a stream in it, and quantised rows came from memory at 7 GB/s
// a core without this, from cache at 17.
template <WeightType type, int MR>
void products_in_registers(
    const uint8_t* const* rows, const uint8_t* const* next, const float* x, int64_t cols, float* results) {
    using G = Group<type>;
    constexpr int kVectors = 32 / kWidth;
    V acc[MR];
    for (int r = 0; r < MR; r++) acc[r] = set1(0);
    const int64_t n_groups = cols / 32;
    for (int64_t g = 0; g < n_groups; g++) {
        V token[kVectors];
        for (int i = 0; i < kVectors; i++) token[i] = load(x + g * 32 + i * kWidth);
#pragma GCC unroll 4
        for (int r = 0; r < MR; r++) {
            V w[kVectors];
            __builtin_prefetch(next[r] + g * G::kBytes, 0, 2);
            Unpack<type>::group(rows[r] + g * G::kBytes, w);
            for (int i = 0; i < kVectors; i++) acc[r] = madd(w[i], token[i], acc[r]);
        }
    }
    const int64_t begin = n_groups * 32, n = cols - begin, whole = n / kWidth * kWidth;
    for (int r = 0; r < MR; r++) {
        float w[32];
        if constexpr (G::kWeightBytes != 0) G::to_float(rows[r] + n_groups * G::kBytes, w, n);
        for (int64_t c = 0; c < whole; c += kWidth) acc[r] = madd(load(w + c), load(x + begin + c), acc[r]);
        results[r] = finish(acc[r], w + whole, x + begin + whole, n - whole);
    }
}

// results[r] for up to kMaxRows rows and one token.
template <WeightType type>
void products_of_one(const uint8_t* const* rows, int n_rows, const float* x, int64_t cols, float* results) {
    int r = 0;
    if constexpr (Group<type>::kWeights == 32) {
        for (; r + 4 <= n_rows; r += 4)
            products_in_registers<type, 4>(rows + r, rows + (r + 8 <= n_rows ? r + 4 : r), x, cols, results + r);
        switch (n_rows - r) {
            case 3: return products_in_registers<type, 3>(rows + r, rows + r, x, cols, results + r);
            case 2: return products_in_registers<type, 2>(rows + r, rows + r, x, cols, results + r);
            case 1: return products_in_registers<type, 1>(rows + r, rows + r, x, cols, results + r);
        }
    } else {
        for (; r < n_rows; r += kRowTile) {
            const int n = n_rows - r < kRowTile ? n_rows - r : kRowTile;
            for (int i = r + kRowTile; i < n_rows && i < r + 2 * kRowTile; i++)
                fetch<type>(rows[i], 0, cols < kChunkCols ? cols : kChunkCols);
            products_through_buffer<type>(rows + r, n, &x, 1, cols, results + r);
        }
    }
}

// results[r * n_tokens + t] for up to kRowTile rows, or kMaxRows where there is one token.
template <WeightType type>
void products(
    const uint8_t* const* rows, int n_rows, const float* const* x, int n_tokens, int64_t cols, float* results) {
    if (n_tokens == 1) return products_of_one<type>(rows, n_rows, x[0], cols, results);
    products_through_buffer<type>(rows, n_rows, x, n_tokens, cols, results);
}
