// Every operation, both blocks of a layer and all layers in one call, without Python: weight types x instruction sets x
// numbers of threads x concurrent callers, on random data. For sanitizers above all; what the results must be is tested
// from Python.
//
// A run's results must have the same bits for any number of threads, beside another caller, and each of a thousand
// times. Exit status 0, or 1 with the reason.
#include <algorithm>
#include <thread>

#include "cold_follower.hpp"
#include "cold_worker.hpp"
#include "layers_case.hpp"
#include "random_layer.hpp"

namespace native_test {

namespace {

constexpr int kThreads = 4;
constexpr int kRuns = 1000;

void run_linear(const WeightMatrix& matrix, const float* x, const Model& model, const uint8_t* mask, int64_t n_tokens,
                Executor& executor, Results& results) {
    Output<float> y(n_tokens * matrix.rows);
    const int64_t count = linear({matrix, x, model.bias.data(), mask, y.data(), n_tokens}, executor);
    int64_t wanted = n_tokens * matrix.rows;
    if (mask) {
        wanted = 0;
        for (int64_t i = 0; i < n_tokens * matrix.rows; i++) wanted += mask[i];
    }
    if (count != wanted) fail("linear counted " + std::to_string(count) + " products of " + std::to_string(wanted));
    y.close(results);
}

void run_products(const Model& model, int64_t n_tokens, Executor& executor, Results& results) {
    run_linear(model.up.matrix, model.x.data(), model, nullptr, n_tokens, executor, results);
    run_linear(model.up.matrix, model.x.data(), model, model.mask.data(), n_tokens, executor, results);
    for (const bool all_rows : {false, true}) {
        Output<float> y(n_tokens * kEmbd);
        const AccumulateJob job{model.down_t.matrix, model.coefficients.data(), model.bias.data(), y.data(), n_tokens,
                                all_rows};
        results.add_count(accumulate_rows(job, executor));
        y.close(results);
    }
    Output<float> looked_up(n_tokens * kEmbd);
    rows({model.up.matrix, model.ids.data(), looked_up.data(), n_tokens}, executor);
    looked_up.close(results);
    if (!packed_form(model.up.matrix).packed) return;
    const Weights packed = Weights::packed(model.up, executor);
    results.add(packed.matrix.data, packed.matrix.rows * packed.matrix.row_bytes);
    run_linear(packed.matrix, model.x.data(), model, nullptr, n_tokens, executor, results);
    run_linear(packed.matrix, model.x.data(), model, model.mask.data(), n_tokens, executor, results);
}

void run_token_wise(const Model& model, int64_t n_tokens, Executor& executor, Results& results) {
    for (const bool subtract_mean : {false, true}) {
        Output<float> y(n_tokens * kEmbd);
        norm({model.x.data(), model.norm.data(), subtract_mean ? model.bias.data() : nullptr, y.data(), n_tokens, kEmbd,
              1e-5f, subtract_mean},
             executor);
        y.close(results);
    }
    for (const bool halves : {false, true}) {
        Output<float> y(n_tokens * kEmbd);
        rope({model.x.data(), model.positions.data(), model.cos.data(), model.sin.data(), y.data(), n_tokens, kHead,
              kHeadDim, kHeadDim / 2, halves},
             executor);
        y.close(results);
    }
}

constexpr WeightType kCacheTypes[] = {WeightType::F16, WeightType::Q8_0};

void run_attention(const Model& model, WeightType key_type, WeightType value_type, int64_t n_tokens, Executor& executor,
                   Results& results) {
    Cache keys(key_type, 0x2c00), values(value_type, 0xb000);
    Output<float> y(n_tokens * kEmbd);
    attention({model.x.data(), model.x.data() + kEmbd, model.x.data() + 2 * kEmbd, keys.rows, values.rows,
               model.slots.data(), model.positions.data(), y.data(), n_tokens, kHead, kHeadKv, kCtx, kHeadDim, kHeadDim,
               0.125f},
              executor);
    y.close(results);
    keys.halves.close(results);
    values.halves.close(results);
}

void run_attention_block(const Model& model, WeightType cache_type, int64_t n_tokens, bool packs, Executor& executor,
                         Results& results) {
    Prepared prepared(packs, executor);
    const AttentionBlockJob job = attention_job(model, prepared);
    Cache keys(cache_type, 0x2c00), values(cache_type, 0xb000);
    Output<float> y(n_tokens * kEmbd);
    const AttentionStep step{model.x.data(), model.x.data(), y.data(), keys.rows, values.rows, model.slots.data(),
                             model.positions.data(), model.cos.data(), model.sin.data(), n_tokens, kCtx, kHeadDim, true};
    attention_block(job, step, executor);
    y.close(results);
    keys.halves.close(results);
    values.halves.close(results);
}

constexpr FeedForwardCase kFeedForwardCases[] = {
    {Activation::relu, true, true, false, true},   {Activation::drelu, true, true, false, true},
    {Activation::relu2, false, true, false, true}, {Activation::fatrelu, true, false, false, true},
    {Activation::silu, true, false, true, false},
};

void run_feed_forward(const Model& model, const FeedForwardCase& kind, int64_t n_tokens, bool packs,
                      Executor& executor, Results& results) {
    Prepared prepared(packs, executor);
    FeedForwardBlockJob job = feed_forward_job(model, kind, prepared);
    job.norm = {model.norm.data(), model.bias.data(), 1e-5f, true};
    Output<float> y(n_tokens * kEmbd);
    Output<uint8_t> predicted(n_tokens * kFf), fired(n_tokens * kFf);
    const FeedForwardStep step{model.x.data(), model.x.data(), y.data(), kind.predicts ? predicted.data() : nullptr,
                               fired.data(), n_tokens};
    const FeedForwardCounts counts = feed_forward_block(job, step, executor);
    for (const int64_t count : {counts.gate, counts.up, counts.down, counts.fired}) results.add_count(count);
    if (counts.fired == 0) fail("no neuron fired, so that nothing was tested");
    y.close(results);
    predicted.close(results);
    fired.close(results);
}

// The neurons of a mask, or all, with rows beside each other as with rows apart, which are computed one by one.
void run_beside(const Model& model, const FeedForwardCase& kind, int64_t n_tokens, Executor& executor,
                Results& results) {
    Prepared prepared(true, executor);
    FeedForwardBlockJob job = feed_forward_job(model, kind, prepared);
    for (const uint8_t* mask : {model.mask.data(), static_cast<const uint8_t*>(nullptr)}) {
        FeedForwardCounts counts{};
        const std::vector<float> expected = neurons_one_by_one(job, model.x.data(), mask, n_tokens, counts, executor);
        const Interleaved beside({&model.gate, &model.up}, {&model.down_t}, executor);
        FeedForwardBlockJob other = job;
        if (kind.gated) other.gate.matrix = beside.matrices[0];
        other.up.matrix = beside.matrices[1];
        other.down.matrix = beside.matrices[2];
        for (const FeedForwardBlockJob* each : {&job, &other}) {
            Output<float> y(n_tokens * kEmbd);
            Output<uint8_t> fired(n_tokens * kFf);
            const FeedForwardPartStep step{model.x.data(), mask, y.data(), fired.data(), n_tokens};
            const FeedForwardCounts counted = feed_forward_part(*each, step, executor);
            if (counted.gate != counts.gate || counted.up != counts.up || counted.down != counts.down ||
                counted.fired != counts.fired)
                fail("neurons were counted otherwise");
            if (std::memcmp(y.data(), expected.data(), expected.size() * sizeof(float)) != 0)
                fail("neurons differ by where their rows lie");
            y.close(results);
            fired.close(results);
        }
    }
}

// Four runs of a job as two steps of two layers, begun and awaited through flags; a step that is given up before its last
// layer begins lies between.
void follow_twice(ColdJob& job) {
    uint32_t flags[4] = {1, 1, 1, 1};
    const ColdSequence step = {{&job, &flags[0], &flags[1]}, {&job, &flags[2], &flags[3]}};
    ColdFollower follower;
    const auto run = [&](int layer) {
        raise_flag(&flags[2 * layer]);
        if (!await_flag(&flags[2 * layer + 1], 60)) fail("a step was not followed");
    };
    if (!follower.follow(step)) fail("a step was not taken");
    run(0);
    if (follower.follow(step)) fail("a step was taken before the one before was over");
    run(1);
    follower.abandon();
    if (!follower.follow(step)) fail("a step was not taken");
    run(0);
    follower.abandon();
    if (await_flag(&flags[3], 0.0)) fail("a layer was computed that never began");
    if (!follower.follow(step)) fail("a step was not taken");
    if (await_flag(&flags[1], 0.0)) fail("a step began with a flag of the one before");
    run(0);
    if (follower.take_error()) fail("a followed part failed");
}

// The neurons from kCold on as a part of their own, and as a job that another thread computes from bits.
void run_cold_part(const Model& model, int64_t n_tokens, Executor& executor, Results& results) {
    constexpr int64_t kCold = 101, kRows = kFf - kCold, kBytes = (kRows + 7) / 8;
    const auto cold = [](WeightMatrix m) {
        m.data += kCold * m.row_bytes;
        m.rows = kRows;
        return m;
    };
    ColdWorker worker;
    ColdJob job{};
    job.worker = &worker;
    job.executor = &executor;
    job.block.gate = {cold(model.gate.matrix), nullptr};
    job.block.up = {cold(model.up.matrix), nullptr};
    job.block.down = {cold(model.down_t.matrix), nullptr};
    job.block.down_is_transposed = true;
    job.block.activation = Activation::relu;
    job.block.n_embd = kEmbd;
    job.block.n_ff = kRows;
    std::vector<uint8_t> mask(static_cast<size_t>(n_tokens * kRows)), bits(static_cast<size_t>(n_tokens * kBytes));
    for (int64_t t = 0; t < n_tokens; t++)
        for (int64_t i = 0; i < kRows; i++) {
            const uint8_t wanted = model.mask[static_cast<size_t>(t * kRows + i)];
            mask[static_cast<size_t>(t * kRows + i)] = wanted;
            bits[static_cast<size_t>(t * kBytes + i / 8)] |= static_cast<uint8_t>(wanted << (i % 8));
        }
    Output<float> here(n_tokens * kEmbd), there(n_tokens * kEmbd);
    const FeedForwardPartStep step{model.x.data(), mask.data(), here.data(), nullptr, n_tokens};
    const FeedForwardCounts counts = feed_forward_part(job.block, step, executor);
    job.h = model.x.data();
    job.bits = bits.data();
    job.y = there.data();
    job.n_tokens = n_tokens;
    job.mask.resize(mask.size());
    for (int i = 0; i < 3; i++) {
        powerinfer_cold_submit(&job);
        powerinfer_cold_wait(&job);
        powerinfer_cold_run(&job);
    }
    follow_twice(job);
    if (worker.take_error()) fail("a cold part failed");
    if (job.counts[0] != 10 * counts.gate || job.counts[3] != 10 * counts.fired) fail("a cold part counted otherwise");
    if (std::memcmp(here.data(), there.data(), static_cast<size_t>(n_tokens * kEmbd) * sizeof(float)) != 0)
        fail("a cold part differs by the thread that computes it");
    here.close(results);
    there.close(results);
}

Results run_everything(const Model& model, Executor& executor) {
    Results results;
    run_linear(model.few_rows.matrix, model.x.data(), model, nullptr, kManyTokens, executor, results);
    for (const int64_t n_tokens : {int64_t{0}, int64_t{1}, int64_t{3}, kMaxTokens}) {
        run_products(model, n_tokens, executor, results);
        run_token_wise(model, n_tokens, executor, results);
        for (const WeightType keys : kCacheTypes)
            for (const WeightType values : kCacheTypes) run_attention(model, keys, values, n_tokens, executor, results);
        if (n_tokens == 0) continue;
        run_cold_part(model, n_tokens, executor, results);
        for (const bool packs : {false, true}) {
            if (packs && !packed_form(model.up.matrix).packed) continue;
            for (const WeightType cached : kCacheTypes)
                run_attention_block(model, cached, n_tokens, packs, executor, results);
            for (const FeedForwardCase& kind : kFeedForwardCases) {
                run_feed_forward(model, kind, n_tokens, packs, executor, results);
                if (packs && kind.down_is_transposed) run_beside(model, kind, n_tokens, executor, results);
            }
        }
    }
    return results;
}

void require_equal(const Results& a, const Results& b, const std::string& what) {
    if (a != b) fail(what + ": the results differ");
}

// Two callers at once over one executor, which take turns, or over one each.
void run_callers(const Model& model, Executor& first, Executor& second, const Results& expected,
                 const std::string& what) {
    Results other;
    std::thread caller([&] { other = run_everything(model, second); });
    const Results own = run_everything(model, first);
    caller.join();
    require_equal(expected, own, what + ", caller 1");
    require_equal(expected, other, what + ", caller 2");
}

void test_type(const KernelTable& table, const Layout& layout) {
    const std::string what = std::string(table.name) + " " + layout.name;
    const Model model(layout, 7 + static_cast<uint64_t>(layout.type));
    Executor alone(table, 1), four(table, kThreads), others(table, kThreads);
    const Results expected = run_everything(model, alone);
    require_equal(expected, run_everything(model, four), what + ", four threads");
    run_callers(model, four, four, expected, what + ", two callers of one executor");
    run_callers(model, four, others, expected, what + ", two executors");
}

// Just enough work for the threads to be woken, again and again.
void test_many_runs(const KernelTable& table) {
    const Model model(layouts()[3], 3);
    Executor executor(table, kThreads);
    const auto run = [&] {
        Results results;
        run_linear(model.up.matrix, model.x.data(), model, model.mask.data(), 1, executor, results);
        run_feed_forward(model, kFeedForwardCases[0], 1, false, executor, results);
        return results;
    };
    const Results expected = run();
    for (int i = 0; i < kRuns; i++) require_equal(expected, run(), std::string(table.name) + ", run after run");
}

// Pools that are opened and closed with and without work done.
void test_pools() {
    for (int n_threads = 1; n_threads <= 8; n_threads++) {
        const ThreadPool idle(n_threads);
        ThreadPool pool(n_threads);
        std::vector<int> done(1000, 0);
        pool.run(1000, [&](int64_t item, int) { done[static_cast<size_t>(item)]++; });
        for (const int times : done)
            if (times != 1) fail("an item ran " + std::to_string(times) + " times");
    }
}

// Pools that close while their threads still come to the job: a thread that took the closing for a job slept on, one pool
// in some thousands, and closing waited for it without end.
void test_pools_close_at_once() {
    for (int i = 0; i < 2000; i++)
        for (int n_threads = 2; n_threads <= 6; n_threads++) {
            ThreadPool pool(n_threads);
            pool.run(2, [](int64_t, int) {});
        }
}

}  // namespace

}  // namespace native_test

// Arguments: names of the weight types to run, none for all.
int main(int argc, char** argv) {
    using namespace native_test;
    const std::vector<std::string> names(argv + 1, argv + argc);
    std::vector<Layout> chosen;
    for (const Layout& layout : layouts())
        if (names.empty() || std::find(names.begin(), names.end(), layout.name) != names.end())
            chosen.push_back(layout);
    if (chosen.size() < names.size()) fail("there is no such weight type, or one was named twice");
    const AvailableKernels available = available_kernels();
    test_pools();
    test_pools_close_at_once();
    for (int i = 0; i < available.n; i++) {
        for (const Layout& layout : chosen) test_type(*available.tables[i], layout);
        test_layers(*available.tables[i]);
        test_many_runs(*available.tables[i]);
        std::printf("%s: %zu weight types\n", available.tables[i]->name, chosen.size());
        std::fflush(stdout);
    }
    return 0;
}
