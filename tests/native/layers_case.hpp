// All layers of a model in one call, against their operations one by one: the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "random_layer.hpp"

namespace native_test {

// Two layers, of which each has weights of its own, with the caches that a forward leaves.
class TwoLayers {
public:
    TwoLayers(const std::pair<Model, Model>& models, const FeedForwardCase& kind, bool packs, Executor& executor)
        : prepared_(packs, executor),
          attention_{attention_job(models.first, prepared_), attention_job(models.second, prepared_)},
          feed_forward_{feed_forward_job(models.first, kind, prepared_),
                        feed_forward_job(models.second, kind, prepared_)} {
        for (int i = 0; i < 2; i++)
            layers_[i] = {&attention_[i], &feed_forward_[i], keys_[i].rows, values_[i].rows};
    }

    const LayerJob* layers() const { return layers_; }

    void close(Results& results) {
        for (Cache& cache : keys_) cache.halves.close(results);
        for (Cache& cache : values_) cache.halves.close(results);
    }

private:
    Prepared prepared_;
    AttentionBlockJob attention_[2];
    FeedForwardBlockJob feed_forward_[2];
    Cache keys_[2] = {{WeightType::F16, 0x2c00}, {WeightType::F16, 0x2c80}};
    Cache values_[2] = {{WeightType::F16, 0xb000}, {WeightType::F16, 0xb080}};
    LayerJob layers_[2];
};

inline std::vector<float> normed(const Norm& weights, const float* x, int64_t n_tokens, Executor& executor) {
    std::vector<float> h(static_cast<size_t>(n_tokens * kEmbd));
    norm({x, weights.weight, weights.bias, h.data(), n_tokens, kEmbd, weights.eps, weights.subtract_mean}, executor);
    return h;
}

inline std::vector<float> product(const Linear& weights, const std::vector<float>& x, int64_t n_tokens,
                                  Executor& executor) {
    std::vector<float> y(static_cast<size_t>(n_tokens * weights.matrix.rows));
    linear({weights.matrix, x.data(), weights.bias, nullptr, y.data(), n_tokens}, executor);
    return y;
}

inline std::vector<float> turned(const std::vector<float>& x, int64_t n_head, const LayersStep& step,
                                 Executor& executor) {
    std::vector<float> y(x.size());
    rope({x.data(), step.positions, step.cos, step.sin, y.data(), step.n_tokens, n_head, kHeadDim, step.n_rot,
          step.halves},
         executor);
    return y;
}

inline void add_to(std::vector<float>& sum, const std::vector<float>& values) {
    for (size_t i = 0; i < sum.size(); i++) sum[i] += values[i];
}

inline std::vector<float> attention_one_by_one(const LayerJob& layer, const LayersStep& step, const float* x,
                                               Executor& executor) {
    const AttentionBlockJob& job = *layer.attention;
    const int64_t n = step.n_tokens;
    const std::vector<float> h = normed(job.norm, x, n, executor);
    const std::vector<float> q = turned(product(job.q, h, n, executor), kHead, step, executor);
    const std::vector<float> k = turned(product(job.k, h, n, executor), kHeadKv, step, executor);
    const std::vector<float> v = product(job.v, h, n, executor);
    std::vector<float> mixed(static_cast<size_t>(n * kHead * kHeadDim));
    attention({q.data(), k.data(), v.data(), layer.k_cache, layer.v_cache, step.slots, step.positions, mixed.data(), n,
               kHead, kHeadKv, step.n_ctx, kHeadDim, kHeadDim, job.scale},
              executor);
    return product(job.output, mixed, n, executor);
}

// h: (n_tokens, kEmbd), normed; mask: (n_tokens, kFf), or null for all neurons.
inline std::vector<float> neurons_one_by_one(const FeedForwardBlockJob& job, const float* h, const uint8_t* mask,
                                             int64_t n_tokens, FeedForwardCounts& counts, Executor& executor) {
    const int64_t n = n_tokens * kFf;
    const bool gated = job.gate.matrix.data;
    std::vector<uint8_t> fired(static_cast<size_t>(n));
    std::vector<float> first(static_cast<size_t>(n)), up(static_cast<size_t>(n)), hidden(static_cast<size_t>(n));
    const HiddenJob between{first.data(),  gated ? up.data() : nullptr, mask, fired.data(), hidden.data(), job.activation,
                            job.fatrelu_threshold};
    const Linear& read_first = gated ? job.gate : job.up;
    const int64_t n_first = linear({read_first.matrix, h, read_first.bias, mask, first.data(), n_tokens}, executor);
    (gated ? counts.gate : counts.up) = n_first;
    executor.kernels.fire(between, 0, n);
    const uint8_t* of_gate = job.dense ? nullptr : fired.data();
    if (gated) counts.up = linear({job.up.matrix, h, job.up.bias, of_gate, up.data(), n_tokens}, executor);
    counts.fired = executor.kernels.hide(between, 0, n);
    if (!job.down_is_transposed) {
        counts.down = n;
        return product(job.down, hidden, n_tokens, executor);
    }
    std::vector<float> y(static_cast<size_t>(n_tokens * kEmbd));
    counts.down =
        accumulate_rows({job.down.matrix, hidden.data(), job.down.bias, y.data(), n_tokens, job.dense}, executor);
    return y;
}

inline std::vector<float> feed_forward_one_by_one(const FeedForwardBlockJob& job, const float* x, int64_t n_tokens,
                                                  FeedForwardCounts& counts, Executor& executor) {
    const bool predicts = job.fc1.data && !job.dense;
    std::vector<uint8_t> mask(static_cast<size_t>(predicts ? n_tokens * kFf : 0));
    if (predicts) predict({job.fc1, job.fc2, x, job.sparse_threshold, mask.data(), n_tokens}, executor);
    const std::vector<float> h = normed(job.norm, x, n_tokens, executor);
    return neurons_one_by_one(job, h.data(), predicts ? mask.data() : nullptr, n_tokens, counts, executor);
}

inline void layers_one_by_one(const LayersStep& step, FeedForwardCounts* counts, Executor& executor) {
    std::vector<float> x(step.x, step.x + step.n_tokens * kEmbd);
    for (int64_t i = 0; i < step.n_layers; i++) {
        const LayerJob& layer = step.layers[i];
        std::vector<float> attended = x;
        add_to(attended, attention_one_by_one(layer, step, x.data(), executor));
        const float* input = step.parallel ? x.data() : attended.data();
        const std::vector<float> h =
            feed_forward_one_by_one(*layer.feed_forward, input, step.n_tokens, counts[i], executor);
        x = std::move(attended);
        add_to(x, h);
    }
    std::copy(x.begin(), x.end(), step.y);
}

// What a forward computes and leaves in the caches; run: `run_layers` or its stand-in.
template <typename Run>
Results results_of(const std::pair<Model, Model>& models, const FeedForwardCase& kind, bool packs, bool parallel,
                   int64_t n_tokens, Executor& executor, const Run& run) {
    const Model& inputs = models.first;
    TwoLayers model(models, kind, packs, executor);
    Output<float> y(n_tokens * kEmbd);
    FeedForwardCounts counts[2];
    run({model.layers(), 2, parallel, inputs.x.data(), y.data(), inputs.slots.data(), inputs.positions.data(),
         inputs.cos.data(), inputs.sin.data(), n_tokens, kCtx, kHeadDim, true},
        counts, executor);
    Results results;
    y.close(results);
    model.close(results);
    for (const FeedForwardCounts& of_layer : counts) {
        for (const int64_t count : {of_layer.gate, of_layer.up, of_layer.down, of_layer.fired})
            results.add_count(count);
        if (of_layer.fired == 0) fail("no neuron fired, so that nothing was tested");
    }
    return results;
}

// A sparse model with predictor and gate, and a dense one.
inline constexpr FeedForwardCase kLayersCases[] = {
    {Activation::relu, true, true, false, true},
    {Activation::silu, true, false, true, false},
};

inline void test_layers(const KernelTable& table) {
    for (const Layout& layout : layouts()) {
        if (layout.type != WeightType::F32 && layout.type != WeightType::Q4_0 && layout.type != WeightType::Q8_0)
            continue;
        const std::pair<Model, Model> models{std::piecewise_construct, std::forward_as_tuple(layout, 11),
                                             std::forward_as_tuple(layout, 12)};
        const bool packs = layout.type != WeightType::F32;
        Executor alone(table, 1);
        for (const FeedForwardCase& kind : kLayersCases)
            for (const bool parallel : {false, true})
                for (const int64_t n_tokens : {int64_t{1}, kMaxTokens}) {
                    const Results expected =
                        results_of(models, kind, packs, parallel, n_tokens, alone, layers_one_by_one);
                    for (const int n_threads : {1, 2, 3}) {
                        Executor executor(table, n_threads);
                        if (results_of(models, kind, packs, parallel, n_tokens, executor, run_layers) != expected)
                            fail(std::string(table.name) + " " + layout.name + ": layers differ in one call, " +
                                 std::to_string(n_threads) + " threads");
                    }
                }
    }
}

}  // namespace native_test
