// A layer's weights in one type, with inputs, caches and prepared jobs: what cases of the native test program share.
#pragma once

#include "random_model.hpp"

namespace native_test {

inline constexpr int64_t kEmbd = 256, kFf = 512, kHead = 4, kHeadKv = 2, kHeadDim = 64, kSlots = 2, kCtx = 24;
inline constexpr int64_t kMaxTokens = 9;
inline constexpr int64_t kManyTokens = 66, kFewRows = 21;  // more than a block of tokens, fewer than an item of rows

// One layer in one weight type, with inputs for at most kMaxTokens tokens.
struct Model {
    explicit Model(const Layout& layout, uint64_t seed)
        : random(seed), q(layout, kHead * kHeadDim, kEmbd, random), k(layout, kHeadKv * kHeadDim, kEmbd, random),
          v(layout, kHeadKv * kHeadDim, kEmbd, random), output(layout, kEmbd, kHead * kHeadDim, random),
          gate(layout, kFf, kEmbd, random), up(layout, kFf, kEmbd, random), down_t(layout, kFf, kEmbd, random),
          down(layout, kEmbd, kFf, random), fc1(layout, kEmbd, kEmbd, random), fc2(layout, kFf, kEmbd, random),
          few_rows(layout, kFewRows, kEmbd, random), x(floats(random, kManyTokens * kEmbd)),
          bias(floats(random, kFf)), norm(floats(random, kEmbd)), cos(floats(random, kCtx * kHeadDim / 2)),
          sin(floats(random, kCtx * kHeadDim / 2)), mask(mask_of(random, kMaxTokens * kFf, 0.15f)),
          coefficients(floats(random, kMaxTokens * kFf)) {
        for (size_t i = 0; i < coefficients.size(); i++) coefficients[i] *= mask[i];
        for (int64_t t = 0; t < kMaxTokens; t++) {
            slots.push_back(t % kSlots);
            positions.push_back(t / kSlots + 7);
            ids.push_back(static_cast<int64_t>(random.next() % kFf));
        }
    }

    Random random;
    Weights q, k, v, output, gate, up, down_t, down, fc1, fc2, few_rows;
    std::vector<float> x, bias, norm, cos, sin;
    std::vector<uint8_t> mask;
    std::vector<float> coefficients;
    std::vector<int64_t> slots, positions, ids;
};

// Keys or values whose first positions hold something for every token to see; read as float16 or as blocks, the same
// pattern is finite.
struct Cache {
    Cache(WeightType type, uint16_t first)
        : rows(cache_rows(nullptr, type, kHeadDim)), halves(kPlaces * rows.row_bytes / 2) {
        rows.data = reinterpret_cast<uint8_t*>(halves.data());
        for (int64_t i = 0; i < kPlaces * rows.row_bytes / 2; i++)
            halves.data()[i] = static_cast<uint16_t>(first + i % 512);
    }
    static constexpr int64_t kPlaces = kSlots * kHeadKv * kCtx;
    CacheRows rows;
    Output<uint16_t> halves;
};

// The kinds of FFN: what is absent, what decides, what is read.
struct FeedForwardCase {
    Activation activation;
    bool gated, predicts, dense, down_is_transposed;
};

// Matrices for jobs: as they are stored, or packed and kept here.
class Prepared {
public:
    Prepared(bool packs, Executor& executor) : packs_(packs), executor_(executor) {}

    WeightMatrix of(const Weights& stored) {
        if (!packs_) return stored.matrix;
        packed_.push_back(Weights::packed(stored, executor_));
        return packed_.back().matrix;
    }

private:
    bool packs_;
    Executor& executor_;
    std::vector<Weights> packed_;
};

inline AttentionBlockJob attention_job(const Model& model, Prepared& prepared) {
    AttentionBlockJob job{};
    job.norm = {model.norm.data(), nullptr, 1e-5f, false};
    job.q = {prepared.of(model.q), model.bias.data()};
    job.k = {prepared.of(model.k), nullptr};
    job.v = {prepared.of(model.v), nullptr};
    job.output = {prepared.of(model.output), model.bias.data()};
    job.n_embd = kEmbd;
    job.n_head = kHead;
    job.n_head_kv = kHeadKv;
    job.head_dim = job.head_dim_v = kHeadDim;
    job.scale = 0.125f;
    return job;
}

inline FeedForwardBlockJob feed_forward_job(const Model& model, const FeedForwardCase& kind, Prepared& prepared) {
    FeedForwardBlockJob job{};
    job.norm = {model.norm.data(), nullptr, 1e-5f, false};
    if (kind.gated) job.gate = {prepared.of(model.gate), nullptr};
    job.up = {prepared.of(model.up), model.bias.data()};
    // Rows that are added up have no packed order.
    job.down = {kind.down_is_transposed ? model.down_t.matrix : prepared.of(model.down), model.bias.data()};
    if (kind.predicts) {
        job.fc1 = prepared.of(model.fc1);
        job.fc2 = prepared.of(model.fc2);
    }
    job.down_is_transposed = kind.down_is_transposed;
    job.dense = kind.dense;
    job.activation = kind.activation;
    job.fatrelu_threshold = 0.1f;
    job.n_embd = kEmbd;
    job.n_ff = kFf;
    return job;
}

}  // namespace native_test
