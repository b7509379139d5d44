// Lets a module that was compiled with a new GCC load beside older C and C++ libraries (glibc 2.27, libstdc++ of GCC 7).
// Not a feature: without this file the module is the same, but needs glibc 2.32 and the libstdc++ of GCC 12.
//
// Newer headers put code into the module that calls what older libraries do not export. Each such symbol is defined
// here, hidden, so that the linker finds it in the module itself and notes no need of a newer library.
#include <cstddef>  // defines __GLIBCXX__

#if defined(__linux__) && defined(__GLIBCXX__) && __GNUC__ >= 11 && !defined(__clang__)

#include <pthread.h>

#include <condition_variable>
#include <mutex>

#define POWERINFER_LOCAL __attribute__((visibility("hidden"), used))

extern "C" {

// Asked by libstdc++ before it counts references without atomic instructions. 0, "there may be several threads", is
// always right.
POWERINFER_LOCAL char __libc_single_threaded = 0;

// std::exception_ptr's copy constructor and destructor, which libstdc++ exports since GCC 4.4 (CXXABI_1.3.3).
void copy_exception_ptr(void* to, const void* from) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void destroy_exception_ptr(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");

// Since GCC 11 both are inline and call these two (CXXABI_1.3.13). An exception_ptr is one pointer; a copy that nobody
// destroys is one more reference.
POWERINFER_LOCAL void add_reference(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void add_reference(void* self) {
    void* forgotten;
    copy_exception_ptr(&forgotten, self);
}

POWERINFER_LOCAL void release_reference(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void release_reference(void* self) {
    destroy_exception_ptr(self);
    *static_cast<void**>(self) = nullptr;
}

// Since GCC 12 (GLIBCXX_3.4.30) another version than the one before, which older libraries alone have.
POWERINFER_LOCAL void wait_for(std::condition_variable* self, std::unique_lock<std::mutex>* lock)
    __asm__("_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE");
void wait_for(std::condition_variable* self, std::unique_lock<std::mutex>* lock) {
    pthread_cond_wait(self->native_handle(), lock->mutex()->native_handle());
}

}  // extern "C"

#endif
