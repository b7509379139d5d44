// A token's FFN over single neurons, in one pass over their rows. Included inside the instruction set's namespace.
//
// Rows of a tenth of all neurons lie apart, and each begins with a miss of the address translation that costs twice as
// much as one of the caches. So rows are read four at a time, and while they are computed others are asked for, line by
// line and at an even pace: the core neither waits in front of a queue of misses that is full nor leaves it empty. Where
// the rows of a neuron lie beside each other, two misses of three are saved. Measured in turns on Zen 3, two threads, rows
// of 2.3 KB, 10 % of the neurons: three passes read 9.6 GB/s, one pass 12.5 with matrices apart and 15.6 with rows beside
// each other; at 30 % 11.4, 15.2 and 18.1.
//
// Rows that are asked for are not yet read: up and down rows of a neuron that did not fire come in vain, never wrongly.

constexpr int kNeuronRows = 4;

// Rows that will be read, asked for in lines of 64 bytes while others are computed.
class RowsAhead {
public:
    void clear() { n_parts_ = part_ = 0; }

    // Up to kGroupNeurons rows of n_bytes; four of them advance together.
    void add(const uint8_t* const* rows, int n_rows, int64_t n_bytes) {
        for (int r = 0; r < n_rows; r += kNeuronRows) {
            Part& part = parts_[n_parts_++];
            for (int k = 0; k < kNeuronRows; k++) part.rows[k] = rows[r + k < n_rows ? r + k : n_rows - 1];
            part.n_bytes = n_bytes;
        }
    }

    // All of it within n calls of step().
    void spread(int64_t n) {
        int64_t lines = 0;
        for (int i = 0; i < n_parts_; i++) lines += (parts_[i].n_bytes + 63) / 64;
        pace_ = n > 0 ? (lines * kOne + n - 1) / n : 0;
        due_ = at_ = 0;
        part_ = 0;
    }

    [[gnu::always_inline]] void step() {
        for (due_ += pace_; due_ >= kOne && part_ < n_parts_; due_ -= kOne) ask();
    }

    void finish() {
        while (part_ < n_parts_) ask();
    }

private:
    struct Part {
        const uint8_t* rows[kNeuronRows];
        int64_t n_bytes;
    };
    static constexpr int64_t kOne = 1 << 16;

    [[gnu::always_inline]] void ask() {
        const Part& part = parts_[part_];
        for (const uint8_t* row : part.rows) __builtin_prefetch(row + at_, 0, 2);
        at_ += 64;
        if (at_ < part.n_bytes) return;
        at_ = 0;
        part_++;
    }

    Part parts_[2 * kGroupNeurons / kNeuronRows];  // of two matrices
    int n_parts_ = 0, part_ = 0;
    int64_t at_ = 0, pace_ = 0, due_ = 0;
};

// Tiles that n rows make, whole ones and single rows.
inline int64_t n_tiles(int n) { return n / kNeuronRows + n % kNeuronRows; }

struct StepInTile {
    RowsAhead& ahead;
    [[gnu::always_inline]] void operator()(const uint8_t*, int64_t) const { ahead.step(); }
};
struct StepInSum {
    RowsAhead& ahead;
    [[gnu::always_inline]] void operator()(int k, int64_t) const {
        if (k == 0) ahead.step();
    }
};

// Products of rows and one token.
using RowProducts = void (*)(
    const uint8_t* const* rows, int n_rows, const PackedToken& x, int64_t cols, float* results, RowsAhead& ahead);

template <WeightType type>
void neuron_products(
    const uint8_t* const* rows, int n_rows, const PackedToken& x, int64_t cols, float* results, RowsAhead& ahead) {
    int r = 0;
    for (; r + kNeuronRows <= n_rows; r += kNeuronRows)
        packed_tile<type, kNeuronRows, 1>(rows + r, &x, cols, results + r, 1, StepInTile{ahead});
    for (; r < n_rows; r++) packed_tile<type, 1, 1>(rows + r, &x, cols, results + r, 1, StepInTile{ahead});
}

// partial += coefficients * rows, row after row.
using RowSums = void (*)(
    const uint8_t* const* rows, int n_rows, const float* coefficients, int64_t cols, float* partial, RowsAhead& ahead);

template <WeightType type>
void neuron_sums(
    const uint8_t* const* rows, int n_rows, const float* coefficients, int64_t cols, float* partial, RowsAhead& ahead) {
    int r = 0;
    for (; r + kNeuronRows <= n_rows; r += kNeuronRows)
        add_rows<type, kNeuronRows>(rows + r, coefficients + r, cols, partial, StepInSum{ahead});
    for (; r < n_rows; r++) add_rows<type, 1>(rows + r, coefficients + r, cols, partial, StepInSum{ahead});
}

// One of the matrices of a pass, as its stage reads it.
struct NeuronProducts {
    const LinearJob& job;
    PackedToken x;
    RowProducts run = nullptr;
    int64_t row_bytes = 0, n_steps = 0;  // of a row's bytes, and of calls of step() a tile

    explicit NeuronProducts(const LinearJob& given) : job(given), x{} {
        if (!given.matrix.data) return;
        const int64_t cols = given.matrix.cols;
        x = packed_token(given.quantised, 0, cols);
        with_packed_type(given.matrix.type, [&](auto tag) {
            constexpr WeightType type = decltype(tag)::value;
            run = neuron_products<type>;
            row_bytes = packed_head_bytes<type>(cols) + cols / 8 * Packed<type>::kBits;
            n_steps = cols / Packed<type>::kLaneWeights / 16 + 1;
        });
    }

    void ask(const int32_t* neurons, int n, RowsAhead& ahead) const {
        const uint8_t* rows[kGroupNeurons];
        for (int i = 0; i < n; i++) rows[i] = row_of(job.matrix, neurons[i]);
        if (run) ahead.add(rows, n, row_bytes);
    }

    void of(const int32_t* neurons, int n, RowsAhead& ahead, float* results) const {
        const uint8_t* rows[kGroupNeurons];
        for (int i = 0; i < n; i++) rows[i] = row_of(job.matrix, neurons[i]);
        run(rows, n, x, job.matrix.cols, results, ahead);
        if (job.bias)
            for (int i = 0; i < n; i++) results[i] += job.bias[neurons[i]];
    }
};

class NeuronPass {
public:
    NeuronPass(const NeuronsJob& job, float* partial)
        : job_(job), first_(job.first), second_(job.second), partial_(partial) {
        const WeightMatrix& down = job.down.matrix;
        with_type(down.type, [&](auto tag) {
            using G = Group<decltype(tag)::value>;
            add_ = neuron_sums<decltype(tag)::value>;
            down_bytes_ = down.cols / G::kWeights * G::kBytes;
            down_steps_ = down.cols / G::kWeights;
        });
        for (int64_t c = 0; c < down.cols; c++) partial[c] = 0;
    }

    // The first rows have none before them that would ask for them.
    void begin(const int32_t* neurons, int n) {
        ask_products(neurons, n, 0);
        ahead_.finish();
    }

    // n neurons, while the first rows of those of `next` are asked for.
    void run(const int32_t* neurons, int n, const int32_t* next, int n_next) {
        float first[kGroupNeurons], second[kGroupNeurons], hidden[kGroupNeurons];
        uint8_t fired[kGroupNeurons];
        int32_t chosen[kGroupNeurons];
        const bool gated = second_.run != nullptr;
        const HiddenJob between{first, gated ? second : nullptr, nullptr, fired, hidden, job_.activation,
                                job_.fatrelu_threshold};
        ask_down(neurons, n);
        if (job_.values)
            for (int i = 0; i < n; i++) first[i] = job_.values[neurons[i]];
        else
            first_.of(neurons, n, ahead_, first);
        fire_range(between, 0, n);
        int n_fired = 0;
        for (int i = 0; i < n; i++) {
            chosen[n_fired] = neurons[i];
            first[n_fired] = first[i];
            n_fired += fired[i];
        }
        if (gated) second_.of(chosen, n_fired, ahead_, second);
        for (int i = 0; i < n_fired; i++) fired[i] = 1;
        counts_.first += job_.values ? 0 : n;
        counts_.second += gated ? n_fired : 0;
        counts_.fired += hide_range(between, 0, n_fired);
        for (int i = 0; i < n_fired; i++) job_.fired[chosen[i]] = fired[i];
        ahead_.finish();
        add(chosen, n_fired, hidden, next, n_next);
    }

    const NeuronCounts& counts() const { return counts_; }

private:
    void ask_products(const int32_t* neurons, int n, int64_t n_steps) {
        ahead_.clear();
        first_.ask(neurons, n, ahead_);
        second_.ask(neurons, n, ahead_);
        ahead_.spread(n_steps);
    }

    void ask_down(const int32_t* neurons, int n) {
        const uint8_t* rows[kGroupNeurons];
        for (int i = 0; i < n; i++) rows[i] = row_of(job_.down.matrix, neurons[i]);
        ahead_.clear();
        ahead_.add(rows, n, down_bytes_);
        ahead_.spread(n_tiles(n) * (first_.n_steps + second_.n_steps));
    }

    void add(const int32_t* neurons, int n, const float* hidden, const int32_t* next, int n_next) {
        const uint8_t* rows[kGroupNeurons];
        float coefficients[kGroupNeurons];
        int n_added = 0;
        for (int i = 0; i < n; i++) {
            rows[n_added] = row_of(job_.down.matrix, neurons[i]);
            coefficients[n_added] = hidden[i];
            n_added += is_added(job_.down, hidden[i]);
        }
        ask_products(next, n_next, n_tiles(n_added) * down_steps_);
        add_(rows, n_added, coefficients, job_.down.matrix.cols, partial_, ahead_);
        ahead_.finish();
        counts_.down += n_added;
    }

    const NeuronsJob& job_;
    NeuronProducts first_, second_;
    RowSums add_ = nullptr;
    int64_t down_bytes_ = 0, down_steps_ = 0;
    float* partial_;
    RowsAhead ahead_;
    NeuronCounts counts_{0, 0, 0, 0};
};

NeuronCounts neurons_block(const NeuronsJob& job, int64_t begin, int64_t end, int32_t* rows, float* partial) {
    const int64_t n_rows = job.down.matrix.rows, beyond = end + kRowsBeyond < n_rows ? end + kRowsBeyond : n_rows;
    WantedRows wanted{job.mask, begin, beyond};
    // Behind the neurons of the block, those that the thread will probably compute next.
    int64_t n = 0, n_listed = 0;
    for (int64_t row; n_listed < n + kGroupNeurons && (row = wanted.next()) >= 0;) {
        rows[n_listed++] = static_cast<int32_t>(row);
        if (row < end) n = n_listed;
    }
    for (int64_t r = begin; r < end; r++) job.fired[r] = 0;
    const auto group = [&](int64_t at, int64_t last) {
        return static_cast<int>(last - at < kGroupNeurons ? last - at : kGroupNeurons);
    };
    NeuronPass pass(job, partial);
    if (n > 0) pass.begin(rows, group(0, n));
    for (int64_t at = 0; at < n; at += kGroupNeurons) {
        const int n_now = group(at, n);
        pass.run(rows + at, n_now, rows + at + n_now, group(at + n_now, n_listed));
    }
    return pass.counts();
}
