// What happens between the matrix products of an FFN, element by element. Included inside the instruction set's namespace.
//
// Conditions are written as negations, so that NaN fires and reaches the output instead of vanishing.

inline float relu(float x) { return x < 0 ? 0.0f : x; }

// e = e^-|x| keeps the exponential within range on both sides of zero.
inline float silu(float x) {
    const float e = exp_not_positive(x < 0 ? x : -x);
    return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

void relu_range(float* x, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) x[i] = relu(x[i]);
}

int64_t predict_range(const float* scores, float threshold, uint8_t* mask, int64_t begin, int64_t end) {
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++) {
        mask[i] = !(scores[i] < threshold);
        n += mask[i];
    }
    return n;
}

void fire_range(const HiddenJob& job, int64_t begin, int64_t end) {
    const float* first = job.first;
    uint8_t* fired = job.fired;
    switch (job.activation) {
        case Activation::silu:
            for (int64_t i = begin; i < end; i++) fired[i] = 1;
            break;
        case Activation::fatrelu:
            for (int64_t i = begin; i < end; i++) fired[i] = !(first[i] < job.fatrelu_threshold);
            break;
        default:
            for (int64_t i = begin; i < end; i++) fired[i] = !(first[i] <= 0);
    }
    if (job.mask)
        for (int64_t i = begin; i < end; i++) fired[i] &= job.mask[i];
}

int64_t hide_range(const HiddenJob& job, int64_t begin, int64_t end) {
    const float* first = job.first;
    const float* up = job.up;
    float* hidden = job.hidden;
    uint8_t* fired = job.fired;
    if (job.activation == Activation::drelu)
        for (int64_t i = begin; i < end; i++) fired[i] &= !(up[i] <= 0);
    switch (job.activation) {
        case Activation::silu:
            for (int64_t i = begin; i < end; i++) hidden[i] = silu(first[i]);
            break;
        case Activation::relu2:
            for (int64_t i = begin; i < end; i++) hidden[i] = first[i] * first[i];
            break;
        default:
            for (int64_t i = begin; i < end; i++) hidden[i] = first[i];
    }
    if (up)
        for (int64_t i = begin; i < end; i++) hidden[i] *= up[i];
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++) {
        hidden[i] = fired[i] ? hidden[i] : 0.0f;
        n += fired[i];
    }
    return n;
}

void add_range(const float* a, const float* b, float* y, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) y[i] = a[i] + b[i];
}
