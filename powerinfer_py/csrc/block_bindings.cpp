// The blocks of a layer as Python sees them: built once at load from matrices and addresses, shapes checked here.
#include <nanobind/stl/string.h>

#include "bindings.hpp"

namespace powerinfer {

namespace {

const float* floats(uintptr_t address) { return reinterpret_cast<const float*>(address); }

Norm norm_of(uintptr_t weight, uintptr_t bias, float eps, bool subtract_mean) {
    require(weight != 0, "the norm has no weight");
    return {floats(weight), floats(bias), eps, subtract_mean};
}

void require_shape(const WeightMatrix& m, int64_t rows, int64_t cols, const char* name) {
    if (m.rows != rows || m.cols != cols)
        refuse(std::string(name) + " has shape (" + std::to_string(m.rows) + ", " + std::to_string(m.cols) +
               "), not (" + std::to_string(rows) + ", " + std::to_string(cols) + ")");
}

// Rows [begin, begin + rows) as a matrix of their own: query, key and value heads of a fused projection.
Linear part(const Matrix& fused, uintptr_t bias, int64_t begin, int64_t rows) {
    WeightMatrix m = fused.weights;
    require(begin + rows <= m.rows, "the fused projection has too few rows");
    m.data += begin * m.row_bytes;
    m.rows = rows;
    return {m, bias ? floats(bias) + begin : nullptr};
}

// A matrix that is absent has null data; one without rows is there all the same.
Linear whole(nb::handle matrix, uintptr_t bias) {
    static constexpr uint8_t kNoRows = 0;
    if (matrix.is_none()) return {WeightMatrix{}, nullptr};
    WeightMatrix weights = nb::cast<const Matrix&>(matrix).weights;
    if (!weights.data) weights.data = &kNoRows;
    return {weights, floats(bias)};
}

struct Heads {
    int64_t n_head, n_head_kv, head_dim, head_dim_v;
};

// qkv: one fused matrix, or three.
void attention_init(AttentionBlock* self, nb::tuple norm, nb::list qkv, nb::list qkv_biases, const Matrix& output,
                    uintptr_t output_bias, nb::tuple heads, float scale) {
    const Heads h{nb::cast<int64_t>(heads[0]), nb::cast<int64_t>(heads[1]), nb::cast<int64_t>(heads[2]),
                  nb::cast<int64_t>(heads[3])};
    require(h.n_head > 0 && h.n_head_kv > 0 && h.n_head % h.n_head_kv == 0, "n_head must be a multiple of n_head_kv");
    require(h.head_dim > 0 && h.head_dim_v > 0, "head_dim and head_dim_v must be positive");
    require(nb::len(qkv) == nb::len(qkv_biases) && (nb::len(qkv) == 1 || nb::len(qkv) == 3), "qkv must be 1 or 3");
    AttentionBlockJob job{};
    job.norm = norm_of(nb::cast<uintptr_t>(norm[0]), nb::cast<uintptr_t>(norm[1]), nb::cast<float>(norm[2]),
                       nb::cast<bool>(norm[3]));
    const int64_t rows[3] = {h.n_head * h.head_dim, h.n_head_kv * h.head_dim, h.n_head_kv * h.head_dim_v};
    const bool fused = nb::len(qkv) == 1;
    if (!fused)
        for (size_t i = 0; i < 3; i++)
            require_shape(nb::cast<const Matrix&>(qkv[i]).weights, rows[i], output.weights.rows, "attention projection");
    Linear* parts[3] = {&job.q, &job.k, &job.v};
    int64_t begin = 0;
    for (int i = 0; i < 3; i++) {
        const size_t source = fused ? 0 : static_cast<size_t>(i);
        *parts[i] = part(nb::cast<const Matrix&>(qkv[source]), nb::cast<uintptr_t>(qkv_biases[source]), begin, rows[i]);
        if (fused) begin += rows[i];
    }
    job.output = {output.weights, floats(output_bias)};
    job.n_embd = output.weights.rows;
    require_shape(output.weights, job.n_embd, h.n_head * h.head_dim_v, "attention output");
    for (const Linear* p : parts) require_shape(p->matrix, p->matrix.rows, job.n_embd, "attention projection");
    job.n_head = h.n_head;
    job.n_head_kv = h.n_head_kv;
    job.head_dim = h.head_dim;
    job.head_dim_v = h.head_dim_v;
    job.scale = scale;
    new (self) AttentionBlock{job, nb::make_tuple(qkv, nb::find(output))};
}

// gate, fc1 and fc2 may be None.
void feed_forward_init(FeedForwardBlock* self, nb::tuple norm, nb::object gate, uintptr_t gate_bias, const Matrix& up,
                       uintptr_t up_bias, const Matrix& down, uintptr_t down_bias, bool down_is_transposed,
                       nb::object fc1, nb::object fc2, int activation, float fatrelu_threshold, float sparse_threshold,
                       bool dense) {
    FeedForwardBlockJob job{};
    job.norm = norm_of(nb::cast<uintptr_t>(norm[0]), nb::cast<uintptr_t>(norm[1]), nb::cast<float>(norm[2]),
                       nb::cast<bool>(norm[3]));
    job.gate = whole(gate, gate_bias);
    job.up = {up.weights, floats(up_bias)};
    job.down = {down.weights, floats(down_bias)};
    job.fc1 = whole(fc1, 0).matrix;
    job.fc2 = whole(fc2, 0).matrix;
    job.n_ff = up.weights.rows;
    job.n_embd = up.weights.cols;
    if (!gate.is_none()) require_shape(job.gate.matrix, job.n_ff, job.n_embd, "gate");
    if (down_is_transposed)
        require_shape(down.weights, job.n_ff, job.n_embd, "down");
    else
        require_shape(down.weights, job.n_embd, job.n_ff, "down");
    if (down_is_transposed) require_stored(down.weights, "the down projection");
    require(fc1.is_none() == fc2.is_none(), "fc1 and fc2 come together");
    if (!fc1.is_none()) {
        require_shape(job.fc1, job.fc1.rows, job.n_embd, "fc1");
        require_shape(job.fc2, job.n_ff, job.fc1.rows, "fc2");
    }
    require(activation >= 0 && activation <= static_cast<int>(Activation::silu), "unknown activation");
    job.activation = static_cast<Activation>(activation);
    require(job.activation != Activation::drelu || !gate.is_none(), "dReLU needs a gate");
    require(dense || (down_is_transposed && job.activation != Activation::silu),
            "skipping neurons needs a ReLU-type activation and the down projection with a neuron a row");
    job.down_is_transposed = down_is_transposed;
    job.fatrelu_threshold = fatrelu_threshold;
    job.sparse_threshold = sparse_threshold;
    job.dense = dense;
    new (self) FeedForwardBlock{job, nb::make_tuple(gate, nb::find(up), nb::find(down), fc1, fc2)};
}

}  // namespace

void bind_blocks(nb::module_& m) {
    nb::class_<AttentionBlock>(m, "AttentionBlock")
        .def("__init__", &attention_init, nb::arg("norm"), nb::arg("qkv"), nb::arg("qkv_biases"), nb::arg("output"),
             nb::arg("output_bias"), nb::arg("heads"), nb::arg("scale"));
    nb::class_<FeedForwardBlock>(m, "FeedForwardBlock")
        .def("__init__", &feed_forward_init, nb::arg("norm"), nb::arg("gate").none(), nb::arg("gate_bias"),
             nb::arg("up"), nb::arg("up_bias"), nb::arg("down"), nb::arg("down_bias"), nb::arg("down_is_transposed"),
             nb::arg("fc1").none(), nb::arg("fc2").none(), nb::arg("activation"), nb::arg("fatrelu_threshold"),
             nb::arg("sparse_threshold"), nb::arg("dense"));
}

}  // namespace powerinfer
