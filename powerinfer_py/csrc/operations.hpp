// Every operation as a function over a job, callable without Python. Results do not depend on the number of threads.
#pragma once

#include "executor.hpp"
#include "jobs.hpp"

namespace powerinfer {

// Returns the number of (token, row) products computed.
int64_t linear(const LinearJob& job, Executor& executor);
// Returns the number of (token, row) pairs added.
int64_t accumulate_rows(const AccumulateJob& job, Executor& executor);
// Whether neurons() takes the job: packed rows, a mask, one token, and no more threads than blocks to share out.
bool can_run_neurons(const NeuronsJob& job, const Executor& executor);
// Bit-equal to linear(), what lies between, linear() and accumulate_rows(), whose passes over memory it joins.
NeuronCounts neurons(const NeuronsJob& job, Executor& executor);
// Rows of `stored`, which lie side by side, as those of `packed`, whose memory `out` is.
void pack(const WeightMatrix& stored, const WeightMatrix& packed, uint8_t* out, Executor& executor);
// The same rows as they are.
void copy(const WeightMatrix& stored, const WeightMatrix& copied, uint8_t* out, Executor& executor);
// Rows as files store them; packed ones cannot be looked up or added.
void rows(const RowsJob& job, Executor& executor);
void norm(const NormJob& job, Executor& executor);
void rope(const RopeJob& job, Executor& executor);
void attention(const AttentionJob& job, Executor& executor);
// Up to three products of the same x at once: one hand-over to the threads instead of one each.
void linear_group(const LinearJob* jobs, int n_jobs, Executor& executor);
// y = residual + the block's result, each in a single call.
void attention_block(const AttentionBlockJob& job, const AttentionStep& step, Executor& executor);
FeedForwardCounts feed_forward_block(const FeedForwardBlockJob& job, const FeedForwardStep& step, Executor& executor);
// All layers in a single call; counts (n_layers).
void run_layers(const LayersStep& step, FeedForwardCounts* counts, Executor& executor);
// The FFN of the block's rows alone: neither norm nor predictor nor residual. There may be no rows.
FeedForwardCounts feed_forward_part(
    const FeedForwardBlockJob& job, const FeedForwardPartStep& step, Executor& executor);
void predict(const PredictJob& job, Executor& executor);

}  // namespace powerinfer
