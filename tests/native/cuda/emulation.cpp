// csrc/cuda without a device: launch.h as loops over blocks and threads. Addresses are the host's.
#include "block.h"
#include "host_team.h"
#include "launch.h"

namespace dtag::cuda {
namespace {

constexpr int64_t blocks = 3;  // so that each takes several rows
uint32_t turn = 0;             // another order of turns at each launch

template <int actions, int blocks_of_row, bool roomy, typename Precision>
void run(Job job) {
  ++turn;
  using Block = HostBlock<actions, blocks_of_row, roomy, Precision>;
  job.shared = SharedLayout(job.critic, Precision::tiles || blocks_of_row > 1);
  for (int64_t index = blocks - 1; index >= 0; --index) {
    Block block(job, index, blocks, turn);
    refine_rows<actions, blocks_of_row, Precision>(block, job);
  }
}

template <int actions, typename Precision>
void run(const Job& job, Kind kind) {
  const bool wide = job.critic.heads * job.critic.layout.threads_per_head > most_threads;
  if constexpr (!Precision::tiles) {
    if (kind == Kind::cluster)
      return run<actions, blocks_of_cluster(actions), true, Precision>(job);
    if (kind == Kind::row && !wide) return run<actions, 1, true, Precision>(job);
  }
  return run<actions, 1, false, Precision>(job);
}

template <int actions>
void run(const Job& job, Kind kind) {
  switch (job.critic.precision) {
    case Precision::fp32: return run<actions, Fp32>(job, kind);
    case Precision::bf16: return run<actions, Bf16>(job, kind);
    case Precision::tf32x3: return run<actions, Tf32x3>(job, kind);
  }
}

}  // namespace

const char* why_not(int) { return nullptr; }
const char* prepare(const PackedCritic&, int) { return nullptr; }
const char* why_no_cluster(const PackedCritic& critic, int) { return why_no_cluster(critic); }

// As the device might.
const char* launch(const Job& job, Kind kind, int, uintptr_t) {
  const char* const no_cluster = why_no_cluster(job.critic);
  if (kind == Kind::cluster && no_cluster != nullptr) return no_cluster;
  if (kind == Kind::automatic)
    kind = job.rows >= 16                             ? Kind::lean
           : job.rows < 4 && no_cluster == nullptr ? Kind::cluster
                                                      : Kind::row;
  switch (job.critic.layout.actions) {
    case 2: return run<2>(job, kind), nullptr;
    case 4: return run<4>(job, kind), nullptr;
    case 6: return run<6>(job, kind), nullptr;
    case 8: return run<8>(job, kind), nullptr;
    case 12: return run<12>(job, kind), nullptr;
    case 17: return run<17>(job, kind), nullptr;
    case 24: return run<24>(job, kind), nullptr;
    case 32: return run<32>(job, kind), nullptr;
  }
  return "no kernel for so many action dimensions";
}

}  // namespace dtag::cuda
