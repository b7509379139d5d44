#include "cold_worker.hpp"

#include <cstring>

#include "operations.hpp"

namespace powerinfer {

void unpack_bits(const uint8_t* bits, int64_t n, uint8_t* mask) {
    for (int64_t i = 0; i < n; i++) mask[i] = bits[i / 8] >> (i % 8) & 1;
}

void run_cold_job(ColdJob& job) {
    const int64_t n_ff = job.block.n_ff, row_bytes = (n_ff + 7) / 8;
    uint8_t* mask = nullptr;
    if (job.bits) {
        mask = job.mask.data();
        for (int64_t t = 0; t < job.n_tokens; t++) unpack_bits(job.bits + t * row_bytes, n_ff, mask + t * n_ff);
    }
    const FeedForwardPartStep step{job.h, mask, job.y, nullptr, job.n_tokens};
    const FeedForwardCounts counts = feed_forward_part(job.block, step, *job.executor);
    const int64_t numbers[4] = {counts.gate, counts.up, counts.down, counts.fired};
    for (int i = 0; i < 4; i++) job.counts[i].fetch_add(numbers[i], std::memory_order_relaxed);
}

ColdWorker::ColdWorker() : thread_([this] { work(); }) {}

ColdWorker::~ColdWorker() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

// A mutex may only throw where it is misused or the system is out of order; noexcept then ends the process, which is
// better than a stream that waits for ever.
void ColdWorker::submit(ColdJob& job) noexcept {
    {
        const std::lock_guard lock(mutex_);
        if (job_) {
            failed_.store(true);
            return;
        }
        job_ = &job;
    }
    changed_.notify_all();
}

void ColdWorker::wait() noexcept {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return job_ == nullptr; });
}

void ColdWorker::work() noexcept {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [this] { return job_ != nullptr || stopping_; });
        if (!job_) return;
        ColdJob& job = *job_;
        lock.unlock();
        try {
            run_cold_job(job);
        } catch (...) {
            failed_.store(true);
        }
        lock.lock();
        job_ = nullptr;
        changed_.notify_all();
    }
}

}  // namespace powerinfer

extern "C" {

void powerinfer_cold_submit(void* job) noexcept {
    auto* cold = static_cast<powerinfer::ColdJob*>(job);
    cold->worker->submit(*cold);
}

void powerinfer_cold_wait(void* job) noexcept { static_cast<powerinfer::ColdJob*>(job)->worker->wait(); }

void powerinfer_cold_run(void* job) noexcept {
    powerinfer_cold_submit(job);
    powerinfer_cold_wait(job);
}

}
