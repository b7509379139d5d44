// Causal attention over the cache. Included inside the instruction set's namespace.
//
// Keys are rows of a matrix in F16 or Q8_0, the query heads that share them are its tokens: scores come out of
// products(), with its fixed order of sums. Values are such rows added in position order.

template <WeightType type>
void store_row(const float* x, int64_t n, uint8_t* row);

template <>
inline void store_row<WeightType::F16>(const float* x, int64_t n, uint8_t* row) {
    to_half(x, reinterpret_cast<uint16_t*>(row), n);
}

// A block that does not fit becomes NaN, as a value would in F16: what is wrong must reach the result.
template <>
inline void store_row<WeightType::Q8_0>(const float* x, int64_t n, uint8_t* row) {
    constexpr uint16_t kHalfNan = 0x7e00u;
    for (int64_t i = 0; i < n; i += 32, row += 34) {
        if (all_finite(x + i, 32) && quantise_q8_0(x + i, row)) continue;
        for (int j = 0; j < 34; j++) row[j] = 0;
        __builtin_memcpy(row, &kHalfNan, sizeof kHalfNan);
    }
}

// Calls action(tag) for the type of the rows.
template <typename Action>
void with_cache_type(const CacheRows& cache, const Action& action) {
    if (cache.type == WeightType::Q8_0) return action(TypeTag<WeightType::Q8_0>{});
    action(TypeTag<WeightType::F16>{});
}

inline void store_cache_row(const CacheRows& cache, int64_t place, const float* x, int64_t n) {
    with_cache_type(cache, [&](auto tag) {
        store_row<decltype(tag)::value>(x, n, cache.data + place * cache.row_bytes);
    });
}

void attention_store(const AttentionJob& job, int64_t head_kv) {
    for (int64_t t = 0; t < job.n_tokens; t++) {
        const int64_t place = (job.slots[t] * job.n_head_kv + head_kv) * job.n_ctx + job.positions[t];
        const int64_t source = t * job.n_head_kv + head_kv;
        store_cache_row(job.k_cache, place, job.k + source * job.head_dim, job.head_dim);
        store_cache_row(job.v_cache, place, job.v + source * job.head_dim_v, job.head_dim_v);
    }
}

// e^x for x <= 0, or NaN; 0 below -87, where float32 runs out of normal numbers. Relative error below 2e-7: the range
// is cut to [-ln2/2, ln2/2], where the series of degree 7 is off by 5e-9. Branch-free, so that loops vectorise.
inline float exp_not_positive(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
    const float n = shifted - 12582912.0f;
    const float r = madd1(n, -1.42860677e-6f, madd1(n, -0.693145752f, clamped));
    float p = 1.98412698e-4f;
    p = madd1(p, r, 1.38888889e-3f);
    p = madd1(p, r, 8.33333333e-3f);
    p = madd1(p, r, 4.16666667e-2f);
    p = madd1(p, r, 1.66666667e-1f);
    p = madd1(p, r, 0.5f);
    p = madd1(p, r, 1.0f);
    p = madd1(p, r, 1.0f);
    const float power = float_from_bits((bits_of(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? 0.0f : p * power;
}

// Maximum; NaN is passed over here and comes back through its own exponential.
inline float maximum(const float* x, int64_t n) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = x[0];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (; i < n; i++) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    for (int j = 1; j < 16; j++) lanes[0] = lanes[j] > lanes[0] ? lanes[j] : lanes[0];
    return lanes[0];
}

// scores[h * n + p] for up to kMaxTokens query heads that share the keys at `keys` (n, head_dim).
template <WeightType type>
void key_scores(const AttentionJob& job, const float* q, int n_heads, const uint8_t* keys, int64_t n, float* scores) {
    const uint8_t* rows[kRowTile];
    const float* x[kMaxTokens];
    float results[kRowTile * kMaxTokens];
    for (int h = 0; h < n_heads; h++) x[h] = q + h * job.head_dim;
    for (int64_t p = 0; p < n; p += kRowTile) {
        const int n_rows = n - p < kRowTile ? static_cast<int>(n - p) : kRowTile;
        for (int r = 0; r < n_rows; r++) rows[r] = keys + (p + r) * job.k_cache.row_bytes;
        products<type>(rows, n_rows, x, n_heads, job.head_dim, results);
        for (int r = 0; r < n_rows; r++)
            for (int h = 0; h < n_heads; h++) scores[h * n + p + r] = results[r * n_heads + h] * job.scale;
    }
}

// y = sum over positions of e^(score - max) * value, divided by the sum of the exponentials.
template <WeightType type>
void mix_values(const AttentionJob& job, const uint8_t* values, int64_t n, float* scores, float* y) {
    const float top = maximum(scores, n);
    for (int64_t p = 0; p < n; p++) scores[p] = exp_not_positive(scores[p] - top);
    const float total = sum_of(scores, n);
    for (int64_t i = 0; i < job.head_dim_v; i++) y[i] = 0;
    const uint8_t* rows[4];
    int64_t p = 0;
    for (; p + 4 <= n; p += 4) {
        for (int k = 0; k < 4; k++) rows[k] = values + (p + k) * job.v_cache.row_bytes;
        add_rows<type, 4>(rows, scores + p, job.head_dim_v, y, FetchNext<type>{rows});
    }
    for (; p < n; p++) {
        rows[0] = values + p * job.v_cache.row_bytes;
        add_rows<type, 1>(rows, scores + p, job.head_dim_v, y, FetchNext<type>{rows});
    }
    for (int64_t i = 0; i < job.head_dim_v; i++) y[i] /= total;
}

void attention_item(const AttentionJob& job, int64_t token, int64_t head_kv, float* scores) {
    const int64_t shared = job.n_head / job.n_head_kv, n = job.positions[token] + 1;
    const int64_t cache_row = (job.slots[token] * job.n_head_kv + head_kv) * job.n_ctx;
    const int64_t first_head = token * job.n_head + head_kv * shared;
    const uint8_t* keys = job.k_cache.data + cache_row * job.k_cache.row_bytes;
    const uint8_t* values = job.v_cache.data + cache_row * job.v_cache.row_bytes;
    for (int64_t h = 0; h < shared; h += kMaxTokens) {
        const int n_heads = shared - h < kMaxTokens ? static_cast<int>(shared - h) : kMaxTokens;
        const float* q = job.q + (first_head + h) * job.head_dim;
        with_cache_type(job.k_cache, [&](auto tag) {
            key_scores<decltype(tag)::value>(job, q, n_heads, keys, n, scores + h * n);
        });
    }
    for (int64_t h = 0; h < shared; h++)
        with_cache_type(job.v_cache, [&](auto tag) {
            mix_values<decltype(tag)::value>(job, values, n, scores + h * n, job.y + (first_head + h) * job.head_dim_v);
        });
}
