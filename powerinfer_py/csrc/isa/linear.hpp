// A tile of a linear layer: which rows meet which tokens. Included inside the instruction set's namespace.

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

// Up to kStripedRows rows. Products that the mask, if there is one, does not want are computed in vain.
template <WeightType type>
int64_t striped_rows(const LinearJob& job, const ProductTile& tile) {
    const int64_t begin = tile.row_begin, n_rows = job.matrix.rows, stride = job.n_tokens * kStripeCols;
    const int n = static_cast<int>(tile.row_end - begin), n_tokens = static_cast<int>(tile.token_end - tile.token_begin);
    const uint8_t* rows[2 * kStripedRows];
    float results[kStripedRows * kMaxTokens];
    int n_ahead = 0;
    for (int r = 0; r < n; r++) rows[r] = row_of(job.matrix, begin + r);
    for (int64_t r = tile.row_end; r < n_rows && n_ahead < kStripedRows; r++) rows[n + n_ahead++] = row_of(job.matrix, r);
    const float* x = job.striped + tile.token_begin * kStripeCols;
    striped_products<type>(rows, n, n_ahead, x, stride, n_tokens, job.matrix.cols, results);
    int64_t count = 0;
    for (int t = 0; t < n_tokens; t++) {
        const int64_t at = (tile.token_begin + t) * n_rows + begin;
        for (int r = 0; r < n; r++) {
            const float product = results[r * n_tokens + t];
            const bool is_wanted = !job.mask || job.mask[at + r];
            job.y[at + r] = !is_wanted ? 0 : job.bias ? product + job.bias[begin + r] : product;
            count += is_wanted;
        }
    }
    return count;
}

template <WeightType type>
int64_t striped_dense_tile(const LinearJob& job, const ProductTile& tile) {
    int64_t count = 0;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += kStripedRows) {
        const int64_t end = row + kStripedRows < tile.row_end ? row + kStripedRows : tile.row_end;
        count += striped_rows<type>(job, {row, end, tile.token_begin, tile.token_end});
    }
    return count;
}

template <WeightType type>
int64_t striped_sparse_rows(const LinearJob& job, const ProductTile& tile, const SparseRows& sparse) {
    if (sparse.n_rows == 0) return 0;
    float results[SparseRows::kMaxProducts];
    const float* x = job.striped + tile.token_begin * kStripeCols;
    sparse_products<type>(job.matrix, sparse, x, job.n_tokens * kStripeCols, results);
    for (int i = 0; i < sparse.n_rows; i++)
        for (int k = sparse.begins[i]; k < sparse.begins[i + 1]; k++) {
            const int64_t row = sparse.rows[i];
            job.y[(tile.token_begin + sparse.tokens[k]) * job.matrix.rows + row] =
                job.bias ? results[k] + job.bias[row] : results[k];
        }
    return sparse.n_products();
}

inline int64_t count_wanted(const LinearJob& job, const ProductTile& tile) {
    int64_t count = 0;
    for (int64_t t = tile.token_begin; t < tile.token_end; t++) {
        const uint8_t* mask = job.mask + t * job.matrix.rows;
        int n = 0;
        for (int64_t r = tile.row_begin; r < tile.row_end; r++) n += mask[r] != 0;
        count += n;
    }
    return count;
}

// Adds the rows of the tile to those that meet their tokens one by one; what is not wanted becomes 0.
inline void add_sparse_rows(const LinearJob& job, const ProductTile& tile, SparseRows& sparse) {
    const int64_t n_rows = job.matrix.rows;
    uint8_t wanted_by[kStripedRows][kMaxTokens];
    int n_wanted[kStripedRows] = {0};
    for (int64_t t = tile.token_begin; t < tile.token_end; t++) {
        WantedRows wanted{job.mask + t * n_rows, tile.row_begin, tile.row_end};
        for (int64_t row; (row = wanted.next()) >= 0;) {
            const int64_t r = row - tile.row_begin;
            wanted_by[r][n_wanted[r]++] = static_cast<uint8_t>(t - tile.token_begin);
        }
        for (int64_t r = tile.row_begin; r < tile.row_end; r++) job.y[t * n_rows + r] = 0;
    }
    for (int64_t r = tile.row_begin; r < tile.row_end; r++)
        sparse.add(r, wanted_by[r - tile.row_begin], n_wanted[r - tile.row_begin]);
}

// Up to kStripedSparseRows rows. By how many tokens want one of a few neighbours: all products are computed where most are
// wanted, as alone one takes about twice as long; rows that hardly any wants meet tokens where these lie.
template <WeightType type>
int64_t striped_masked_rows(const LinearJob& job, const ProductTile& tile) {
    SparseRows sparse;
    int64_t count = 0;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += kStripedRows) {
        const int64_t end = row + kStripedRows < tile.row_end ? row + kStripedRows : tile.row_end;
        const ProductTile part{row, end, tile.token_begin, tile.token_end};
        const int64_t n = count_wanted(job, part);
        if (2 * n > (end - row) * (tile.token_end - tile.token_begin))
            count += striped_rows<type>(job, part);
        else if (n > (end - row) * kFewTokens)
            add_sparse_rows(job, part, sparse);
        else
            count += masked_tile<StoredProducts<type>>(job, part);
    }
    return count + striped_sparse_rows<type>(job, tile, sparse);
}

template <WeightType type>
int64_t striped_masked_tile(const LinearJob& job, const ProductTile& tile) {
    int64_t count = 0;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += kStripedSparseRows) {
        const int64_t end = row + kStripedSparseRows < tile.row_end ? row + kStripedSparseRows : tile.row_end;
        count += striped_masked_rows<type>(job, {row, end, tile.token_begin, tile.token_end});
    }
    return count;
}

// Of rows as stored.
template <WeightType type>
int64_t stored_tile(const LinearJob& job, const ProductTile& tile) {
    if (!job.striped || tile.token_end - tile.token_begin <= kUnstripedTokens)
        return any_tile<StoredProducts<type>>(job, tile);
    if constexpr (Group<type>::kWeights == 32)
        if (job.mask) return striped_masked_tile<type>(job, tile);
    return striped_dense_tile<type>(job, tile);
}

int64_t linear_tile(const LinearJob& job, const ProductTile& tile) {
    int64_t count = 0;
    if (job.matrix.packed)
        with_packed_type(
            job.matrix.type, [&](auto tag) { count = any_tile<PackedProducts<decltype(tag)::value>>(job, tile); });
    else
        with_type(job.matrix.type, [&](auto tag) { count = stored_tile<decltype(tag)::value>(job, tile); });
    return count;
}

void copy_rows(const RowsJob& job, int64_t begin, int64_t end) {
    with_type(job.matrix.type, [&](auto tag) {
        for (int64_t i = begin; i < end; i++)
            dequantize<decltype(tag)::value>(
                row_of(job.matrix, job.ids[i]), 0, job.matrix.cols, job.y + i * job.matrix.cols);
    });
}
