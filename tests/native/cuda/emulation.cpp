// csrc/cuda without a device: launch.h as loops over blocks and threads. Addresses are the host's.
#include "block.h"
#include "host_team.h"
#include "launch.h"

namespace dtag::cuda {
namespace {

constexpr int64_t blocks = 3;  // so that each takes several rows
uint32_t turn = 0;             // another order of turns at each launch

template <int actions, int together, typename Weight>
void run(const Job& job) {
  ++turn;
  for (int64_t index = blocks - 1; index >= 0; --index) {
    HostBlock<actions, together, Weight> block(job, index, blocks, turn);
    refine_rows<actions, together, Weight>(block, job);
  }
}

template <int actions>
void run(const Job& job, int together) {
  constexpr int most = rows_together(actions);
  if (job.critic.bf16)
    return together == 1 ? run<actions, 1, uint16_t>(job) : run<actions, most, uint16_t>(job);
  return together == 1 ? run<actions, 1, float>(job) : run<actions, most, float>(job);
}

}  // namespace

const char* why_not(int) { return nullptr; }
const char* prepare(const PackedCritic&, int) { return nullptr; }

// As the device would: one row at a time in small batches.
const char* launch(const Job& job, int together, int, uintptr_t) {
  if (together == 0) together = job.rows < 16 ? 1 : 4;
  switch (job.critic.layout.actions) {
    case 2: return run<2>(job, together), nullptr;
    case 4: return run<4>(job, together), nullptr;
    case 6: return run<6>(job, together), nullptr;
    case 8: return run<8>(job, together), nullptr;
    case 12: return run<12>(job, together), nullptr;
    case 17: return run<17>(job, together), nullptr;
    case 24: return run<24>(job, together), nullptr;
    case 32: return run<32>(job, together), nullptr;
  }
  return "no kernel for so many action dimensions";
}

}  // namespace dtag::cuda
