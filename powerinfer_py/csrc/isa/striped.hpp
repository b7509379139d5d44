// Stored rows times many tokens in stripes. Included inside the instruction set's namespace.
//
// x[stripe][token][kStripeCols]: the same columns of all tokens lie side by side. A token's own floats begin a power of two
// after those of the one before in most models, so that the same columns of four tokens shared the eight lines of one set
// of the first cache, and those of 64 tokens did not fit the second one.
//
// The order of a product's sum is that of products.hpp. Measured on Zen 3, one core, 64 tokens, rows of 4096 weights of F16,
// in turns: 68 GFLOP/s, 42 with rows converted again for every four tokens that lie apart, and 83 where all is in the first
// cache.

// Rows that share a chunk of converted columns: 12 of 256 floats and the stripes of four tokens leave room in L1 for sums.
constexpr int kTileRows = 12;
constexpr int64_t kTileCols = 256;
// A line more than the columns, so that rows do not begin in the same set.
constexpr int64_t kTileStride = kTileCols + 16;

// How many of the 12 rows meet so many tokens at once: as many sums as registers hold.
template <int NR>
constexpr int kRowsAtOnce = NR == 1 ? (kTileSums < 12 ? 6 : 12)
                                    : kTileSums / NR >= 12 ? 12
                                    : kTileSums / NR >= 6  ? 6
                                                           : kTileSums / NR;

// acc[t * kTileRows + r] += products of `n` columns (a multiple of kWidth) of MR rows and NR tokens. `next` is the part of
// the tokens that follow which this tile asks for: they come from L2, where the rows of a tile stay in L1.
template <int MR, int NR>
void striped_tile(const float* w, const float* x, const float* next, int64_t stride, int64_t n, V* acc) {
    V sums[NR][MR];
#pragma GCC unroll 4
    for (int t = 0; t < NR; t++) {
#pragma GCC unroll 12
        for (int r = 0; r < MR; r++) sums[t][r] = acc[t * kTileRows + r];
    }
    // Of rows and tokens, those that are fewer wait in registers for the others.
    const auto step = [&](int64_t c) __attribute__((always_inline)) {
        constexpr int kKept = MR < NR ? MR : NR, kPassing = MR < NR ? NR : MR;
        V kept[kKept];
#pragma GCC unroll 12
        for (int i = 0; i < kKept; i++) kept[i] = load(MR < NR ? w + i * kTileStride + c : x + i * kStripeCols + c);
#pragma GCC unroll 12
        for (int k = 0; k < kPassing; k++) {
            const V passing = load(MR < NR ? x + k * kStripeCols + c : w + k * kTileStride + c);
#pragma GCC unroll 12
            for (int i = 0; i < kKept; i++) {
                V& sum = MR < NR ? sums[k][i] : sums[i][k];
                sum = madd(kept[i], passing, sum);
            }
        }
    };
    for (; n >= kStripeCols; n -= kStripeCols, w += kStripeCols, x += stride, next += stride) {
        for (int i = 0; i < NR * MR / kTileRows * 4; i++) __builtin_prefetch(next + 16 * i, 0, 3);
#pragma GCC unroll 2
        for (int64_t c = 0; c < kStripeCols; c += kWidth) step(c);
    }
    for (int64_t c = 0; c < n; c += kWidth) step(c);
#pragma GCC unroll 4
    for (int t = 0; t < NR; t++) {
#pragma GCC unroll 12
        for (int r = 0; r < MR; r++) acc[t * kTileRows + r] = sums[t][r];
    }
}

template <int NR>
void striped_tiles(const float* w, int n_rows, const float* x, int64_t stride, int64_t n, V* acc) {
    constexpr int MR = kRowsAtOnce<NR>;
    static_assert(kTileRows % MR == 0);
    for (int r = 0; r < n_rows; r += MR) {
        const float* next = x + NR * kStripeCols + NR * r / kTileRows * kStripeCols;
        striped_tile<MR, NR>(w + r * kTileStride, x, next, stride, n, acc + r);
    }
}

// Rows that will be read when these are done, asked for bit by bit.
template <WeightType type>
struct RowsToFetch {
    const uint8_t* const* rows;
    int n_rows;
    int64_t begin, n;
    int done = 0;

    // To be called with rising parts of the work.
    void advance(int part, int parts) {
        for (; done < n_rows * part / parts; done++) fetch<type>(rows[done], begin, n);
    }
};

// Up to kTileRows converted rows (the others of the buffer are any numbers) times n columns of all tokens.
template <WeightType type>
void striped_chunk(const float* w, int n_rows, const float* x, int64_t stride, int n_tokens, int64_t n, V* acc,
                   RowsToFetch<type> ahead) {
    int t = 0;
    for (; t + 4 <= n_tokens; t += 4) {
        striped_tiles<4>(w, n_rows, x + t * kStripeCols, stride, n, acc + t * kTileRows);
        ahead.advance(t + 4, n_tokens);
    }
    x += t * kStripeCols;
    acc += t * kTileRows;
    switch (n_tokens - t) {
        case 3: striped_tiles<3>(w, n_rows, x, stride, n, acc); break;
        case 2: striped_tiles<2>(w, n_rows, x, stride, n, acc); break;
        case 1: striped_tiles<1>(w, n_rows, x, stride, n, acc); break;
    }
    ahead.advance(1, 1);
}

// results[r * n_tokens + t] of up to kStripedRows rows, behind which `rows` holds up to as many that will be wanted next.
template <WeightType type>
void striped_products(const uint8_t* const* rows, int n_rows, int n_ahead, const float* x, int64_t stride, int n_tokens,
                      int64_t cols, float* results) {
    constexpr int kTiles = kStripedRows / kTileRows;
    alignas(64) float w[kTileRows * kTileStride];
    alignas(64) V acc[kTiles][kMaxTokens * kTileRows];
    for (float& weight : w) weight = 0;
    for (int i = 0; i < kTiles; i++)
        for (int k = 0; k < n_tokens * kTileRows; k++) acc[i][k] = set1(0);
    int64_t begin = 0;
    do {
        const int64_t n = cols - begin < kTileCols ? cols - begin : kTileCols, whole = n / kWidth * kWidth;
        const bool is_last = begin + n == cols;
        const int64_t next = is_last ? 0 : begin + n, n_next = cols - next < kTileCols ? cols - next : kTileCols;
        const float* chunk_x = x + begin / kStripeCols * stride;
        for (int r = 0; r < n_rows; r += kTileRows) {
            const int n_now = n_rows - r < kTileRows ? n_rows - r : kTileRows;
            for (int i = 0; i < n_now; i++) dequantize<type>(rows[r + i], begin, n, w + i * kTileStride);
            const int first = is_last ? n_rows + r : r, end = is_last ? n_rows + n_ahead : n_rows;
            const int n_fetched = end - first < kTileRows ? end - first : kTileRows;
            V* sums = acc[r / kTileRows];
            striped_chunk<type>(w, n_now, chunk_x, stride, n_tokens, whole, sums, {rows + first, n_fetched, next, n_next});
            if (!is_last) continue;
            const float* rest = chunk_x + whole / kStripeCols * stride + whole % kStripeCols;
            for (int i = 0; i < n_now; i++)
                for (int t = 0; t < n_tokens; t++)
                    results[(r + i) * n_tokens + t] = finish(
                        sums[t * kTileRows + i], w + i * kTileStride + whole, rest + t * kStripeCols, n - whole);
        }
        begin += n;
    } while (begin < cols);
}

// Rows that only some tokens want, and which tokens; all sums lie side by side.
struct SparseRows {
    static constexpr int kMaxProducts = kStripedSparseRows * kMaxTokens / 2;
    int64_t rows[kStripedSparseRows];
    int begins[kStripedSparseRows + 1] = {0};
    uint8_t tokens[kMaxProducts];
    int n_rows = 0;

    void add(int64_t row, const uint8_t* wanted_by, int n) {
        if (n == 0) return;
        for (int i = 0; i < n; i++) tokens[begins[n_rows] + i] = wanted_by[i];
        rows[n_rows] = row;
        begins[n_rows + 1] = begins[n_rows] + n;
        n_rows++;
    }
    int n_products() const { return begins[n_rows]; }
};

// results[i] of product i. A row's columns stay in registers while they meet its tokens, whose stripe, of 16 KB, stays in
// L1: the sums of different tokens do not wait for each other.
template <WeightType type>
void sparse_products(const WeightMatrix& matrix, const SparseRows& wanted, const float* x, int64_t stride, float* results) {
    using G = Group<type>;
    constexpr int kVectors = kStripeCols / kWidth, kGroups = kStripeCols / 32, kStripeBytes = kGroups * G::kBytes;
    // Stripes of a row that are asked for before they are read.
    constexpr int kAhead = 8;
    alignas(64) V acc[SparseRows::kMaxProducts];
    const int64_t n_stripes = matrix.cols / kStripeCols, begin = n_stripes * kStripeCols, n = matrix.cols - begin;
    const int64_t whole = n / kWidth * kWidth;
    for (int i = 0; i < wanted.n_products(); i++) acc[i] = set1(0);
    for (int i = 0; i < wanted.n_rows; i++) prefetch(row_of(matrix, wanted.rows[i]), kAhead * kStripeBytes);
    for (int64_t s = 0; s < n_stripes; s++, x += stride)
        for (int i = 0; i < wanted.n_rows; i++) {
            const uint8_t* p = row_of(matrix, wanted.rows[i]) + s * kStripeBytes;
            V w[kVectors];
            for (int g = 0; g < kGroups; g++) Unpack<type>::group(p + g * G::kBytes, w + g * (32 / kWidth));
            prefetch(p + kAhead * kStripeBytes, kStripeBytes);
            for (int k = wanted.begins[i]; k < wanted.begins[i + 1]; k++) {
                const float* token = x + wanted.tokens[k] * kStripeCols;
                V sum = acc[k];
#pragma GCC unroll 16
                for (int v = 0; v < kVectors; v++) sum = madd(w[v], load(token + v * kWidth), sum);
                acc[k] = sum;
            }
        }
    for (int i = 0; i < wanted.n_rows; i++) {
        float w[kStripeCols];
        dequantize<type>(row_of(matrix, wanted.rows[i]), begin, n, w);
        for (int k = wanted.begins[i]; k < wanted.begins[i + 1]; k++) {
            const float* token = x + wanted.tokens[k] * kStripeCols;
            for (int64_t c = 0; c < whole; c += kWidth) acc[k] = madd(load(w + c), load(token + c), acc[k]);
            results[k] = finish(acc[k], w + whole, token + whole, n - whole);
        }
    }
}
