// Cuts each job into work items, runs them on the pool, and adds up what was counted. The arithmetic is in isa/.
#include "operations.hpp"

#include <algorithm>
#include <atomic>

namespace powerinfer {

namespace {

// Handing an item to another core costs about a microsecond; below this many products one thread is faster.
constexpr int64_t kInlineProducts = 32768;
// An item of a matrix-vector product reads about this much: long enough to hide the hand-over, short enough to balance.
constexpr int64_t kItemBytes = 32768;
// Up to this many tokens accumulate_rows reads each row whole and in order, as memory likes it; with more, strips of
// columns let the tokens share what was read and dequantised.
constexpr int64_t kBlockScheduleTokens = 4;
constexpr int64_t kCombineCols = 1024;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Body>
void run_items(Executor& executor, int64_t n_items, bool inline_all, const Body& body) {
    if (!inline_all) return executor.pool.run(n_items, body);
    for (int64_t i = 0; i < n_items; i++) body(i, 0);
}

// A sparse item must hold enough wanted rows that their groups of four are full and the next can be asked for early.
constexpr int64_t kMaskedItemRows = 256;
// Most products that linear_group takes at once: queries, keys and values.
constexpr int kMaxGroup = 3;

// Rows per item of work that reads whole rows, a multiple of 8 (the kernels' row tile).
int64_t rows_per_item(const WeightMatrix& matrix) {
    const int64_t wanted = divide_up(kItemBytes, std::max<int64_t>(matrix.row_bytes, 1));
    return std::clamp<int64_t>(divide_up(wanted, 8) * 8, 8, 512);
}

// How the products of a job are cut into items.
struct LinearItems {
    int64_t rows = 0, row_items = 0, n = 0;

    LinearItems() = default;
    LinearItems(const LinearJob& job, bool one_item) : rows(rows_per_item(job.matrix)) {
        const int64_t n_rows = job.matrix.rows;
        if (job.mask && job.n_tokens == 1) rows = std::max(rows, std::min(n_rows / 128 * 8, kMaskedItemRows));
        if (wants_stripes(job)) rows = job.mask ? kStripedSparseRows : kStripedRows;
        if (one_item) rows = std::max<int64_t>(n_rows, 1);
        row_items = divide_up(n_rows, rows);
        n = row_items * divide_up(job.n_tokens, kTokenBlock);
    }

    // Row items vary fastest, so that threads stream neighbouring rows.
    ProductTile tile(const LinearJob& job, int64_t item) const {
        const int64_t row = item % row_items * rows, token = item / row_items * kTokenBlock;
        return {row, std::min(row + rows, job.matrix.rows), token, std::min(token + kTokenBlock, job.n_tokens)};
    }
};

// y of each token from the partial vectors of its blocks, (n_tokens, kRowBlocks, cols).
void combine_blocks(const AccumulateJob& job, const float* partials, Executor& executor, bool inline_all) {
    const int64_t cols = job.matrix.cols, n_parts = divide_up(cols, kCombineCols);
    run_items(executor, job.n_tokens * n_parts, inline_all, [&](int64_t item, int) {
        const int64_t t = item / n_parts, begin = item % n_parts * kCombineCols;
        executor.kernels.combine_partials(
            job, t, partials + t * kRowBlocks * cols, begin, std::min(begin + kCombineCols, cols));
    });
}

// One token's blocks of rows, each into a partial vector of its own.
int64_t accumulate_by_blocks(const AccumulateJob& job, Executor& executor, bool inline_all) {
    const int64_t n_rows = job.matrix.rows, cols = job.matrix.cols, block = rows_of_block(n_rows);
    int32_t* lists = executor.row_lists.reserve(job.n_tokens * n_rows);
    float* partials = executor.partials.reserve(job.n_tokens * kRowBlocks * cols);
    std::atomic<int64_t> total{0};
    run_items(executor, job.n_tokens * kRowBlocks, inline_all, [&](int64_t item, int) {
        const int64_t t = item / kRowBlocks, begin = std::min(item % kRowBlocks * block, n_rows);
        const int64_t n = executor.kernels.accumulate_block(
            job, t, begin, std::min(begin + block, n_rows), lists + t * n_rows + begin, partials + item * cols);
        total.fetch_add(n, std::memory_order_relaxed);
    });
    combine_blocks(job, partials, executor, inline_all);
    return total.load();
}

int64_t accumulate_by_strips(const AccumulateJob& job, Executor& executor, bool inline_all) {
    const int64_t n_strips = divide_up(job.matrix.cols, kStripCols);
    const int64_t n_blocks = divide_up(job.n_tokens, kStripTokens);
    float* scratch = executor.strips.reserve(kStripScratch * executor.pool.n_threads());
    std::atomic<int64_t> total{0};
    run_items(executor, n_strips * n_blocks, inline_all, [&](int64_t item, int thread) {
        const int64_t col = item % n_strips * kStripCols, token = item / n_strips * kStripTokens;
        const StripTile tile{col, std::min(col + kStripCols, job.matrix.cols), token,
                             std::min(token + kStripTokens, job.n_tokens)};
        const int64_t n = executor.kernels.accumulate_strip(job, tile, scratch + thread * kStripScratch);
        total.fetch_add(n, std::memory_order_relaxed);
    });
    return total.load();
}

// Scratch memory for tokens in 8 bits; a group of products may need them in both orders.
QuantisedTokens quantise(const LinearJob& job, TokenOrder order, Executor& executor) {
    const int64_t cols = job.matrix.cols, n_scales = job.n_tokens * (cols / 32), n_lanes = job.n_tokens * (cols / 16);
    const int64_t slot = static_cast<int64_t>(order);
    int8_t* q = executor.quantised.reserve(2 * job.n_tokens * cols) + slot * job.n_tokens * cols;
    float* scales = executor.quantised_scales.reserve(2 * (n_scales + n_lanes)) + slot * (n_scales + n_lanes);
    int32_t* negative_sums = executor.quantised_sums.reserve(2 * n_lanes) + slot * n_lanes;
    const TokensJob work{job.x, cols, order, q, scales, negative_sums, scales + n_scales};
    run_items(executor, job.n_tokens, job.n_tokens * cols <= kInlineProducts, [&](int64_t token, int) {
        executor.kernels.quantise_token(work, token);
    });
    return {q, scales, negative_sums, scales + n_scales, order};
}

// The same for stripes of float32.
const float* stripe(const LinearJob& job, Executor& executor) {
    const int64_t cols = job.matrix.cols, n_tokens = job.n_tokens, n_stripes = divide_up(cols, kStripeCols);
    float* striped = executor.striped.reserve(n_stripes * n_tokens * kStripeCols);
    run_items(executor, n_tokens, n_tokens * cols <= kInlineProducts, [&](int64_t token, int) {
        const float* x = job.x + token * cols;
        for (int64_t begin = 0; begin < cols; begin += kStripeCols)
            std::copy(x + begin, x + std::min(begin + kStripeCols, cols), striped + begin * n_tokens + token * kStripeCols);
    });
    return striped;
}

// Tokens in the orders in which other jobs over the same tokens had wanted them.
struct MadeTokens {
    QuantisedTokens quantised[2];  // by order
    const float* striped = nullptr;
};

// The job with its tokens in the order that its rows want, made if they had not been.
LinearJob with_tokens(LinearJob job, MadeTokens& made, Executor& executor) {
    if (wants_stripes(job)) {
        if (!made.striped) made.striped = stripe(job, executor);
        job.striped = made.striped;
    }
    if (!job.matrix.packed) return job;
    const TokenOrder order = token_order(job.matrix.type);
    QuantisedTokens& tokens = made.quantised[static_cast<int>(order)];
    if (!tokens.q) tokens = quantise(job, order, executor);
    job.quantised = tokens;
    return job;
}

}  // namespace

int64_t linear(const LinearJob& given, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    MadeTokens made;
    const LinearJob job = with_tokens(given, made, executor);
    const bool inline_all = job.matrix.rows * job.matrix.cols * job.n_tokens <= kInlineProducts;
    const LinearItems items(job, inline_all);
    std::atomic<int64_t> total{0};
    run_items(executor, items.n, inline_all, [&](int64_t item, int) {
        total.fetch_add(executor.kernels.linear_tile(job, items.tile(job, item)), std::memory_order_relaxed);
    });
    return total.load();
}

void linear_group(const LinearJob* given, int n_jobs, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    LinearJob jobs[kMaxGroup];
    MadeTokens made;
    int64_t products = 0;
    for (int i = 0; i < n_jobs; i++) {
        jobs[i] = with_tokens(given[i], made, executor);
        products += jobs[i].matrix.rows * jobs[i].matrix.cols * jobs[i].n_tokens;
    }
    const bool inline_all = products <= kInlineProducts;
    LinearItems items[kMaxGroup];
    int64_t n = 0;
    for (int i = 0; i < n_jobs; i++) n += (items[i] = LinearItems(jobs[i], inline_all)).n;
    run_items(executor, n, inline_all, [&](int64_t item, int) {
        int i = 0;
        while (item >= items[i].n) item -= items[i++].n;
        executor.kernels.linear_tile(jobs[i], items[i].tile(jobs[i], item));
    });
}

int64_t accumulate_rows(const AccumulateJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const bool inline_all = job.matrix.rows * job.matrix.cols * job.n_tokens <= kInlineProducts;
    if (job.n_tokens <= kBlockScheduleTokens) return accumulate_by_blocks(job, executor, inline_all);
    return accumulate_by_strips(job, executor, inline_all);
}

bool can_run_neurons(const NeuronsJob& job, const Executor& executor) {
    for (const LinearJob* products : {&job.first, &job.second})
        if (products->matrix.data && !products->matrix.packed) return false;
    return job.mask && job.down.n_tokens == 1 && !job.down.all_rows && executor.pool.n_threads() <= kRowBlocks;
}

NeuronCounts neurons(const NeuronsJob& given, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    NeuronsJob job = given;
    MadeTokens made;
    job.first = with_tokens(job.first, made, executor);
    job.second = with_tokens(job.second, made, executor);
    const int64_t n_rows = job.down.matrix.rows, cols = job.down.matrix.cols, block = rows_of_block(n_rows);
    const bool inline_all = n_rows * cols <= kInlineProducts;
    int32_t* lists = executor.row_lists.reserve(kRowBlocks * (block + kGroupNeurons));
    float* partials = executor.partials.reserve(kRowBlocks * cols);
    NeuronCounts of_block[kRowBlocks], total{0, 0, 0, 0};
    run_items(executor, kRowBlocks, inline_all, [&](int64_t item, int) {
        const int64_t begin = std::min(item * block, n_rows), end = std::min(begin + block, n_rows);
        of_block[item] = executor.kernels.neurons_block(
            job, begin, end, lists + item * (block + kGroupNeurons), partials + item * cols);
    });
    for (const NeuronCounts& counts : of_block) {
        total.first += counts.first;
        total.second += counts.second;
        total.down += counts.down;
        total.fired += counts.fired;
    }
    combine_blocks(job.down, partials, executor, inline_all);
    return total;
}

void pack(const WeightMatrix& stored, const WeightMatrix& packed, uint8_t* out, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t item_rows = rows_per_item(stored);
    run_items(executor, divide_up(stored.rows, item_rows), false, [&](int64_t item, int) {
        for (int64_t r = item * item_rows; r < std::min((item + 1) * item_rows, stored.rows); r++)
            executor.kernels.pack_row(
                stored.type, stored.data + r * stored.row_bytes, stored.cols, out + r * packed.row_bytes);
    });
}

void copy(const WeightMatrix& stored, const WeightMatrix& copied, uint8_t* out, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t item_rows = rows_per_item(stored);
    run_items(executor, divide_up(stored.rows, item_rows), false, [&](int64_t item, int) {
        for (int64_t r = item * item_rows; r < std::min((item + 1) * item_rows, stored.rows); r++) {
            const uint8_t* row = stored.data + r * stored.row_bytes;
            std::copy(row, row + stored.row_bytes, out + r * copied.row_bytes);
        }
    });
}

void rows(const RowsJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t item_rows = rows_per_item(job.matrix);
    run_items(
        executor, divide_up(job.n, item_rows), job.n * job.matrix.cols <= kInlineProducts, [&](int64_t item, int) {
            executor.kernels.rows(job, item * item_rows, std::min((item + 1) * item_rows, job.n));
        });
}

void norm(const NormJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    run_items(executor, job.n_tokens, job.n_tokens * job.n <= kInlineProducts, [&](int64_t token, int) {
        executor.kernels.norm(job, token);
    });
}

void rope(const RopeJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const bool inline_all = job.n_tokens * job.n_head * job.head_dim <= kInlineProducts;
    run_items(executor, job.n_tokens, inline_all, [&](int64_t token, int) { executor.kernels.rope(job, token); });
}

void attention(const AttentionJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    int64_t n_positions = 0, products = 0;
    for (int64_t t = 0; t < job.n_tokens; t++) {
        n_positions = std::max(n_positions, job.positions[t] + 1);
        products += (job.positions[t] + 1) * job.n_head * (job.head_dim + job.head_dim_v);
    }
    const bool inline_all = products <= kInlineProducts;
    // All is stored before anything is read. An item is a key head, its tokens in order: were two tokens to share a
    // place, the last would win for any number of threads.
    const bool inline_store = job.n_tokens * job.n_head_kv * (job.head_dim + job.head_dim_v) <= kInlineProducts;
    run_items(executor, job.n_head_kv, inline_store, [&](int64_t head_kv, int) {
        executor.kernels.attention_store(job, head_kv);
    });
    const int64_t item_scores = divide_up(job.n_head / job.n_head_kv * n_positions, 64) * 64;
    float* scores = executor.scores.reserve(item_scores * executor.pool.n_threads());
    // The last token of a prompt sees the most positions: the longest items go first.
    run_items(executor, job.n_tokens * job.n_head_kv, inline_all, [&](int64_t item, int thread) {
        executor.kernels.attention_item(
            job, job.n_tokens - 1 - item / job.n_head_kv, item % job.n_head_kv, scores + thread * item_scores);
    });
}

}  // namespace powerinfer
