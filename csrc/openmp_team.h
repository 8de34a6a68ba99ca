// The threads of the OpenMP runtime that torch brought into the process.
#pragma once

#include "thread_pool.h"

namespace dtag {

// Calls work(), which must not throw, in the calling thread and in up to `threads` - 1 of that
// runtime's, and returns true; or false without a call, where the process has no such runtime or is
// a fork of one that had, whose threads are gone. (A process that was forked before this module was
// loaded cannot know; torch's own parallel operations wait for ever there, too.)
//
// After each parallel operation these threads spin for milliseconds, waiting for the next one.
// Threads of another pool would share their cores with them all that time.
bool run_in_openmp_team(int threads, Work work, const void* context);

template <typename Function>
bool run_in_openmp_team(int threads, const Function& function) {
  return run_in_openmp_team(
      threads, [](const void* context) { (*static_cast<const Function*>(context))(); }, &function);
}

}  // namespace dtag
