// Weighted sums of rows. Included inside the instruction set's namespace.
//
// The order of a token's sum: the rows are cut into kRowBlocks blocks of equal size; each is summed row by row from zero,
// ascending; the blocks' sums are added in order; the bias comes last. A row left out for its zero coefficient would
// have added exactly zero, so sparse and dense sums have the same bits. Both schedules below, by blocks and by strips of
// columns, do these operations for each column.

// acc[0, n) += sum over K rows of coefficient * row, row after row, from float32 rows `stride` apart.
template <int K>
void add_floats(const float* const* rows, const float* coefficients, int64_t n, float* acc) {
    V c[K];
    for (int k = 0; k < K; k++) c[k] = set1(coefficients[k]);
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        V total = load(acc + i);
        for (int k = 0; k < K; k++) total = madd(c[k], load(rows[k] + i), total);
        store(acc + i, total);
    }
    const int rest = static_cast<int>(n - i);
    for (int j = 0; j < rest; j++)
        for (int k = 0; k < K; k++) acc[i + j] = madd1(coefficients[k], rows[k][i + j], acc[i + j]);
}

// What add_rows() asks for while it adds: group g of the rows that follow, for the k-th that it adds.
template <WeightType type>
struct FetchNext {
    const uint8_t* const* next;

    [[gnu::always_inline]] void operator()(int k, int64_t g) const {
        using G = Group<type>;
        if constexpr (G::kWeights == 32)
            __builtin_prefetch(next[k] + g * G::kBytes, 0, 2);
        else
            fetch<type>(next[k], g * G::kWeights, G::kWeights);
    }
};

// The same straight from K stored rows over all `cols` columns; ask(k, g) is called before group g of row k is read.
template <WeightType type, int K, typename Ask>
void add_rows(const uint8_t* const* rows, const float* coefficients, int64_t cols, float* acc, const Ask& ask) {
    using G = Group<type>;
    const int64_t n_groups = cols / G::kWeights;
    if constexpr (G::kWeights == 32) {
        constexpr int kVectors = 32 / kWidth;
        V c[K];
        for (int k = 0; k < K; k++) c[k] = set1(coefficients[k]);
        for (int64_t g = 0; g < n_groups; g++) {
            V total[kVectors], w[kVectors];
            for (int i = 0; i < kVectors; i++) total[i] = load(acc + g * 32 + i * kWidth);
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) {
                ask(k, g);
                Summands<type>::group(rows[k] + g * G::kBytes, w);
                for (int i = 0; i < kVectors; i++) total[i] = madd(c[k], w[i], total[i]);
            }
            for (int i = 0; i < kVectors; i++) store(acc + g * 32 + i * kWidth, total[i]);
        }
    } else {
        alignas(64) float w[K][G::kWeights];
        const float* pointers[K];
        for (int k = 0; k < K; k++) pointers[k] = w[k];
        for (int64_t g = 0; g < n_groups; g++) {
            for (int k = 0; k < K; k++) {
                ask(k, g);
                G::to_float(rows[k] + g * G::kBytes, w[k]);
            }
            add_floats<K>(pointers, coefficients, G::kWeights, acc + g * G::kWeights);
        }
    }
    if constexpr (G::kWeightBytes != 0) {
        for (int k = 0; k < K; k++) {
            float w[32];
            const float* pointer = w;
            G::to_float(rows[k] + n_groups * G::kBytes, w, cols - n_groups * 32);
            add_floats<1>(&pointer, coefficients + k, cols - n_groups * 32, acc + n_groups * 32);
        }
    }
}

inline bool is_added(const AccumulateJob& job, float coefficient) { return job.all_rows || !(coefficient == 0); }

template <WeightType type>
int64_t block_sum(
    const AccumulateJob& job, int64_t token, int64_t begin, int64_t end, int32_t* list, float* partial) {
    const float* coefficients = job.coefficients + token * job.matrix.rows;
    const int64_t cols = job.matrix.cols;
    const int64_t whole = cols / Group<type>::kWeights * Group<type>::kWeights;
    int64_t n = 0, i = 0;
    // Branch-free: which neurons fire is as good as random to a branch predictor.
    for (int64_t r = begin; r < end; r++) {
        list[n] = static_cast<int32_t>(r);
        n += is_added(job, coefficients[r]);
    }
    // The first rows have none before them that would ask for them: they come while zeros are stored.
    for (int64_t k = 0; k < 4 && k < n; k++) fetch<type>(row_of(job.matrix, list[k]), 0, whole);
    for (int64_t c = 0; c < cols; c++) partial[c] = 0;
    for (; i + 4 <= n; i += 4) {
        const uint8_t* rows[4];
        const uint8_t* next[4];
        float c[4];
        for (int k = 0; k < 4; k++) {
            rows[k] = row_of(job.matrix, list[i + k]);
            next[k] = row_of(job.matrix, list[i + 4 + k < n ? i + 4 + k : i + k]);
            c[k] = coefficients[list[i + k]];
        }
        add_rows<type, 4>(rows, c, cols, partial, FetchNext<type>{next});
    }
    for (; i < n; i++) {
        const uint8_t* row = row_of(job.matrix, list[i]);
        add_rows<type, 1>(&row, coefficients + list[i], cols, partial, FetchNext<type>{&row});
    }
    return n;
}

int64_t accumulate_block(
    const AccumulateJob& job, int64_t token, int64_t begin, int64_t end, int32_t* rows, float* partial) {
    int64_t n = 0;
    with_type(job.matrix.type, [&](auto tag) {
        n = block_sum<decltype(tag)::value>(job, token, begin, end, rows, partial);
    });
    return n;
}

void combine_partials(const AccumulateJob& job, int64_t token, const float* partials, int64_t begin, int64_t end) {
    const int64_t cols = job.matrix.cols;
    float* y = job.y + token * cols;
    for (int64_t i = begin; i < end; i++) y[i] = partials[i];
    for (int64_t p = 1; p < kRowBlocks; p++)
        for (int64_t i = begin; i < end; i++) y[i] += partials[p * cols + i];
    if (job.bias)
        for (int64_t i = begin; i < end; i++) y[i] += job.bias[i];
}

// Rows whose strip is unpacked at a time. Of a section of it, one token's sums stay in registers and the rows in L1, of 16
// KB on AVX2. Rows are a line apart from where they would begin in the same set.
constexpr int kSumRows = 64;
constexpr int64_t kSumStride = kStripCols + 16;
constexpr int64_t kSectionCols = 8 * kWidth;

// total[0, kSectionCols) += the rows of `added`, in order.
inline void add_section(const float* w, const float* coefficients, uint64_t added, float* total) {
    V sums[8];
    for (int i = 0; i < 8; i++) sums[i] = load(total + i * kWidth);
    for (; added; added &= added - 1) {
        const int r = __builtin_ctzll(added);
        const V c = set1(coefficients[r]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sums[i] = madd(c, load(w + r * kSumStride + i * kWidth), sums[i]);
    }
    for (int i = 0; i < 8; i++) store(total + i * kWidth, sums[i]);
}

// The same of the first n rows for three tokens, which share what is loaded.
inline void add_section_of_three(const float* w, const float* coefficients, int64_t stride, int n, float* totals) {
    constexpr int kVectors = 4;
    for (int64_t at = 0; at < kSectionCols; at += kVectors * kWidth) {
        V sums[3][kVectors];
        for (int t = 0; t < 3; t++)
            for (int i = 0; i < kVectors; i++) sums[t][i] = load(totals + t * kStripCols + at + i * kWidth);
        for (int r = 0; r < n; r++) {
            V c[3];
#pragma GCC unroll 3
            for (int t = 0; t < 3; t++) c[t] = set1(coefficients[t * stride + r]);
#pragma GCC unroll 4
            for (int i = 0; i < kVectors; i++) {
                const V row = load(w + r * kSumStride + at + i * kWidth);
#pragma GCC unroll 3
                for (int t = 0; t < 3; t++) sums[t][i] = madd(c[t], row, sums[t][i]);
            }
        }
        for (int t = 0; t < 3; t++)
            for (int i = 0; i < kVectors; i++) store(totals + t * kStripCols + at + i * kWidth, sums[t][i]);
    }
}

// Bit r: row r of up to 64 is added for its coefficient.
inline uint64_t added_rows(const AccumulateJob& job, const float* coefficients, int n) {
    if (job.all_rows) return ~uint64_t{0} >> (64 - n);
    uint64_t added = 0;
    int r = 0;
    for (; r + kWidth <= n; r += kWidth) added |= uint64_t{not_zero(load(coefficients + r))} << r;
    for (; r < n; r++) added |= uint64_t{is_added(job, coefficients[r])} << r;
    return added;
}

// Adds up to 64 unpacked rows to the partial sums of all tokens of the tile, and asks for those that follow meanwhile.
template <WeightType type>
void add_strip_rows(const AccumulateJob& job, const StripTile& tile, int64_t row, int n, const float* w,
                    const uint64_t* added, RowsToFetch<type> ahead, float* partials) {
    const int64_t n_rows = job.matrix.rows, n_cols = tile.col_end - tile.col_begin;
    const int n_tokens = static_cast<int>(tile.token_end - tile.token_begin);
    const uint64_t all = ~uint64_t{0} >> (64 - n);
    const float* coefficients = job.coefficients + tile.token_begin * n_rows + row;
    for (int64_t at = 0; at < n_cols; at += kSectionCols)
        for (int t = 0; t < n_tokens;) {
            float* totals = partials + t * kStripCols + at;
            if (t + 3 <= n_tokens && (added[t] & added[t + 1] & added[t + 2]) == all) {
                add_section_of_three(w + at, coefficients + t * n_rows, n_rows, n, totals);
                t += 3;
            } else {
                add_section(w + at, coefficients + t * n_rows, added[t], totals);
                t++;
            }
            if (at == 0) ahead.advance(t, n_tokens);
        }
}

// Rows [begin, end) of the strip, added to every token's partial sum; returns the pairs added.
template <WeightType type>
int64_t strip_block(const AccumulateJob& job, const StripTile& tile, int64_t begin, int64_t end, float* partials) {
    alignas(64) float w[kSumRows * kSumStride];
    uint64_t added[kStripTokens];
    const int64_t n_cols = tile.col_end - tile.col_begin;
    const int n_tokens = static_cast<int>(tile.token_end - tile.token_begin);
    int64_t count = 0;
    // Sections are added up whole, beyond the last column too.
    if (n_cols < kStripCols)
        for (float& weight : w) weight = 0;
    for (int64_t row = begin; row < end; row += kSumRows) {
        const int n = end - row < kSumRows ? static_cast<int>(end - row) : kSumRows;
        uint64_t any = 0;
        for (int t = 0; t < n_tokens; t++) {
            added[t] = added_rows(job, job.coefficients + (tile.token_begin + t) * job.matrix.rows + row, n);
            any |= added[t];
            count += __builtin_popcountll(added[t]);
        }
        const uint8_t* next[kSumRows];
        int n_next = 0;
        for (int64_t r = row + n; r < row + n + kSumRows && r < job.matrix.rows; r++) next[n_next++] = row_of(job.matrix, r);
        for (uint64_t rest = any; rest; rest &= rest - 1) {
            const int r = __builtin_ctzll(rest);
            dequantize<type>(row_of(job.matrix, row + r), tile.col_begin, n_cols, w + r * kSumStride);
        }
        add_strip_rows<type>(job, tile, row, n, w, added, {next, n_next, tile.col_begin, n_cols}, partials);
    }
    return count;
}

// scratch: partial sums of all tokens of the tile, then their totals.
template <WeightType type>
int64_t strip_sums(const AccumulateJob& job, const StripTile& tile, float* scratch) {
    const int64_t n_rows = job.matrix.rows, block = rows_of_block(n_rows), n = tile.col_end - tile.col_begin;
    const int64_t n_tokens = tile.token_end - tile.token_begin;
    float* totals = scratch + kStripTokens * kStripCols;
    int64_t count = 0;
    for (int64_t b = 0; b < kRowBlocks; b++) {
        const int64_t begin = b * block < n_rows ? b * block : n_rows;
        for (int64_t i = 0; i < n_tokens * kStripCols; i++) scratch[i] = 0;
        count += strip_block<type>(job, tile, begin, begin + block < n_rows ? begin + block : n_rows, scratch);
        for (int64_t i = 0; i < n_tokens * kStripCols; i++) totals[i] = b ? totals[i] + scratch[i] : scratch[i];
    }
    for (int64_t t = 0; t < n_tokens; t++) {
        float* y = job.y + (tile.token_begin + t) * job.matrix.cols + tile.col_begin;
        for (int64_t i = 0; i < n; i++) y[i] = totals[t * kStripCols + i];
        if (job.bias)
            for (int64_t i = 0; i < n; i++) y[i] += job.bias[tile.col_begin + i];
    }
    return tile.col_begin == 0 ? count : 0;
}

int64_t accumulate_strip(const AccumulateJob& job, const StripTile& tile, float* scratch) {
    int64_t count = 0;
    with_type(job.matrix.type, [&](auto tag) { count = strip_sums<decltype(tag)::value>(job, tile, scratch); });
    return count;
}
