#include "cold_worker.hpp"

#include <cstring>

#include "operations.hpp"
#include "spin.hpp"

namespace powerinfer {

namespace {

// The eight bytes of every byte's bits. A bit at a time 11,008 took as long as the rows of some dozen neurons.
struct BytesOfBits {
    uint8_t of[256][8];
    constexpr BytesOfBits() : of{} {
        for (int byte = 0; byte < 256; byte++)
            for (int bit = 0; bit < 8; bit++) of[byte][bit] = byte >> bit & 1;
    }
};
constexpr BytesOfBits kBytes;

}  // namespace

void unpack_bits(const uint8_t* bits, int64_t n, uint8_t* mask) {
    for (int64_t i = 0; i < n / 8; i++) std::memcpy(mask + 8 * i, kBytes.of[bits[i]], 8);
    for (int64_t i = n / 8 * 8; i < n; i++) mask[i] = bits[i / 8] >> (i % 8) & 1;
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
    stopping_.store(true);
    // What waits on job_ looks again; a job that is under way is finished first.
    ColdJob* none = nullptr;
    if (job_.compare_exchange_strong(none, &kStop)) job_.notify_all();
    thread_.join();
}

void ColdWorker::submit(ColdJob& job) noexcept {
    // This thread and another one besides those that compute.
    may_spin_.store(job.executor->pool.n_threads() < static_cast<int>(std::thread::hardware_concurrency()));
    ColdJob* none = nullptr;
    if (!job_.compare_exchange_strong(none, &job)) {
        failed_.store(true);
        return;
    }
    job_.notify_all();
}

void ColdWorker::wait() noexcept {
    for (ColdJob* job = job_.load(); job != nullptr && job != &kStop; job = job_.load()) {
        const auto done = [this, job] { return job_.load() != job; };
        if (!(may_spin_.load() && spin(done))) job_.wait(job);
    }
}

void ColdWorker::run(ColdJob& job) noexcept {
    ColdJob* none = nullptr;
    // Whoever else submits meanwhile fails, as it would while the thread computes; the thread leaves kTaken alone.
    if (!job_.compare_exchange_strong(none, &kTaken)) {
        failed_.store(true);
        return;
    }
    compute(job);
    finish();
}

void ColdWorker::work() noexcept {
    while (!stopping_.load()) {
        ColdJob* job = job_.load();
        if (job == &kStop) return;
        if (job == nullptr || job == &kTaken) {
            const auto changed = [this, job] { return job_.load() != job; };
            if (!(may_spin_.load() && spin(changed))) job_.wait(job);
            continue;
        }
        compute(*job);
        finish();
    }
}

void ColdWorker::compute(ColdJob& job) noexcept {
    try {
        run_cold_job(job);
    } catch (...) {
        failed_.store(true);
    }
}

void ColdWorker::finish() noexcept {
    job_.store(nullptr);
    job_.notify_all();
}

}  // namespace powerinfer

extern "C" {

void powerinfer_cold_submit(void* job) noexcept {
    auto* cold = static_cast<powerinfer::ColdJob*>(job);
    cold->worker->submit(*cold);
}

void powerinfer_cold_wait(void* job) noexcept { static_cast<powerinfer::ColdJob*>(job)->worker->wait(); }

void powerinfer_cold_run(void* job) noexcept {
    auto* cold = static_cast<powerinfer::ColdJob*>(job);
    cold->worker->run(*cold);
}

}
