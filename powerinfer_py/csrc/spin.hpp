// Waiting without sleep, for as long as it takes another thread or a device to come to its next piece of a token.
#pragma once

#include <chrono>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace powerinfer {

// Between two operations of a token the interpreter needs 5 to 20 us, and a device that computes the attention between
// two layers' cold neurons 50 to 150; waking a sleeper costs 10 to 60. So a thread stays awake that long and no longer:
// between tokens it sleeps.
inline constexpr auto kSpin = std::chrono::microseconds(200);

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Busy-waits until `done` or until the time is up; returns whether it is done.
template <typename Condition>
bool spin(const Condition& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; i++) {
            if (done()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

}  // namespace powerinfer
