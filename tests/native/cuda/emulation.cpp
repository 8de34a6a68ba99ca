// csrc/cuda without a device: launch.h as loops over blocks and threads. Addresses are the host's.
#include "block.h"
#include "host_maps.h"
#include "host_team.h"
#include "host_warpgroup.h"
#include "launch.h"

namespace dtag::cuda {
namespace {

constexpr int64_t blocks = 3;  // so that each takes several rows
uint32_t turn = 0;             // another order of turns at each launch

template <int actions, int units, int blocks_of_row, bool roomy, typename Precision, bool queued = false>
void run(Job job) {
  ++turn;
  constexpr bool crowded = queued && crowded_with_maps(actions);
  using Block = HostBlock<actions, units, blocks_of_row, roomy, queued, crowded, Precision>;
  constexpr bool apart = blocks_of_row > 1;
  for (int64_t index = blocks - 1; index >= 0; --index) {
    // The first has room for a slice of W_2^T, others have not.
    job.shared = SharedLayout(job.critic, units, apart, apart && index == 0);
    Block block(job, index, blocks, turn);
    refine_rows<actions, blocks_of_row, Precision>(block, job);
  }
  // A block draws a number for each row that it took, so that it has another.
  if (queued && *job.queue != job.rows) throw std::logic_error("a row was not taken once");
}

template <int actions, typename Precision>
void run(const Job& job, Kind kind) {
  constexpr int units = units_per_thread(actions);
  if constexpr (std::is_same_v<Precision, Fp32>)
    if (kind == Kind::automatic) return run<actions, units_of_lean(actions), 1, false, Precision, true>(job);
  if (kind == Kind::cluster)
    return run<actions, units, blocks_of_cluster(actions), true, Precision>(job);
  if (kind == Kind::lean) return run<actions, units_of_lean(actions), 1, false, Precision>(job);
  if (!is_wide(job.critic)) return run<actions, units, 1, true, Precision>(job);
  return run<actions, units, 1, false, Precision>(job);
}

template <int heads>
void run_tiles(const Job& job) {
  constexpr int clusters = 2;
  for (int index = 0; index < clusters; ++index) {
    HostCluster<heads> cluster(job, index, clusters, ++turn);
    refine_tiles(cluster, job);
  }
}

void run_tiles(const Job& job) { return job.critic.heads == 1 ? run_tiles<1>(job) : run_tiles<2>(job); }

template <int actions>
void run(const Job& job, Kind kind) {
  switch (job.critic.precision) {
    case Precision::fp32:
    case Precision::tf32x3: return run<actions, Fp32>(job, kind);
    case Precision::bf16: return run<actions, Bf16>(job, kind);
  }
}

template <int columns, int units>
void build(const Job& job) {
  int groups = 2;
  const MapsLayout at = MapsLayout::within(227 << 10, job.critic, &groups);
  for (int kind = 0; kind < job.critic.heads * job.critic.layout.width / columns; ++kind)
    for (int index = 1; index >= 0; --index) {
      HostMapBlock<columns, units> block(job, at, {kind, index, 2, groups});
      build_maps<columns>(block, job, at);
    }
}

void run(const Job& job, Kind kind) {
  switch (job.critic.layout.actions) {
    case 2: return run<2>(job, kind);
    case 4: return run<4>(job, kind);
    case 6: return run<6>(job, kind);
    case 8: return run<8>(job, kind);
    case 12: return run<12>(job, kind);
    case 17: return run<17>(job, kind);
    case 24: return run<24>(job, kind);
    case 32: return run<32>(job, kind);
  }
  throw std::logic_error("no kernel for so many action dimensions");
}

}  // namespace

const char* why_not(int, Precision) { return nullptr; }
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
  const int64_t with_maps = rows_with_maps(job);
  job.queue = queue_behind_maps(job);
  // The kernel that takes rows from a queue has no name.
  const bool queued = with_maps > 0 && job.rows > blocks && why_none(Kind::lean, job.critic) == nullptr;
  if (kind == Kind::automatic && !queued)
    for (const Kind each : {Kind::row, Kind::lean, Kind::cluster})
      if (why_none(each, job.critic) == nullptr &&
          (each == Kind::row || (each == Kind::lean ? job.rows >= 16 : job.rows < 4 && !job.dense)))
        kind = each;
  if (with_maps == 0) run(job, kind);
  for (int64_t first = 0; with_maps > 0 && first < job.rows; first += with_maps) {
    const Job part = part_of(job, first, with_maps);
    const int width = job.critic.layout.width;
    *part.queue = 12345;  // what the memory held before
    if (columns_of_maps(width) == 128)
      build<128, 8>(part);
    else if (width <= 256)
      build<64, 8>(part);
    else
      build<64, most_map_width / warp_size>(part);
    run(part, kind);
  }
  return nullptr;
}

}  // namespace dtag::cuda
