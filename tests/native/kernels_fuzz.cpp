// Operations on random shapes, index lists and alignments, with awkward values among the inputs. For sanitizers: what
// the results must be is tested from Python. Here an operation must stay within its memory, and give the same bits for
// one thread and for several.
//
// Arguments: number of rounds (default 200), seed (default 1), and anything more to have each round named before it
// begins, since a sanitizer ends the process without a word of ours. The same seed repeats a run.
// Lists of ids may be unsorted and repeated, as tokens repeat; those out of range are refused by the bindings, which
// tests/kernels/test_bindings.py sees to.
#include <algorithm>
#include <numeric>

#include "quantise.hpp"
#include "random_model.hpp"

namespace native_test {

namespace {

// Memory of exactly n elements, beginning `skip` elements after an address that malloc aligns: the sanitizer sees the
// first byte beyond its end.
template <typename T>
class Placed {
public:
    Placed(int64_t n, int64_t skip) : memory_(static_cast<size_t>(n + skip)), skip_(skip) {}
    T* data() { return memory_.data() + skip_; }
    const T* data() const { return memory_.data() + skip_; }

private:
    std::vector<T> memory_;
    int64_t skip_;
};

class Fuzzer {
public:
    Fuzzer(uint64_t seed, const KernelTable& table) : random_(seed), alone_(table, 1), several_(table, threads()) {}

    void round() {
        n_tokens_ = pick({0, 1, 1, 2, 3, 9, 31, 32, 33, 64, 65, 66});
        products();
        neurons();
        token_wise();
        quantisation();
        attend();
    }

private:
    int64_t below(int64_t end) { return static_cast<int64_t>(random_.next() % static_cast<uint64_t>(end)); }
    int64_t pick(std::initializer_list<int64_t> values) {
        return values.begin()[below(static_cast<int64_t>(values.size()))];
    }
    const Layout& any_layout() {
        return layouts()[static_cast<size_t>(below(static_cast<int64_t>(layouts().size())))];
    }
    bool chance() { return random_.next() & 1; }
    int threads() { return static_cast<int>(2 + below(7)); }

    // Mostly plain numbers; now and then what arithmetic trips over.
    Placed<float> values(int64_t n) {
        constexpr float kAwkward[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN};
        Placed<float> placed(n, below(16));
        const bool awkward = below(4) == 0;
        for (int64_t i = 0; i < n; i++)
            placed.data()[i] = awkward && below(8) == 0 ? kAwkward[below(9)] : random_.uniform();
        return placed;
    }

    Placed<int64_t> indices(int64_t n, int64_t end) {
        Placed<int64_t> placed(n, below(4));
        for (int64_t i = 0; i < n; i++) placed.data()[i] = below(end);
        return placed;
    }

    // A matrix whose rows lie at any address, odd ones included.
    struct PlacedWeights {
        WeightMatrix matrix;
        Placed<uint8_t> bytes;
    };
    PlacedWeights weights(const Layout& layout, int64_t rows, int64_t cols) {
        const Weights plain(layout, rows, cols, random_);
        const int64_t size = rows * plain.matrix.row_bytes;
        PlacedWeights placed{plain.matrix, Placed<uint8_t>(size, below(64))};
        if (size > 0) std::memcpy(placed.bytes.data(), plain.matrix.data, static_cast<size_t>(size));
        if (below(8) == 0 && size > 0) placed.bytes.data()[below(size)] = 0xff;
        placed.matrix.data = placed.bytes.data();
        return placed;
    }

    // Runs `operation` on one thread and on several, each into an output of its own, and compares bit by bit.
    template <typename T, typename Operation>
    void same(int64_t n, const char* what, const Operation& operation) {
        Output<T> one(n), many(n);
        operation(one.data(), alone_);
        operation(many.data(), several_);
        one.check_guards();
        many.check_guards();
        if (n > 0 && std::memcmp(one.data(), many.data(), static_cast<size_t>(n) * sizeof(T)) != 0)
            fail(std::string(what) + ": one thread and several differ");
    }

    void products() {
        const Layout& layout = any_layout();
        const int64_t rows_of_matrix = pick({0, 1, 2, 7, 15, 16, 17, 31, 40, 257});
        const bool plain = layout.n_weights == 1;
        const int64_t cols = layout.n_weights * (plain ? pick({1, 3, 7, 8, 15, 16, 31, 33, 70}) : pick({1, 2, 3, 5}));
        const PlacedWeights w = weights(layout, rows_of_matrix, cols);
        const Placed<float> x = values(n_tokens_ * cols), coefficients = values(n_tokens_ * rows_of_matrix);
        const Placed<float> row_bias = values(rows_of_matrix), col_bias = values(cols);
        Placed<uint8_t> mask(n_tokens_ * rows_of_matrix, below(8));
        const int64_t density = pick({0, 1, 4, 8});  // of eight
        for (int64_t i = 0; i < n_tokens_ * rows_of_matrix; i++) mask.data()[i] = below(8) < density;
        const uint8_t* wanted = chance() ? mask.data() : nullptr;
        const float* bias = chance() ? row_bias.data() : nullptr;
        same<float>(n_tokens_ * rows_of_matrix, layout.name, [&](float* y, Executor& executor) {
            linear({w.matrix, x.data(), bias, wanted, y, n_tokens_}, executor);
        });
        const bool all_rows = chance();
        const float* added = chance() ? col_bias.data() : nullptr;
        same<float>(n_tokens_ * cols, layout.name, [&](float* y, Executor& executor) {
            accumulate_rows({w.matrix, coefficients.data(), added, y, n_tokens_, all_rows}, executor);
        });
        if (rows_of_matrix > 0) {
            const int64_t n = pick({0, 1, 5, 100});
            const Placed<int64_t> ids = indices(n, rows_of_matrix);
            same<float>(n * cols, layout.name, [&](float* y, Executor& executor) {
                rows({w.matrix, ids.data(), y, n}, executor);
            });
        }
        if (!packed_form(w.matrix).packed) return;
        WeightMatrix packed = packed_form(w.matrix);
        const size_t bytes = static_cast<size_t>(packed.rows * packed.row_bytes);
        const std::unique_ptr<uint8_t, decltype(&std::free)> memory(
            static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 64) / 64 * 64)), &std::free);
        packed.data = memory.get();
        pack(w.matrix, packed, memory.get(), several_);
        same<float>(n_tokens_ * rows_of_matrix, layout.name, [&](float* y, Executor& executor) {
            linear({packed, x.data(), bias, wanted, y, n_tokens_}, executor);
        });
    }

    // An FFN over some neurons, whose packed rows lie beside each other.
    void neurons() {
        const Layout& layout = any_layout();
        const int64_t n_ff = pick({0, 1, 7, 15, 16, 17, 40, 129, 257, 600}), cols = layout.n_weights * pick({1, 2, 3, 5});
        const Weights gate(layout, n_ff, cols, random_), up(layout, n_ff, cols, random_);
        const Weights down(layout, n_ff, cols, random_);
        if (!packed_form(gate.matrix).packed) return;
        const Interleaved beside({&gate, &up}, {&down}, several_);
        const Placed<float> x = values(n_tokens_ * cols), bias = values(n_ff);
        Placed<uint8_t> mask(n_tokens_ * n_ff, below(8));
        const int64_t density = pick({0, 1, 4, 8});  // of eight
        for (int64_t i = 0; i < n_tokens_ * n_ff; i++) mask.data()[i] = below(8) < density;
        FeedForwardBlockJob job{};
        if (chance()) job.gate = {beside.matrices[0], chance() ? bias.data() : nullptr};
        job.up = {beside.matrices[1], chance() ? bias.data() : nullptr};
        job.down = {beside.matrices[2], nullptr};
        job.down_is_transposed = true;
        job.activation = job.gate.matrix.data && chance() ? Activation::drelu : Activation::fatrelu;
        job.n_embd = cols;
        job.n_ff = n_ff;
        const uint8_t* wanted = chance() ? mask.data() : nullptr;
        same<float>(n_tokens_ * cols, layout.name, [&](float* y, Executor& executor) {
            feed_forward_part(job, {x.data(), wanted, y, nullptr, n_tokens_}, executor);
        });
    }

    void token_wise() {
        const int64_t n = pick({1, 2, 3, 7, 16, 31, 64, 100, 256});
        const Placed<float> x = values(n_tokens_ * n), weight = values(n), bias = values(n);
        const bool subtract_mean = chance();
        same<float>(n_tokens_ * n, "norm", [&](float* y, Executor& executor) {
            const float* added = subtract_mean ? bias.data() : nullptr;
            norm({x.data(), weight.data(), added, y, n_tokens_, n, 1e-5f, subtract_mean}, executor);
        });
        const int64_t n_head = 1 + below(5), head_dim = 1 + below(70), n_ctx = 1 + below(40);
        const int64_t n_rot = below(head_dim / 2 + 1) * 2;
        const Placed<float> heads = values(n_tokens_ * n_head * head_dim);
        const Placed<float> cos = values(n_ctx * n_rot / 2), sin = values(n_ctx * n_rot / 2);
        const Placed<int64_t> positions = indices(n_tokens_, n_ctx);
        const bool halves = chance();
        same<float>(n_tokens_ * n_head * head_dim, "rope", [&](float* y, Executor& executor) {
            const RopeJob job{heads.data(), positions.data(), cos.data(), sin.data(), y,
                              n_tokens_,    n_head,           head_dim,   n_rot,      halves};
            rope(job, executor);
        });
    }

    void quantisation() {
        const Layout& layout = any_layout();
        if (!can_quantise(layout.type)) return;
        const int64_t n_blocks = pick({0, 1, 2, 17, 130});
        const Placed<float> x = values(n_blocks * layout.n_weights);
        same<uint8_t>(n_blocks * layout.n_bytes, "quantise", [&](uint8_t* out, Executor& executor) {
            const QuantiseJob job{layout.type,      x.data(),       n_blocks * layout.n_weights,
                                  layout.n_weights, layout.n_bytes, out};
            // A type may refuse a value at any moment; what it had written by then may differ.
            if (!quantise(job, executor)) std::memset(out, 0, static_cast<size_t>(n_blocks * layout.n_bytes));
        });
    }

    // Every token has a place of its own in the cache, as in every batch; slots and positions come in any order.
    void attend() {
        const int64_t n_head_kv = 1 + below(3), n_head = n_head_kv * (1 + below(3)), n_slots = 1 + below(3);
        const int64_t n_ctx = (n_tokens_ + n_slots - 1) / n_slots + 1 + below(4);
        const WeightType type = chance() ? WeightType::F16 : WeightType::Q8_0;
        const int64_t step = type == WeightType::Q8_0 ? 32 : 1;
        const int64_t head_dim = step * (1 + below(step == 32 ? 3 : 70)), head_dim_v = head_dim;
        std::vector<int64_t> places(static_cast<size_t>(n_slots * n_ctx));
        std::iota(places.begin(), places.end(), 0);
        for (size_t i = places.size(); i > 1; i--)
            std::swap(places[i - 1], places[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
        Placed<int64_t> slots(n_tokens_, below(4)), positions(n_tokens_, below(4));
        for (int64_t t = 0; t < n_tokens_; t++) {
            slots.data()[t] = places[static_cast<size_t>(t)] / n_ctx;
            positions.data()[t] = places[static_cast<size_t>(t)] % n_ctx;
        }
        const Placed<float> q = values(n_tokens_ * n_head * head_dim);
        const Placed<float> k = values(n_tokens_ * n_head_kv * head_dim);
        const Placed<float> v = values(n_tokens_ * n_head_kv * head_dim_v);
        const CacheRows like = cache_rows(nullptr, type, head_dim);
        const int64_t cache_bytes = n_slots * n_head_kv * n_ctx * like.row_bytes;
        same<float>(n_tokens_ * n_head * head_dim_v, "attention", [&](float* y, Executor& executor) {
            Output<uint16_t> keys(cache_bytes / 2), own_values(cache_bytes / 2);
            std::memset(keys.data(), 0, static_cast<size_t>(cache_bytes));
            std::memset(own_values.data(), 0, static_cast<size_t>(cache_bytes));
            const CacheRows k_cache{reinterpret_cast<uint8_t*>(keys.data()), type, like.row_bytes};
            const CacheRows v_cache{reinterpret_cast<uint8_t*>(own_values.data()), type, like.row_bytes};
            const AttentionJob job{q.data(),  k.data(), v.data(),  k_cache, v_cache,  slots.data(), positions.data(), y,
                                   n_tokens_, n_head,   n_head_kv, n_ctx,   head_dim, head_dim_v,   0.125f};
            attention(job, executor);
            keys.check_guards();
            own_values.check_guards();
        });
    }

    Random random_;
    Executor alone_, several_;
    int64_t n_tokens_ = 0;
};

}  // namespace

}  // namespace native_test

int main(int argc, char** argv) {
    using namespace native_test;
    const int n_rounds = argc > 1 ? std::atoi(argv[1]) : 200;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    if (n_rounds < 1) fail("the number of rounds must be positive");
    const AvailableKernels available = available_kernels();
    for (int i = 0; i < available.n; i++) {
        for (int round = 0; round < n_rounds; round++) {
            const uint64_t own = seed * 1000003 + static_cast<uint64_t>(round);
            if (argc > 3) std::fprintf(stderr, "%s: round %d\n", available.tables[i]->name, round);
            Fuzzer(own, *available.tables[i]).round();
        }
        std::printf("%s: %d rounds\n", available.tables[i]->name, n_rounds);
        std::fflush(stdout);
    }
    return 0;
}
