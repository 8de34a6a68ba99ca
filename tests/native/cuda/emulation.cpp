// csrc/cuda without a device: launch.h as loops over blocks and threads. Addresses are the host's.
#include "host_maps.h"
#include "host_walk.h"
#include "host_warpgroup.h"
#include "launch.h"

namespace dtag::cuda {
namespace {

uint32_t turn = 0;  // another order of turns at each launch

template <int heads>
void run_tiles(const Job& job) {
  constexpr int clusters = 2;
  for (int index = 0; index < clusters; ++index) {
    HostCluster<heads> cluster(job, index, clusters, ++turn);
    refine_tiles(cluster, job);
  }
}

void run_tiles(const Job& job) { return job.critic.heads == 1 ? run_tiles<1>(job) : run_tiles<2>(job); }

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

void walk(const Job& job, Kind kind) {
  ++turn;
  switch (job.critic.layout.actions) {
    case 2: return walk_rows<2>(job, kind, turn);
    case 4: return walk_rows<4>(job, kind, turn);
    case 6: return walk_rows<6>(job, kind, turn);
    case 8: return walk_rows<8>(job, kind, turn);
    case 12: return walk_rows<12>(job, kind, turn);
    case 17: return walk_rows<17>(job, kind, turn);
    case 24: return walk_rows<24>(job, kind, turn);
    case 32: return walk_rows<32>(job, kind, turn);
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
  const bool queued = with_maps > 0 && job.rows > blocks_of_walk && why_none(Kind::lean, job.critic) == nullptr;
  if (kind == Kind::automatic && !queued)
    for (const Kind each : {Kind::row, Kind::lean, Kind::cluster})
      if (why_none(each, job.critic) == nullptr &&
          (each == Kind::row || (each == Kind::lean ? job.rows >= 16 : job.rows < 4 && !job.dense)))
        kind = each;
  if (with_maps == 0) walk(job, kind);
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
    walk(part, kind);
  }
  return nullptr;
}

}  // namespace dtag::cuda
