// The CPU's part of a whole step as a device starts and awaits it through flags, words of memory that both write.
//
// A step that repeats has the same cold jobs in the same order every time. For each, the device's stream writes 1 into
// `begun` when the job's input has come down, goes on with its own neurons, and waits for 1 in `done` before it fetches
// the sum. A thread here follows: it waits for `begun`, computes, writes `done`, and goes on to the next job. Nothing of
// the driver's stands between the two sides, and no thread has to be woken within a step.
//
// Order, for one job: the input is copied, then `begun` is written (both by the stream, which keeps that order for the
// host too); it is read here with acquire, so that the input is seen. The sum is written before `done` (release), and the
// stream copies it up behind its wait. Both flags are lowered by `follow`, before the device is given the step: whoever
// enqueues a step waits for the end of the one before.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "cold_worker.hpp"

namespace powerinfer {

struct FollowedJob {
    ColdJob* job;
    uint32_t* begun;
    uint32_t* done;
};

using ColdSequence = std::vector<FollowedJob>;

class ColdFollower {
public:
    ColdFollower();
    // Gives up what it follows.
    ~ColdFollower();
    ColdFollower(const ColdFollower&) = delete;
    ColdFollower& operator=(const ColdFollower&) = delete;

    // Lowers the flags of a step and follows it, on the thread of this object; the sequence outlives that. False, and
    // nothing is done, while another step is followed.
    bool follow(const ColdSequence& sequence);
    // Returns when a step that is followed (this one; null: any) is over or given up: neither its jobs nor its flags are
    // touched any more. The job that is being computed is finished, and those that have not begun never are.
    void abandon(const ColdSequence* sequence = nullptr);
    // Whether a job has failed since the last call; its step went on with whatever was in its sum.
    bool take_error() { return failed_.exchange(false); }

private:
    void work();
    void run(const ColdSequence& sequence);
    bool await_begun(const FollowedJob& followed);

    std::mutex mutex_;
    std::condition_variable changed_;
    const ColdSequence* following_ = nullptr;
    bool stopping_ = false;
    std::atomic<bool> giving_up_{false};
    std::atomic<bool> failed_{false};
    std::thread thread_;
};

// Waits until a flag is 1, as a device's stream does, for at most so long; whether it is.
bool await_flag(const uint32_t* flag, double seconds);
// Writes 1 into a flag, behind everything this thread has written.
void raise_flag(uint32_t* flag);

}  // namespace powerinfer
