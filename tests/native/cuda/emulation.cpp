// csrc/cuda without a device: launch.h as loops over blocks and threads. Addresses are the host's.
#include "block.h"
#include "host_team.h"
#include "launch.h"

namespace dtag::cuda {
namespace {

constexpr int64_t blocks = 3;  // so that each takes several rows
uint32_t turn = 0;             // another order of turns at each launch

// ranks: blocks of a team.
template <int actions, int together, int ranks, typename Precision>
void run(Job job) {
  ++turn;
  using Block = HostBlock<actions, together, ranks, Precision>;
  job.shared = SharedLayout(job.critic, Block::Team::units);
  for (int64_t index = blocks - 1; index >= 0; --index) {
    Block block(job, index, blocks, turn);
    refine_rows<actions, together, Precision>(block, job);
  }
}

template <int actions, typename Precision>
void run(const Job& job, Kind kind) {
  constexpr int together = Precision::tiles ? 1 : rows_together(actions);
  if (kind == Kind::cluster) return run<actions, 1, blocks_of_cluster, Precision>(job);
  if (kind == Kind::rows && fits_together(job.critic)) return run<actions, together, 1, Precision>(job);
  return run<actions, 1, 1, Precision>(job);
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

// As the device might: fewer threads a row in larger batches.
const char* launch(const Job& job, Kind kind, int, uintptr_t) {
  const char* const no_cluster = why_no_cluster(job.critic);
  if (kind == Kind::cluster && no_cluster != nullptr) return no_cluster;
  if (kind == Kind::automatic)
    kind = job.rows >= 16                             ? Kind::rows
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
