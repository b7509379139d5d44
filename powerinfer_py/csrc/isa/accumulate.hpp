// Weighted sums of rows. Included inside the instruction set's namespace.
//
// The order of a token's sum is fixed by its own coefficients: its list of non-zero rows, ascending, is cut into chunks
// of kAccumulateChunk; a chunk is summed row by row from zero; the chunks' sums are added in order; the bias comes last.
// Both schedules below, by chunks and by strips of columns, do exactly these operations for each column.

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

inline void add_some_floats(const float* const* rows, const float* coefficients, int k, int64_t n, float* acc) {
    switch (k) {
        case 1: return add_floats<1>(rows, coefficients, n, acc);
        case 2: return add_floats<2>(rows, coefficients, n, acc);
        case 3: return add_floats<3>(rows, coefficients, n, acc);
        case 4: return add_floats<4>(rows, coefficients, n, acc);
    }
}

// The same straight from K stored rows over all `cols` columns; `next` are the rows to fetch meanwhile.
template <WeightType type, int K>
void add_rows(
    const uint8_t* const* rows, const uint8_t* const* next, const float* coefficients, int64_t cols, float* acc) {
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
                __builtin_prefetch(next[k] + g * G::kBytes);
                Unpack<type>::group(rows[k] + g * G::kBytes, w);
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
                fetch<type>(next[k], g * G::kWeights, G::kWeights);
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

int64_t list_rows(const AccumulateJob& job, int64_t token, int32_t* rows) {
    const float* coefficients = job.coefficients + token * job.matrix.rows;
    int64_t n = 0;
    // Branch-free: which neurons fire is as good as random to a branch predictor.
    for (int64_t r = 0; r < job.matrix.rows; r++) {
        rows[n] = static_cast<int32_t>(r);
        n += is_added(job, coefficients[r]);
    }
    return n;
}

template <WeightType type>
void chunk_sum(const AccumulateJob& job, int64_t token, const RowList& chunk, float* partial) {
    const float* coefficients = job.coefficients + token * job.matrix.rows;
    const int64_t cols = job.matrix.cols;
    for (int64_t i = 0; i < cols; i++) partial[i] = 0;
    int64_t i = 0;
    for (; i + 4 <= chunk.n; i += 4) {
        const uint8_t* rows[4];
        const uint8_t* next[4];
        float c[4];
        for (int k = 0; k < 4; k++) {
            rows[k] = row_of(job.matrix, chunk.rows[i + k]);
            next[k] = row_of(job.matrix, chunk.rows[i + 4 + k < chunk.n ? i + 4 + k : i + k]);
            c[k] = coefficients[chunk.rows[i + k]];
        }
        add_rows<type, 4>(rows, next, c, cols, partial);
    }
    for (; i < chunk.n; i++) {
        const uint8_t* row = row_of(job.matrix, chunk.rows[i]);
        add_rows<type, 1>(&row, &row, coefficients + chunk.rows[i], cols, partial);
    }
}

void accumulate_chunk(const AccumulateJob& job, int64_t token, const RowList& chunk, float* partial) {
    with_type(job.matrix.type, [&](auto tag) { chunk_sum<decltype(tag)::value>(job, token, chunk, partial); });
}

void combine_partials(
    const AccumulateJob& job, int64_t token, const float* partials, int64_t n_partials, int64_t begin, int64_t end) {
    const int64_t cols = job.matrix.cols;
    float* y = job.y + token * cols;
    for (int64_t i = begin; i < end; i++) y[i] = n_partials ? partials[i] : 0;
    for (int64_t p = 1; p < n_partials; p++)
        for (int64_t i = begin; i < end; i++) y[i] += partials[p * cols + i];
    if (job.bias)
        for (int64_t i = begin; i < end; i++) y[i] += job.bias[i];
}

// The sums of one token over one strip of columns.
struct StripSum {
    float* partial;   // (kStripCols)
    float* total;     // (kStripCols)
    int64_t n_added;  // rows added so far

    void add_partial(int64_t n, bool first) {
        for (int64_t i = 0; i < n; i++) total[i] = first ? partial[i] : total[i] + partial[i];
        for (int64_t i = 0; i < n; i++) partial[i] = 0;
    }

    void add(const float* const* rows, const float* coefficients, int k, int64_t n) {
        const int64_t room = kAccumulateChunk - n_added % kAccumulateChunk;
        const int now = k < room ? k : static_cast<int>(room);
        add_some_floats(rows, coefficients, now, n, partial);
        n_added += now;
        if (now == room) {
            add_partial(n, n_added == kAccumulateChunk);
            if (now < k) add(rows + now, coefficients + now, k - now, n);
        }
    }
};

template <WeightType type>
int64_t strip_sums(const AccumulateJob& job, const StripTile& tile, float* scratch) {
    alignas(64) float w[4][kStripCols];
    StripSum sums[kStripTokens];
    const int64_t n_rows = job.matrix.rows, n = tile.col_end - tile.col_begin;
    const int n_tokens = static_cast<int>(tile.token_end - tile.token_begin);
    for (int t = 0; t < n_tokens; t++) {
        sums[t] = {scratch + 2 * t * kStripCols, scratch + (2 * t + 1) * kStripCols, 0};
        for (int64_t i = 0; i < n; i++) sums[t].partial[i] = sums[t].total[i] = 0;
    }
    for (int64_t row = 0; row < n_rows; row += 4) {
        const int n_now = n_rows - row < 4 ? static_cast<int>(n_rows - row) : 4;
        bool unpacked[4] = {false, false, false, false};
        for (int64_t r = row + 4; r < row + 8 && r < n_rows; r++) fetch<type>(row_of(job.matrix, r), tile.col_begin, n);
        for (int t = 0; t < n_tokens; t++) {
            const float* coefficients = job.coefficients + (tile.token_begin + t) * n_rows + row;
            const float* rows[4];
            float c[4];
            int k = 0;
            for (int r = 0; r < n_now; r++) {
                if (!is_added(job, coefficients[r])) continue;
                if (!unpacked[r]) dequantize<type>(row_of(job.matrix, row + r), tile.col_begin, n, w[r]);
                unpacked[r] = true;
                rows[k] = w[r];
                c[k++] = coefficients[r];
            }
            if (k) sums[t].add(rows, c, k, n);
        }
    }
    int64_t count = 0;
    for (int t = 0; t < n_tokens; t++) {
        if (sums[t].n_added % kAccumulateChunk) sums[t].add_partial(n, sums[t].n_added < kAccumulateChunk);
        float* y = job.y + (tile.token_begin + t) * job.matrix.cols + tile.col_begin;
        for (int64_t i = 0; i < n; i++)
            y[i] = job.bias ? sums[t].total[i] + job.bias[tile.col_begin + i] : sums[t].total[i];
        count += sums[t].n_added;
    }
    return tile.col_begin == 0 ? count : 0;
}

int64_t accumulate_strip(const AccumulateJob& job, const StripTile& tile, float* scratch) {
    int64_t count = 0;
    with_type(job.matrix.type, [&](auto tag) { count = strip_sums<decltype(tag)::value>(job, tile, scratch); });
    return count;
}
