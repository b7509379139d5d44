// Python's way in: checks arguments, fills a job on the stack, releases the GIL, runs. No arithmetic here.
//
// Tensors arrive as addresses. Converting a torch tensor through DLPack costs 2 us an argument, asking it for its address
// 0.1 us; powerinfer_py/kernels/cpu.py has checked dtype, contiguity and shape, everything else is checked here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "device_rows.hpp"
#include "file_faults.hpp"
#include "quantise.hpp"

namespace powerinfer {

namespace {

constexpr int kMaxThreads = 1024;

class CpuKernels {
public:
    CpuKernels(const std::optional<std::string>& isa, int threads) : executor_(table(isa), checked(threads)) {}

    Executor& executor() { return executor_; }
    std::string isa() const { return executor_.kernels.name; }
    int threads() const { return executor_.pool.n_threads(); }

    Matrix pack(const Matrix& stored) {
        Matrix packed = Matrix::packed_like(stored);
        const nb::gil_scoped_release unlocked;
        powerinfer::pack(stored.weights, packed.weights, packed.owned(), executor_);
        return packed;
    }

    Matrix copy(const Matrix& stored) {
        Matrix copied = Matrix::copied_like(stored);
        const nb::gil_scoped_release unlocked;
        powerinfer::copy(stored.weights, copied.weights, copied.owned(), executor_);
        return copied;
    }

    std::vector<Matrix> interleave(const std::vector<const Matrix*>& packed, const std::vector<const Matrix*>& copied) {
        for (const auto* matrices : {&packed, &copied})
            for (const Matrix* stored : *matrices) require(stored != nullptr, "a matrix is None");
        std::vector<Matrix> made = Matrix::interleaved_like(packed, copied);
        const nb::gil_scoped_release unlocked;
        for (size_t i = 0; i < made.size(); i++) {
            if (i < packed.size())
                powerinfer::pack(packed[i]->weights, made[i].weights, made[i].owned(), executor_);
            else
                powerinfer::copy(copied[i - packed.size()]->weights, made[i].weights, made[i].owned(), executor_);
        }
        return made;
    }

    bool quantise(uintptr_t values, int64_t n_weights, int type_id, uintptr_t out) {
        const BlockLayout& layout = layout_of(type_id);
        require(can_quantise(layout.type), "nothing is quantised to this weight type");
        require(n_weights >= 0 && n_weights % layout.n_weights == 0, "the weights must be a whole number of blocks");
        const QuantiseJob job{layout.type, pointer<const float>(values, n_weights, "values"), n_weights,
                              layout.n_weights, layout.n_bytes, pointer<uint8_t>(out, n_weights, "out")};
        const nb::gil_scoped_release unlocked;
        return powerinfer::quantise(job, executor_);
    }

    int64_t linear(const Matrix& m, uintptr_t x, int64_t n_tokens, uintptr_t mask, uintptr_t bias, uintptr_t y) {
        const auto [rows, cols] = sizes(m, n_tokens);
        const LinearJob job{m.weights, pointer<const float>(x, n_tokens * cols, "x"),
                            reinterpret_cast<const float*>(bias), reinterpret_cast<const uint8_t*>(mask),
                            pointer<float>(y, n_tokens * rows, "y"), n_tokens};
        const nb::gil_scoped_release unlocked;
        return powerinfer::linear(job, executor_);
    }

    int64_t accumulate_rows(
        const Matrix& m, uintptr_t coefficients, int64_t n_tokens, uintptr_t bias, bool all_rows, uintptr_t y) {
        const auto [rows, cols] = sizes(m, n_tokens);
        require_stored(m.weights, "accumulate_rows");
        const AccumulateJob job{m.weights, pointer<const float>(coefficients, n_tokens * rows, "coefficients"),
                                reinterpret_cast<const float*>(bias), pointer<float>(y, n_tokens * cols, "y"),
                                n_tokens, all_rows};
        const nb::gil_scoped_release unlocked;
        return powerinfer::accumulate_rows(job, executor_);
    }

    void rows(const Matrix& m, uintptr_t ids, int64_t n, uintptr_t y) {
        const auto cols = sizes(m, n).second;
        require_stored(m.weights, "rows");
        const RowsJob job{m.weights, pointer<const int64_t>(ids, n, "ids"), pointer<float>(y, n * cols, "y"), n};
        require_indices(job.ids, n, m.weights.rows, "row");
        const nb::gil_scoped_release unlocked;
        powerinfer::rows(job, executor_);
    }

    // data: n_stored rows of row_bytes. ids: addresses n numbers of rows, or is null for all of them.
    uint16_t fill_device_rows(uintptr_t data, int64_t n_stored, int64_t row_bytes, uintptr_t ids, int64_t n,
                              int64_t n_blocks, int64_t quant_bytes, uintptr_t place) {
        require(n_stored >= 0 && n >= 0 && row_bytes > 0 && n_blocks >= 0, "a size is negative");
        require(quant_bytes == 0 || ((quant_bytes == 16 || quant_bytes == 32) && row_bytes == n_blocks * (2 + quant_bytes)),
                "rows must be copied whole, or be blocks of 16 or 32 bytes behind a scale");
        require(ids || n == n_stored, "without ids all rows are wanted");
        uint8_t* quants = pointer<uint8_t>(place, n, "place");
        const DeviceRowsJob job{pointer<const uint8_t>(data, n_stored, "data"), row_bytes,
                                reinterpret_cast<const int64_t*>(ids), n, n_blocks, quant_bytes, quants,
                                quants + n * n_blocks * quant_bytes};
        if (ids) require_indices(job.ids, n, n_stored, "row");
        const nb::gil_scoped_release unlocked;
        return powerinfer::fill_device_rows(job, executor_);
    }

    void rms_norm(uintptr_t x, uintptr_t weight, int64_t n_tokens, int64_t n, float eps, uintptr_t y) {
        norm({reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(weight), nullptr,
              reinterpret_cast<float*>(y), n_tokens, n, eps, false});
    }

    void layer_norm(
        uintptr_t x, uintptr_t weight, uintptr_t bias, int64_t n_tokens, int64_t n, float eps, uintptr_t y) {
        norm({reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(weight),
              reinterpret_cast<const float*>(bias), reinterpret_cast<float*>(y), n_tokens, n, eps, true});
    }

    void rope(uintptr_t x, uintptr_t positions, uintptr_t cos, uintptr_t sin, int64_t n_tokens, int64_t n_head,
              int64_t head_dim, int64_t n_rot, int64_t n_ctx, bool halves, uintptr_t y) {
        require(n_tokens >= 0 && n_head >= 0 && head_dim >= 0 && n_rot >= 0 && n_ctx >= 0, "a size is negative");
        require(n_rot % 2 == 0 && n_rot <= head_dim, "n_rot must be even and at most head_dim");
        const int64_t n = n_tokens * n_head * head_dim;
        const RopeJob job{pointer<const float>(x, n, "x"),
                          pointer<const int64_t>(positions, n_tokens, "positions"),
                          pointer<const float>(cos, n_ctx * n_rot, "cos"),
                          pointer<const float>(sin, n_ctx * n_rot, "sin"),
                          pointer<float>(y, n, "y"), n_tokens, n_head, head_dim, n_rot, halves};
        require_indices(job.positions, n_tokens, n_ctx, "position");
        const nb::gil_scoped_release unlocked;
        powerinfer::rope(job, executor_);
    }

    void attention(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t k_cache, uintptr_t v_cache,
                   std::pair<int, int> cache_types, uintptr_t slots, uintptr_t positions, int64_t n_tokens,
                   int64_t n_head, int64_t n_head_kv, int64_t n_slots, int64_t n_ctx, int64_t head_dim,
                   int64_t head_dim_v, float scale, uintptr_t y) {
        require(n_tokens >= 0 && n_slots >= 0 && n_ctx >= 0, "a size is negative");
        require(head_dim > 0 && head_dim_v > 0, "head_dim and head_dim_v must be positive");
        require(n_head > 0 && n_head_kv > 0 && n_head % n_head_kv == 0, "n_head must be a multiple of n_head_kv");
        const int64_t n_cache = n_slots * n_head_kv * n_ctx;
        const AttentionJob job{pointer<const float>(q, n_tokens, "q"),
                               pointer<const float>(k, n_tokens, "k"),
                               pointer<const float>(v, n_tokens, "v"),
                               cache_at(k_cache, cache_types.first, head_dim, n_cache, "k_cache"),
                               cache_at(v_cache, cache_types.second, head_dim_v, n_cache, "v_cache"),
                               pointer<const int64_t>(slots, n_tokens, "slots"),
                               pointer<const int64_t>(positions, n_tokens, "positions"),
                               pointer<float>(y, n_tokens, "y"),
                               n_tokens, n_head, n_head_kv, n_ctx, head_dim, head_dim_v, scale};
        require_indices(job.slots, n_tokens, n_slots, "slot");
        require_indices(job.positions, n_tokens, n_ctx, "position");
        const nb::gil_scoped_release unlocked;
        powerinfer::attention(job, executor_);
    }

    // step: addresses and sizes that kernels/cpu.py has checked, in the order of the fields of AttentionStep.
    void attention_block(const AttentionBlock& block, uintptr_t x, uintptr_t residual, uintptr_t y, uintptr_t k_cache,
                         uintptr_t v_cache, std::pair<int, int> cache_types, uintptr_t slots, uintptr_t positions,
                         uintptr_t cos, uintptr_t sin, int64_t n_tokens, int64_t n_slots, int64_t n_ctx,
                         int64_t n_rot, bool halves) {
        require(n_tokens >= 0 && n_slots >= 0 && n_ctx >= 0, "a size is negative");
        require(n_rot % 2 == 0 && n_rot >= 0 && n_rot <= block.job.head_dim, "n_rot must be even and at most head_dim");
        const AttentionStep step{pointer<const float>(x, n_tokens, "x"),
                                 pointer<const float>(residual, n_tokens, "residual"),
                                 pointer<float>(y, n_tokens, "y"),
                                 cache_at(k_cache, cache_types.first, block.job.head_dim, n_tokens, "k_cache"),
                                 cache_at(v_cache, cache_types.second, block.job.head_dim_v, n_tokens, "v_cache"),
                                 pointer<const int64_t>(slots, n_tokens, "slots"),
                                 pointer<const int64_t>(positions, n_tokens, "positions"),
                                 pointer<const float>(cos, n_rot, "cos"),
                                 pointer<const float>(sin, n_rot, "sin"),
                                 n_tokens, n_ctx, n_rot, halves};
        require_indices(step.slots, n_tokens, n_slots, "slot");
        require_indices(step.positions, n_tokens, n_ctx, "position");
        const nb::gil_scoped_release unlocked;
        powerinfer::attention_block(block.job, step, executor_);
    }

    // Counts of gate, up and down products and of neurons that fired, and seconds in the predictor.
    std::tuple<int64_t, int64_t, int64_t, int64_t, double> feed_forward_block(
        const FeedForwardBlock& block, uintptr_t x, uintptr_t residual, uintptr_t y, uintptr_t predicted,
        uintptr_t fired, int64_t n_tokens) {
        require(n_tokens >= 0 && n_tokens < (int64_t{1} << 31), "the number of tokens must be in [0, 2^31)");
        const FeedForwardStep step{pointer<const float>(x, n_tokens, "x"),
                                   pointer<const float>(residual, n_tokens, "residual"),
                                   pointer<float>(y, n_tokens, "y"), reinterpret_cast<uint8_t*>(predicted),
                                   reinterpret_cast<uint8_t*>(fired), n_tokens};
        FeedForwardCounts counts;
        {
            const nb::gil_scoped_release unlocked;
            counts = powerinfer::feed_forward_block(block.job, step, executor_);
        }
        return {counts.gate, counts.up, counts.down, counts.fired, counts.predictor_s};
    }

    // Returns seconds in the predictors; counts (n_layers, 4).
    double run_layers(const std::vector<const AttentionBlock*>& attention,
                      const std::vector<const FeedForwardBlock*>& feed_forward,
                      const std::vector<std::tuple<uintptr_t, int, uintptr_t, int>>& caches, bool parallel, uintptr_t x,
                      uintptr_t y, uintptr_t slots, uintptr_t positions, uintptr_t cos, uintptr_t sin, int64_t n_rot,
                      bool halves, int64_t n_tokens, int64_t n_slots, int64_t n_ctx, uintptr_t counts) {
        require(n_tokens >= 0 && n_tokens < (int64_t{1} << 31), "the number of tokens must be in [0, 2^31)");
        require(n_slots >= 0 && n_ctx >= 0 && n_rot >= 0 && n_rot % 2 == 0, "a size is negative, or n_rot odd");
        require(n_tokens == 0 || x != y, "y must not be x");
        const size_t n = attention.size();
        require(feed_forward.size() == n && caches.size() == n, "there must be two blocks and a cache for each layer");
        std::vector<LayerJob> layers(n);
        for (size_t i = 0; i < n; i++) {
            const auto& [keys, key_type, values, value_type] = caches[i];
            require(attention[i] && feed_forward[i], "a layer has no block");
            const AttentionBlockJob& job = attention[i]->job;
            require(job.n_embd == attention[0]->job.n_embd && feed_forward[i]->job.n_embd == job.n_embd,
                    "the layers differ in n_embd");
            require(n_rot <= job.head_dim, "n_rot must be at most head_dim");
            layers[i] = {&job, &feed_forward[i]->job, cache_at(keys, key_type, job.head_dim, n_tokens, "keys"),
                         cache_at(values, value_type, job.head_dim_v, n_tokens, "values")};
        }
        const LayersStep step{layers.data(), static_cast<int64_t>(n), parallel,
                              pointer<const float>(x, n_tokens, "x"), pointer<float>(y, n_tokens, "y"),
                              pointer<const int64_t>(slots, n_tokens, "slots"),
                              pointer<const int64_t>(positions, n_tokens, "positions"),
                              pointer<const float>(cos, n_rot, "cos"), pointer<const float>(sin, n_rot, "sin"),
                              n_tokens, n_ctx, n_rot, halves};
        require_indices(step.slots, n_tokens, n_slots, "slot");
        require_indices(step.positions, n_tokens, n_ctx, "position");
        int64_t* numbers = pointer<int64_t>(counts, static_cast<int64_t>(4 * n), "counts");
        std::vector<FeedForwardCounts> counted(n);
        {
            const nb::gil_scoped_release unlocked;
            powerinfer::run_layers(step, counted.data(), executor_);
        }
        double predictor_s = 0.0;
        for (const FeedForwardCounts& c : counted) {
            for (const int64_t number : {c.gate, c.up, c.down, c.fired}) *numbers++ = number;
            predictor_s += c.predictor_s;
        }
        return predictor_s;
    }

    std::tuple<int64_t, int64_t, int64_t, int64_t> feed_forward_part(
        const FeedForwardBlock& block, uintptr_t h, uintptr_t mask, uintptr_t y, uintptr_t fired, int64_t n_tokens) {
        require(n_tokens >= 0 && n_tokens < (int64_t{1} << 31), "the number of tokens must be in [0, 2^31)");
        require(n_tokens == 0 || h != y, "y must not be h");
        const FeedForwardPartStep step{pointer<const float>(h, n_tokens, "h"), reinterpret_cast<const uint8_t*>(mask),
                                       pointer<float>(y, n_tokens, "y"), reinterpret_cast<uint8_t*>(fired), n_tokens};
        FeedForwardCounts counts;
        {
            const nb::gil_scoped_release unlocked;
            counts = powerinfer::feed_forward_part(block.job, step, executor_);
        }
        return {counts.gate, counts.up, counts.down, counts.fired};
    }

    void predict(const Matrix& fc1, const Matrix& fc2, uintptr_t x, float threshold, int64_t n_tokens, uintptr_t mask) {
        const auto [rows, cols] = sizes(fc1, n_tokens);
        require(fc2.weights.cols == rows, "fc2 must have as many columns as fc1 has rows");
        const PredictJob job{fc1.weights, fc2.weights, pointer<const float>(x, n_tokens * cols, "x"), threshold,
                             pointer<uint8_t>(mask, n_tokens * fc2.weights.rows, "mask"), n_tokens};
        const nb::gil_scoped_release unlocked;
        powerinfer::predict(job, executor_);
    }

private:
    void norm(const NormJob& job) {
        require(job.n_tokens >= 0 && job.n >= 0, "a size is negative");
        require((job.x && job.y && job.weight) || job.n_tokens * job.n == 0, "x, weight or y is null");
        const nb::gil_scoped_release unlocked;
        powerinfer::norm(job, executor_);
    }

    // Rows and columns of `m`, once the number of tokens is known to be sane.
    static std::pair<int64_t, int64_t> sizes(const Matrix& m, int64_t n_tokens) {
        require(n_tokens >= 0 && n_tokens < (int64_t{1} << 31), "the number of tokens must be in [0, 2^31)");
        return {m.weights.rows, m.weights.cols};
    }

    static int checked(int threads) {
        if (threads < 1 || threads > kMaxThreads)
            refuse("threads must be from 1 to " + std::to_string(kMaxThreads) + ", not " + std::to_string(threads));
        return threads;
    }

    static const KernelTable& table(const std::optional<std::string>& isa) {
        const AvailableKernels available = available_kernels();
        if (!isa) return *available.tables[available.n - 1];
        std::string names;
        for (int i = 0; i < available.n; i++) {
            if (*isa == available.tables[i]->name) return *available.tables[i];
            names += std::string(i ? ", " : "") + available.tables[i]->name;
        }
        refuse("this CPU cannot run the kernels for '" + *isa + "', only: " + names);
    }

    Executor executor_;
};

std::vector<std::string> available_isas() {
    const AvailableKernels available = available_kernels();
    std::vector<std::string> names;
    for (int i = 0; i < available.n; i++) names.emplace_back(available.tables[i]->name);
    return names;
}

}  // namespace

Executor& executor_of(nb::handle kernels) { return nb::cast<CpuKernels&>(kernels).executor(); }

}  // namespace powerinfer

NB_MODULE(_native, m) {
    using namespace powerinfer;
    m.def("available_isas", &available_isas);
    m.def("report_file_faults", &report_file_faults);
    nb::class_<Matrix>(m, "Matrix")
        .def(nb::init<Bytes, int, int64_t, int64_t, bool>(), nb::arg("data").noconvert(), nb::arg("type_id"),
             nb::arg("rows"), nb::arg("cols"), nb::arg("packed") = false)
        .def("to_bytes", &Matrix::to_bytes)
        .def_prop_ro("packed", [](const Matrix& matrix) { return matrix.weights.packed; })
        .def_prop_ro("rows", [](const Matrix& matrix) { return matrix.weights.rows; })
        .def_prop_ro("cols", [](const Matrix& matrix) { return matrix.weights.cols; });
    nb::class_<CpuKernels>(m, "CpuKernels")
        .def(nb::init<const std::optional<std::string>&, int>(), nb::arg("isa").none(), nb::arg("threads"))
        .def_prop_ro("isa", &CpuKernels::isa)
        .def_prop_ro("threads", &CpuKernels::threads)
        .def("pack", &CpuKernels::pack)
        .def("copy", &CpuKernels::copy)
        .def("interleave", &CpuKernels::interleave)
        .def("quantise", &CpuKernels::quantise)
        .def("linear", &CpuKernels::linear)
        .def("accumulate_rows", &CpuKernels::accumulate_rows)
        .def("rows", &CpuKernels::rows)
        .def("fill_device_rows", &CpuKernels::fill_device_rows)
        .def("rms_norm", &CpuKernels::rms_norm)
        .def("layer_norm", &CpuKernels::layer_norm)
        .def("rope", &CpuKernels::rope)
        .def("attention", &CpuKernels::attention)
        .def("attention_block", &CpuKernels::attention_block)
        .def("feed_forward_block", &CpuKernels::feed_forward_block)
        .def("run_layers", &CpuKernels::run_layers)
        .def("feed_forward_part", &CpuKernels::feed_forward_part)
        .def("predict", &CpuKernels::predict);
    bind_blocks(m);
    bind_cold_worker(m);
}
