// Norms and rotary embedding, one token an item. Included inside the instruction set's namespace.

// Sum of (x - mean)^2: lane c mod kWidth in ascending order, then the lanes, then the rest; the same for every batch.
inline float sum_of_squares(const float* x, float mean, int64_t n) {
    V acc = set1(0);
    const V shift = set1(-mean);
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        const V d = add(load(x + i), shift);
        acc = madd(d, d, acc);
    }
    float total = sum(acc);
    for (; i < n; i++) total = madd1(x[i] - mean, x[i] - mean, total);
    return total;
}

inline float sum_of(const float* x, int64_t n) {
    V acc = set1(0);
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) acc = add(acc, load(x + i));
    float total = sum(acc);
    for (; i < n; i++) total += x[i];
    return total;
}

void norm(const NormJob& job, int64_t token) {
    const float* x = job.x + token * job.n;
    float* y = job.y + token * job.n;
    const float n = static_cast<float>(job.n);
    const float mean = job.subtract_mean ? sum_of(x, job.n) / n : 0.0f;
    const float scale = 1.0f / __builtin_sqrtf(sum_of_squares(x, mean, job.n) / n + job.eps);
    if (job.bias) {
        for (int64_t i = 0; i < job.n; i++) y[i] = (x[i] - mean) * scale * job.weight[i] + job.bias[i];
    } else {
        for (int64_t i = 0; i < job.n; i++) y[i] = (x[i] - mean) * scale * job.weight[i];
    }
}

// `distance` between the two of a pair, `step` from one pair to the next.
inline void rotate(
    const float* x, const float* cos, const float* sin, int64_t n_pairs, int64_t distance, int64_t step, float* y) {
    for (int64_t i = 0; i < n_pairs; i++) {
        const float a = x[i * step], b = x[i * step + distance];
        y[i * step] = a * cos[i] - b * sin[i];
        y[i * step + distance] = a * sin[i] + b * cos[i];
    }
}

void rope(const RopeJob& job, int64_t token) {
    const int64_t n_pairs = job.n_rot / 2, position = job.positions[token];
    const float* cos = job.cos + position * n_pairs;
    const float* sin = job.sin + position * n_pairs;
    for (int64_t head = 0; head < job.n_head; head++) {
        const int64_t offset = (token * job.n_head + head) * job.head_dim;
        const float* x = job.x + offset;
        float* y = job.y + offset;
        if (job.halves)
            rotate(x, cos, sin, n_pairs, n_pairs, 1, y);
        else
            rotate(x, cos, sin, n_pairs, 1, 2, y);
        for (int64_t i = job.n_rot; i < job.head_dim; i++) y[i] = x[i];
    }
}
