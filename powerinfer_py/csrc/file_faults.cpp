#include "file_faults.hpp"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <cstdint>

namespace powerinfer {

namespace {

constexpr int kExitError = 1;
// A path has at most 4096 bytes, a line of the maps some 80 before it.
constexpr size_t kLineBytes = 4352;

// Only what POSIX allows in a signal handler is called from here on: open, read, write, _exit, sigaction, raise.

void write_text(const char* text, size_t n_bytes) {
    while (n_bytes > 0) {
        const ssize_t written = write(STDERR_FILENO, text, n_bytes);
        if (written <= 0) return;
        text += written;
        n_bytes -= static_cast<size_t>(written);
    }
}

template <size_t N>
void write_literal(const char (&text)[N]) {
    write_text(text, N - 1);
}

// Reads hexadecimal digits from `p` on, which it moves behind them.
uintptr_t hexadecimal(const char*& p) {
    uintptr_t value = 0;
    for (;; p++) {
        if (*p >= '0' && *p <= '9')
            value = value * 16 + static_cast<uintptr_t>(*p - '0');
        else if (*p >= 'a' && *p <= 'f')
            value = value * 16 + static_cast<uintptr_t>(*p - 'a' + 10);
        else
            return value;
    }
}

// The path in a line of /proc/self/maps that covers `address`; null where it is another line or no file. Paths begin
// with the first slash, control characters in them become question marks.
char* path_of_line(char* line, uintptr_t address) {
    const char* p = line;
    const uintptr_t begin = hexadecimal(p);
    if (*p++ != '-') return nullptr;
    const uintptr_t end = hexadecimal(p);
    if (address < begin || address >= end) return nullptr;
    char* path = strchr(line, '/');
    for (char* c = path; c && *c; c++)
        if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) *c = '?';
    return path;
}

// The path of the file that is mapped at `address`, in `line`; null where there is none, or no /proc.
char* mapped_path(uintptr_t address, char (&line)[kLineBytes]) {
    const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (maps < 0) return nullptr;
    char chunk[1024];
    size_t length = 0;
    char* found = nullptr;
    for (ssize_t n = read(maps, chunk, sizeof chunk); n > 0 && !found; n = read(maps, chunk, sizeof chunk))
        for (ssize_t i = 0; i < n && !found; i++) {
            if (chunk[i] != '\n') {
                if (length + 1 < kLineBytes) line[length++] = chunk[i];
                continue;
            }
            line[length] = '\0';
            length = 0;
            found = path_of_line(line, address);
        }
    close(maps);
    return found;
}

void handle(int number, siginfo_t* info, void*) {
    // A signal that somebody sent has no address.
    const bool is_fault = info->si_code > 0;
    char line[kLineBytes];
    const char* path = !is_fault ? nullptr : mapped_path(reinterpret_cast<uintptr_t>(info->si_addr), line);
    if (path) {
        write_literal("powerinfer-py: error: ");
        write_text(path, strlen(path));
        write_literal(": the file became shorter, or its disk failed, while it was being read; nothing can be computed "
                      "without it\n");
        _exit(kExitError);
    }
    // No file of ours: as if there were no handler. The faulting instruction runs again when this returns.
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    sigaction(number, &standard, nullptr);
    if (!is_fault) raise(number);
}

}  // namespace

bool report_file_faults() {
    struct sigaction present {};
    if (sigaction(SIGBUS, nullptr, &present) != 0) return false;
    if ((present.sa_flags & SA_SIGINFO) && present.sa_sigaction == handle) return true;
    // Somebody else's handler, such as Python's faulthandler, stays.
    if ((present.sa_flags & SA_SIGINFO) || present.sa_handler != SIG_DFL) return false;
    struct sigaction own {};
    own.sa_sigaction = handle;
    own.sa_flags = SA_SIGINFO;
    sigemptyset(&own.sa_mask);
    return sigaction(SIGBUS, &own, nullptr) == 0;
}

}  // namespace powerinfer
