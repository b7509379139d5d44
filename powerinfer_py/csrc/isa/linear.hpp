// A tile of a linear layer: which rows meet which tokens. Included inside the instruction set's namespace.

inline const uint8_t* row_of(const WeightMatrix& m, int64_t row) { return m.data + row * m.row_bytes; }

// Rows and tokens, by index, all of whose products are wanted: up to kRowTile rows, or kMaxRows where there are few tokens.
// Behind the rows, up to kRowsAhead that will be wanted next.
struct ProductGroup {
    int64_t rows[kMaxRows + kRowsAhead];
    int64_t tokens[kMaxTokens];
    int n_rows;
    int n_tokens;
    int n_ahead = 0;
};

// Rows as files store them, times float32 tokens.
template <WeightType type>
struct StoredProducts {
    static void run(const LinearJob& job, const uint8_t* const* rows, const ProductGroup& group, float* results) {
        const float* x[kMaxTokens];
        for (int t = 0; t < group.n_tokens; t++) x[t] = job.x + group.tokens[t] * job.matrix.cols;
        products<type>(rows, group.n_rows, x, group.n_tokens, job.matrix.cols, results);
    }
};

// Packed rows, times tokens in 8 bits.
template <WeightType type>
struct PackedProducts {
    static void run(const LinearJob& job, const uint8_t* const* rows, const ProductGroup& group, float* results) {
        const int64_t cols = job.matrix.cols;
        PackedToken x[kMaxTokens];
        for (int t = 0; t < group.n_tokens; t++) x[t] = packed_token(job.quantised, group.tokens[t], cols);
        packed_products<type>(rows, group.n_rows, group.n_ahead, x, group.n_tokens, cols, results);
    }
};

template <typename Products>
int64_t compute_group(const LinearJob& job, const ProductGroup& group) {
    const uint8_t* rows[kMaxRows + kRowsAhead];
    float results[kRowTile * kMaxTokens];  // the same number as kMaxRows * kFewTokens
    if (group.n_rows == 0 || group.n_tokens == 0) return 0;
    for (int r = 0; r < group.n_rows + group.n_ahead; r++) rows[r] = row_of(job.matrix, group.rows[r]);
    Products::run(job, rows, group, results);
    for (int t = 0; t < group.n_tokens; t++)
        for (int r = 0; r < group.n_rows; r++) {
            const float product = results[r * group.n_tokens + t];
            const int64_t row = group.rows[r];
            job.y[group.tokens[t] * job.matrix.rows + row] = job.bias ? product + job.bias[row] : product;
        }
    return static_cast<int64_t>(group.n_rows) * group.n_tokens;
}

template <typename Products>
int64_t dense_tile(const LinearJob& job, const ProductTile& tile) {
    ProductGroup group;
    group.n_tokens = 0;
    for (int64_t t = tile.token_begin; t < tile.token_end; t++) group.tokens[group.n_tokens++] = t;
    const int64_t step = group.n_tokens <= kFewTokens ? kMaxRows : kRowTile;
    int64_t count = 0;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += step) {
        group.n_rows = 0;
        for (int64_t r = row; r < tile.row_end && r < row + step; r++) group.rows[group.n_rows++] = r;
        count += compute_group<Products>(job, group);
    }
    return count;
}

// The rows from `begin` to `end` that a mask wants, in order. Eight at a time: where a hundredth of the rows is wanted, one
// by one took a quarter of the time of the whole operation.
struct WantedRows {
    const uint8_t* mask;
    int64_t begin, end;
    uint64_t bytes = 0;  // of the mask, of the eight rows before `begin`; those that were returned are 0

    // The next one, or -1.
    int64_t next() {
        while (!bytes) {
            if (begin >= end) return -1;
            const int64_t n = end - begin < 8 ? end - begin : 8;
            __builtin_memcpy(&bytes, mask + begin, static_cast<uint64_t>(n));
            begin += 8;
        }
        const int byte = __builtin_ctzll(bytes) / 8;
        bytes &= ~(uint64_t{255} << 8 * byte);
        return begin - 8 + byte;
    }
};

// How far beyond its tile one looks for rows that the thread will probably read next.
constexpr int64_t kRowsBeyond = 256;

// One token: its wanted rows are gathered, so that full groups are computed however thin they are spread.
template <typename Products>
int64_t masked_rows(const LinearJob& job, const ProductTile& tile) {
    const int64_t token = tile.token_begin, n_rows = job.matrix.rows;
    const int64_t beyond = tile.row_end + kRowsBeyond < n_rows ? tile.row_end + kRowsBeyond : n_rows;
    WantedRows wanted{job.mask + token * n_rows, tile.row_begin, beyond};
    for (int64_t r = tile.row_begin; r < tile.row_end; r++) job.y[token * n_rows + r] = 0;
    ProductGroup group;
    group.n_tokens = 1;
    group.tokens[0] = token;
    int64_t count = 0;
    int n = 0;
    do {
        // Rows of the last group that were only asked for come first.
        for (int64_t row; n < kMaxRows + kRowsAhead && (row = wanted.next()) >= 0;) group.rows[n++] = row;
        group.n_rows = 0;
        while (group.n_rows < n && group.n_rows < kMaxRows && group.rows[group.n_rows] < tile.row_end) group.n_rows++;
        group.n_ahead = n - group.n_rows;
        count += compute_group<Products>(job, group);
        for (int i = 0; i < group.n_ahead && group.n_rows > 0; i++) group.rows[i] = group.rows[group.n_rows + i];
        n = group.n_ahead;
    } while (n > 0 && group.rows[0] < tile.row_end);
    return count;
}

// Many tokens: four rows at a time. Tokens that want all four share the dense micro-tile, the others are gathered row
// by row.
template <typename Products>
int64_t masked_four_rows(const LinearJob& job, const ProductTile& tile, int64_t row, int n_rows) {
    ProductGroup together, single[4];
    together.n_rows = n_rows;
    together.n_tokens = 0;
    for (int r = 0; r < n_rows; r++) {
        together.rows[r] = single[r].rows[0] = row + r;
        single[r].n_rows = 1;
        single[r].n_tokens = 0;
    }
    for (int64_t t = tile.token_begin; t < tile.token_end; t++) {
        const uint8_t* mask = job.mask + t * job.matrix.rows + row;
        int wanted = 0;
        for (int r = 0; r < n_rows; r++) wanted += mask[r] != 0;
        if (wanted == n_rows) {
            together.tokens[together.n_tokens++] = t;
            continue;
        }
        for (int r = 0; r < n_rows; r++) {
            if (mask[r])
                single[r].tokens[single[r].n_tokens++] = t;
            else
                job.y[t * job.matrix.rows + row + r] = 0;
        }
    }
    int64_t count = compute_group<Products>(job, together);
    for (int r = 0; r < n_rows; r++) count += compute_group<Products>(job, single[r]);
    return count;
}

template <typename Products>
int64_t masked_tile(const LinearJob& job, const ProductTile& tile) {
    if (tile.token_end - tile.token_begin == 1) return masked_rows<Products>(job, tile);
    int64_t count = 0;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += 4) {
        const int64_t n = tile.row_end - row;
        count += masked_four_rows<Products>(job, tile, row, n < 4 ? static_cast<int>(n) : 4);
    }
    return count;
}

template <typename Products>
int64_t any_tile(const LinearJob& job, const ProductTile& tile) {
    return job.mask ? masked_tile<Products>(job, tile) : dense_tile<Products>(job, tile);
}

int64_t linear_tile(const LinearJob& job, const ProductTile& tile) {
    int64_t count = 0;
    if (job.matrix.packed)
        with_packed_type(
            job.matrix.type, [&](auto tag) { count = any_tile<PackedProducts<decltype(tag)::value>>(job, tile); });
    else
        with_type(job.matrix.type, [&](auto tag) { count = any_tile<StoredProducts<decltype(tag)::value>>(job, tile); });
    return count;
}

void copy_rows(const RowsJob& job, int64_t begin, int64_t end) {
    with_type(job.matrix.type, [&](auto tag) {
        for (int64_t i = begin; i < end; i++)
            dequantize<decltype(tag)::value>(
                row_of(job.matrix, job.ids[i]), 0, job.matrix.cols, job.y + i * job.matrix.cols);
    });
}
