// Work in phases, each a number of independent items, shared out among threads.
#pragma once

namespace dtag {

// Calls item(context, phase, i) for every i < count(context, phase); a phase begins when all items
// of the one before are done.
//
// This is the work of training, which goes on between operations of torch: it is done by the threads
// of torch's OpenMP where the process has one (openmp_team.h), else by our own.
using PhaseCount = int (*)(const void* context, int phase);
using PhaseItem = void (*)(const void* context, int phase, int i);
void run_phases(int threads, int phases, PhaseCount count, PhaseItem item, const void* context);

// For a class with count(phase) and item(phase, i).
template <typename Phases>
void run_phases(int threads, int phases, const Phases& work) {
  run_phases(
      threads, phases,
      [](const void* context, int phase) {
        return static_cast<const Phases*>(context)->count(phase);
      },
      [](const void* context, int phase, int i) {
        static_cast<const Phases*>(context)->item(phase, i);
      },
      &work);
}

}  // namespace dtag
