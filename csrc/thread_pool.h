// A few sleeping threads that help a caller with one batch.
#pragma once

namespace dtag {

// Calls work(), which must not throw, in the calling thread and in up to `threads` - 1 others at
// once; returns when every call has. How many others there are in the end depends on who is free,
// so work() shares itself out by a counter, and the caller can finish alone: it does when the
// threads are busy with another caller's batch, or when the system gives none.
//
// The threads are started when first asked for and joined at exit. A forked child starts its own.
using Work = void (*)(const void* context);
void run_with_help(int threads, Work work, const void* context);

template <typename Function>
void run_with_help(int threads, const Function& function) {
  run_with_help(
      threads, [](const void* context) { (*static_cast<const Function*>(context))(); }, &function);
}

}  // namespace dtag
