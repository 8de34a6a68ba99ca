// Work in phases, each a number of independent items, shared out among threads.
#pragma once

namespace dtag {

// Whose threads help. Our own sleep when there is nothing to do, and nobody waits for one that does
// not come: best beside other processes. But those of torch's OpenMP spin for milliseconds after each
// of its parallel operations, and ours would have to share their cores with them: between such
// operations it is best to take its threads (openmp_team.h), where the process has any.
enum class Team { own, openmp };

// Calls item(context, phase, i) for every i < count(context, phase); a phase begins when all items
// of the one before are done. Nobody waits in a phase for a thread, only for items that one has
// begun; OpenMP waits for all its threads in the end.
using PhaseCount = int (*)(const void* context, int phase);
using PhaseItem = void (*)(const void* context, int phase, int i);
void run_phases(Team team, int threads, int phases, PhaseCount count, PhaseItem item,
                const void* context);

// For a class with count(phase) and item(phase, i).
template <typename Phases>
void run_phases(Team team, int threads, int phases, const Phases& work) {
  run_phases(
      team, threads, phases,
      [](const void* context, int phase) {
        return static_cast<const Phases*>(context)->count(phase);
      },
      [](const void* context, int phase, int i) {
        static_cast<const Phases*>(context)->item(phase, i);
      },
      &work);
}

}  // namespace dtag
