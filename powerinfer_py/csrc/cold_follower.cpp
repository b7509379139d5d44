#include "cold_follower.hpp"

#include <chrono>

#include "spin.hpp"

namespace powerinfer {

namespace {

using Clock = std::chrono::steady_clock;

// Within a step the device comes to its next split layer after some 100 us; layers that are not split may lie between.
// Who has waited longer than a whole step takes looks again from time to time.
constexpr auto kLongestSpin = std::chrono::milliseconds(10);
constexpr auto kNap = std::chrono::microseconds(50);

bool is_raised(const uint32_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE) == 1; }

void lower(uint32_t* flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }

// Looks until `done`, ever more rarely: pausing, or letting others run where there are more threads than cores.
template <typename Condition>
void await(const Condition& done, bool may_spin) {
    const auto end = Clock::now() + kLongestSpin;
    while (!done()) {
        if (Clock::now() >= end)
            std::this_thread::sleep_for(kNap);
        else if (may_spin)
            pause();
        else
            std::this_thread::yield();
    }
}

bool may_spin_beside(int n_threads) { return n_threads < static_cast<int>(std::thread::hardware_concurrency()); }

}  // namespace

ColdFollower::ColdFollower() : thread_([this] { work(); }) {}

ColdFollower::~ColdFollower() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        giving_up_.store(true);
    }
    changed_.notify_all();
    thread_.join();
}

bool ColdFollower::follow(const ColdSequence& sequence) {
    {
        const std::lock_guard lock(mutex_);
        if (following_) return false;
        for (const FollowedJob& followed : sequence) {
            lower(followed.begun);
            lower(followed.done);
        }
        following_ = &sequence;
    }
    changed_.notify_all();
    return true;
}

void ColdFollower::abandon(const ColdSequence* sequence) {
    std::unique_lock lock(mutex_);
    if (!following_ || (sequence && following_ != sequence)) return;
    giving_up_.store(true);
    changed_.wait(lock, [this] { return !following_; });
    giving_up_.store(stopping_);
}

void ColdFollower::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [this] { return following_ || stopping_; });
        if (stopping_) return;
        const ColdSequence& sequence = *following_;
        lock.unlock();
        run(sequence);
        lock.lock();
        following_ = nullptr;
        changed_.notify_all();
    }
}

void ColdFollower::run(const ColdSequence& sequence) {
    for (const FollowedJob& followed : sequence) {
        if (!await_begun(followed)) return;
        try {
            run_cold_job(*followed.job);
        } catch (...) {
            failed_.store(true);
        }
        // In any case: the device waits for it.
        raise_flag(followed.done);
    }
}

bool ColdFollower::await_begun(const FollowedJob& followed) {
    const auto over = [&] { return is_raised(followed.begun) || giving_up_.load(); };
    await(over, may_spin_beside(followed.job->executor->pool.n_threads()));
    return is_raised(followed.begun);
}

bool await_flag(const uint32_t* flag, double seconds) {
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    await([&] { return is_raised(flag) || Clock::now() >= end; }, false);
    return is_raised(flag);
}

void raise_flag(uint32_t* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }

}  // namespace powerinfer
