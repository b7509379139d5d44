// The two blocks of a transformer layer as one call each. What they compute is what kernels/blocks.py composes of single
// operations; here the tensors between them live in the executor's scratch memory and nothing is allocated per token.
#include <atomic>
#include <chrono>
#include <optional>

#include "operations.hpp"

namespace powerinfer {

namespace {

// Elements that one thread handles sooner than another could be woken.
constexpr int64_t kItemElements = 16384;

template <typename Body>
void run_elements(Executor& executor, int64_t n, const Body& body) {
    executor.pool.run((n + kItemElements - 1) / kItemElements, [&](int64_t item, int) {
        const int64_t begin = item * kItemElements;
        body(begin, n < begin + kItemElements ? n : begin + kItemElements);
    });
}

template <typename Body>
int64_t count_elements(Executor& executor, int64_t n, const Body& body) {
    std::atomic<int64_t> total{0};
    run_elements(executor, n, [&](int64_t begin, int64_t end) {
        total.fetch_add(body(begin, end), std::memory_order_relaxed);
    });
    return total.load();
}

void add(Executor& executor, const float* a, const float* b, float* y, int64_t n) {
    run_elements(executor, n, [&](int64_t begin, int64_t end) { executor.kernels.add(a, b, y, begin, end); });
}

void normalise(const Norm& weights, const float* x, float* y, int64_t n_tokens, int64_t n, Executor& executor) {
    norm({x, weights.weight, weights.bias, y, n_tokens, n, weights.eps, weights.subtract_mean}, executor);
}

LinearJob product(const Linear& linear, const float* x, const uint8_t* mask, float* y, int64_t n_tokens) {
    return {linear.matrix, x, linear.bias, mask, y, n_tokens};
}

// inner (n_tokens, rank) and scores (n_tokens, n_ff) are scratch.
void predict_into(const PredictJob& job, float* inner, float* scores, Executor& executor) {
    const int64_t n_inner = job.n_tokens * job.fc1.rows, n = job.n_tokens * job.fc2.rows;
    linear(product({job.fc1, nullptr}, job.x, nullptr, inner, job.n_tokens), executor);
    run_elements(executor, n_inner, [&](int64_t begin, int64_t end) { executor.kernels.relu(inner, begin, end); });
    linear(product({job.fc2, nullptr}, inner, nullptr, scores, job.n_tokens), executor);
    run_elements(executor, n, [&](int64_t begin, int64_t end) {
        executor.kernels.predict(scores, job.threshold, job.mask, begin, end);
    });
}

// Scratch of an FFN, (n_tokens, n_ff) each. wanted is used where no mask is given.
struct Neurons {
    float *first, *up, *hidden;
    uint8_t *wanted, *fired;
};

// One token through packed matrices without a pass over memory for each: see isa/neurons.hpp. Nothing where the job is no
// such thing.
std::optional<FeedForwardCounts> run_in_one_pass(
    const FeedForwardBlockJob& job, const float* h, const uint8_t* mask, const Neurons& neurons, float* y,
    int64_t n_tokens, Executor& executor) {
    const bool gated = job.gate.matrix.data != nullptr;
    const LinearJob gate = product(job.gate, h, nullptr, neurons.first, n_tokens);
    const LinearJob up = product(job.up, h, nullptr, neurons.up, n_tokens);
    NeuronsJob pass{gated ? gate : up, gated ? up : LinearJob{},
                    {job.down.matrix, nullptr, job.down.bias, y, n_tokens, job.dense},
                    mask, nullptr, neurons.fired, job.activation, job.fatrelu_threshold};
    if (!mask) {
        if (!gated) return std::nullopt;
        pass.first = {};
        pass.mask = neurons.wanted;
        pass.values = neurons.first;
    }
    if (!job.down_is_transposed || !can_run_neurons(pass, executor)) return std::nullopt;
    if (!mask) {
        // Every gate row is read: a stream of its own.
        linear(gate, executor);
        const HiddenJob between{neurons.first, nullptr, nullptr, neurons.wanted, nullptr, job.activation,
                                job.fatrelu_threshold};
        run_elements(executor, job.n_ff, [&](int64_t begin, int64_t end) {
            executor.kernels.fire(between, begin, end);
        });
    }
    const NeuronCounts counts = powerinfer::neurons(pass, executor);
    return FeedForwardCounts{mask ? (gated ? counts.first : 0) : job.n_ff, gated ? counts.second : counts.first,
                             counts.down, counts.fired, 0.0};
}

// y = the FFN of h over the neurons of `mask`, or all; y may be h.
FeedForwardCounts run_neurons(
    const FeedForwardBlockJob& job, const float* h, const uint8_t* mask, const Neurons& neurons, float* y,
    int64_t n_tokens, Executor& executor) {
    const int64_t n = n_tokens * job.n_ff;
    const bool gated = job.gate.matrix.data != nullptr;
    FeedForwardCounts counts{0, 0, 0, 0, 0.0};
    if (const auto of_pass = run_in_one_pass(job, h, mask, neurons, y, n_tokens, executor)) return *of_pass;
    const HiddenJob between{neurons.first, gated ? neurons.up : nullptr, mask, neurons.fired, neurons.hidden,
                            job.activation, job.fatrelu_threshold};
    const auto fire = [&](int64_t begin, int64_t end) { executor.kernels.fire(between, begin, end); };
    if (gated && job.dense) {
        const LinearJob products[] = {product(job.gate, h, nullptr, neurons.first, n_tokens),
                                      product(job.up, h, nullptr, neurons.up, n_tokens)};
        linear_group(products, 2, executor);
        counts.gate = counts.up = n;
        run_elements(executor, n, fire);
    } else {
        int64_t& count = gated ? counts.gate : counts.up;
        const uint8_t* wanted = job.dense ? nullptr : mask;
        count = linear(product(gated ? job.gate : job.up, h, wanted, neurons.first, n_tokens), executor);
        run_elements(executor, n, fire);
        if (gated) counts.up = linear(product(job.up, h, neurons.fired, neurons.up, n_tokens), executor);
    }
    counts.fired = count_elements(
        executor, n, [&](int64_t begin, int64_t end) { return executor.kernels.hide(between, begin, end); });
    if (job.down_is_transposed) {
        counts.down = accumulate_rows({job.down.matrix, neurons.hidden, job.down.bias, y, n_tokens, job.dense}, executor);
    } else {
        counts.down = linear(product(job.down, neurons.hidden, nullptr, y, n_tokens), executor) / job.n_embd * job.n_ff;
    }
    return counts;
}

}  // namespace

void attention_block(const AttentionBlockJob& job, const AttentionStep& step, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t n = step.n_tokens, n_q = n * job.q.matrix.rows, n_k = n * job.k.matrix.rows;
    const int64_t n_v = n * job.v.matrix.rows, n_mixed = n * job.n_head * job.head_dim_v, n_x = n * job.n_embd;
    float* h = executor.activations.reserve(n_x + 2 * (n_q + n_k) + n_v + n_mixed);
    float *q = h + n_x, *k = q + n_q, *v = k + n_k, *q_turned = v + n_v, *k_turned = q_turned + n_q;
    float* mixed = k_turned + n_k;
    normalise(job.norm, step.x, h, n, job.n_embd, executor);
    const LinearJob products[] = {product(job.q, h, nullptr, q, n), product(job.k, h, nullptr, k, n),
                                  product(job.v, h, nullptr, v, n)};
    linear_group(products, 3, executor);
    if (step.cos) {
        rope({q, step.positions, step.cos, step.sin, q_turned, n, job.n_head, job.head_dim, step.n_rot, step.halves},
             executor);
        rope({k, step.positions, step.cos, step.sin, k_turned, n, job.n_head_kv, job.head_dim, step.n_rot, step.halves},
             executor);
    } else {
        q_turned = q;
        k_turned = k;
    }
    attention({q_turned, k_turned, v, step.k_cache, step.v_cache, step.slots, step.positions, mixed, n, job.n_head,
               job.n_head_kv, step.n_ctx, job.head_dim, job.head_dim_v, job.scale},
              executor);
    linear(product(job.output, mixed, nullptr, h, n), executor);
    add(executor, step.residual, h, step.y, n_x);
}

FeedForwardCounts feed_forward_block(const FeedForwardBlockJob& job, const FeedForwardStep& step, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t n_tokens = step.n_tokens, n = n_tokens * job.n_ff, n_x = n_tokens * job.n_embd;
    const bool predicted = job.fc1.data != nullptr && !job.dense;
    float* h = executor.activations.reserve(n_x + 3 * n + (predicted ? n_tokens * job.fc1.rows : 0));
    float *first = h + n_x, *inner = first + 3 * n;
    uint8_t* masks = executor.masks.reserve(2 * n);
    uint8_t* mask = predicted ? (step.predicted ? step.predicted : masks) : nullptr;
    double predictor_s = 0.0;
    if (predicted) {
        const auto started = std::chrono::steady_clock::now();
        predict_into({job.fc1, job.fc2, step.x, job.sparse_threshold, mask, n_tokens}, inner, first, executor);
        predictor_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    }
    normalise(job.norm, step.x, h, n_tokens, job.n_embd, executor);
    const Neurons neurons{first, first + n, first + 2 * n, masks, step.fired ? step.fired : masks + n};
    FeedForwardCounts counts = run_neurons(job, h, mask, neurons, h, n_tokens, executor);
    counts.predictor_s = predictor_s;
    add(executor, step.residual, h, step.y, n_x);
    return counts;
}

void run_layers(const LayersStep& step, FeedForwardCounts* counts, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const float* x = step.x;
    for (int64_t i = 0; i < step.n_layers; i++) {
        const LayerJob& layer = step.layers[i];
        const int64_t n_x = step.n_tokens * layer.attention->n_embd;
        // An FFN that sees the layer's input must find it after attention has written its own result.
        float* attended = step.parallel ? executor.attended.reserve(n_x) : step.y;
        attention_block(*layer.attention,
                        {x, x, attended, layer.k_cache, layer.v_cache, step.slots, step.positions, step.cos, step.sin,
                         step.n_tokens, step.n_ctx, step.n_rot, step.halves},
                        executor);
        const float* input = step.parallel ? x : attended;
        counts[i] = feed_forward_block(
            *layer.feed_forward, {input, attended, step.y, nullptr, nullptr, step.n_tokens}, executor);
        x = step.y;
    }
}

FeedForwardCounts feed_forward_part(
    const FeedForwardBlockJob& job, const FeedForwardPartStep& step, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t n = step.n_tokens * job.n_ff;
    float* first = executor.activations.reserve(3 * n);
    uint8_t* masks = executor.masks.reserve(2 * n);
    const Neurons neurons{first, first + n, first + 2 * n, masks, step.fired ? step.fired : masks + n};
    return run_neurons(job, step.h, step.mask, neurons, step.y, step.n_tokens, executor);
}

void predict(const PredictJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t n_inner = job.n_tokens * job.fc1.rows;
    float* inner = executor.activations.reserve(n_inner + job.n_tokens * job.fc2.rows);
    predict_into(job, inner, inner + n_inner, executor);
}

}  // namespace powerinfer
