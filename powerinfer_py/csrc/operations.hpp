// Every operation as a function over a job, callable without Python. Results do not depend on the number of threads.
#pragma once

#include "executor.hpp"
#include "jobs.hpp"

namespace powerinfer {

// Returns the number of (token, row) products computed.
int64_t linear(const LinearJob& job, Executor& executor);
// Returns the number of (token, row) pairs added.
int64_t accumulate_rows(const AccumulateJob& job, Executor& executor);
void rows(const RowsJob& job, Executor& executor);
void norm(const NormJob& job, Executor& executor);
void rope(const RopeJob& job, Executor& executor);
void attention(const AttentionJob& job, Executor& executor);

}  // namespace powerinfer
