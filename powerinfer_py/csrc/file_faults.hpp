// What happens when a mapped file loses the bytes that are being read: one line that names it, and an orderly end.
//
// Not a way to go on: there is nothing to compute with. Without this the process dies of SIGBUS, silently for a program
// that no shell started.
#pragma once

namespace powerinfer {

// Installs a handler for SIGBUS where nobody has installed one. Returns whether this one is in place afterwards.
bool report_file_faults();

}  // namespace powerinfer
