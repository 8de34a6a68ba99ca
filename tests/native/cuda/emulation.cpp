// csrc/cuda without a device: launch.h as loops over blocks and threads. Addresses are the host's.
#include "block.h"
#include "host_team.h"
#include "host_warpgroup.h"
#include "launch.h"

namespace dtag::cuda {
namespace {

constexpr int64_t blocks = 3;  // so that each takes several rows
uint32_t turn = 0;             // another order of turns at each launch

template <int actions, int units, int blocks_of_row, bool roomy, typename Precision>
void run(Job job) {
  ++turn;
  using Block = HostBlock<actions, units, blocks_of_row, roomy, Precision>;
  job.shared = SharedLayout(job.critic, units, Precision::tiles || blocks_of_row > 1);
  for (int64_t index = blocks - 1; index >= 0; --index) {
    Block block(job, index, blocks, turn);
    refine_rows<actions, blocks_of_row, Precision>(block, job);
  }
}

template <int actions, typename Precision>
void run(const Job& job, Kind kind) {
  constexpr int units = units_per_thread(actions);
  if constexpr (!Precision::tiles) {
    if (kind == Kind::cluster)
      return run<actions, units, blocks_of_cluster(actions), true, Precision>(job);
    if (kind == Kind::lean) return run<actions, units_of_lean(actions), 1, false, Precision>(job);
    if (!is_wide(job.critic)) return run<actions, units, 1, true, Precision>(job);
  }
  return run<actions, units, 1, false, Precision>(job);
}

template <int actions, int heads>
void run_tiles(const Job& job) {
  constexpr int clusters = 2;
  for (int index = 0; index < clusters; ++index) {
    HostCluster<actions, heads> cluster(job, index, clusters, ++turn);
    refine_tiles(cluster, job);
  }
}

template <int actions>
void run_tiles(const Job& job) {
  return job.critic.heads == 1 ? run_tiles<actions, 1>(job) : run_tiles<actions, 2>(job);
}

void run_tiles(const Job& job) {
  switch (tile_actions(job.critic.layout.actions)) {
    case 4: return run_tiles<4>(job);
    case 6: return run_tiles<6>(job);
    case 8: return run_tiles<8>(job);
  }
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
const char* why_none(Kind kind, const PackedCritic& critic, int) { return why_none(kind, critic); }

// As the device might.
const char* launch(const Job& given, Kind kind, int, uintptr_t) {
  Job job = given;
  if (const char* const reason = why_none(kind, job.critic)) return reason;
  if (kind == Kind::automatic && job.dense && fits_tiles(job.critic)) {
    run_tiles(job);
    job.marked = true;
  }
  if (kind == Kind::automatic)
    for (const Kind each : {Kind::row, Kind::lean, Kind::cluster})
      if (why_none(each, job.critic) == nullptr &&
          (each == Kind::row || (each == Kind::lean ? job.rows >= 16 : job.rows < 4 && !job.dense)))
        kind = each;
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
