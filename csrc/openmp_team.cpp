#include "openmp_team.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace dtag {

#if defined(__linux__)
namespace {

// Of GCC's runtime, and of LLVM's and Intel's, which have it too. Linking to one would bring a second
// into the process, with threads of its own: torch's wheels carry theirs with them.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

Parallel runtime() {
  static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

const pid_t loaded_by = getpid();

struct Call {
  Work work;
  const void* context;
};

}  // namespace

bool run_in_openmp_team(int threads, Work work, const void* context) {
  const Parallel parallel = runtime();
  if (parallel == nullptr || getpid() != loaded_by) return false;
  Call call{work, context};
  parallel(
      [](void* data) {
        const auto* const own = static_cast<const Call*>(data);
        own->work(own->context);
      },
      &call, static_cast<unsigned>(threads), 0);
  return true;
}
#else
bool run_in_openmp_team(int, Work, const void*) { return false; }
#endif

}  // namespace dtag
