// walk_rows for DTAG_ACTIONS action dimensions, compiled once for each, as csrc/cuda/walk.cu is.
#include "host_walk.h"

#include "host_team.h"

namespace dtag::cuda {
namespace {

template <int actions, int units, int blocks_of_row, bool roomy, typename Precision, bool queued = false>
void run(Job job, uint32_t turn) {
  constexpr bool crowded = queued && crowded_with_maps(actions);
  using Block = HostBlock<actions, units, blocks_of_row, roomy, queued, crowded, Precision>;
  constexpr bool apart = blocks_of_row > 1;
  for (int64_t index = blocks_of_walk - 1; index >= 0; --index) {
    // The first has room for a slice of W_2^T, others have not.
    job.shared = SharedLayout(job.critic, units, apart, apart && index == 0);
    Block block(job, index, blocks_of_walk, turn);
    refine_rows<actions, blocks_of_row, Precision>(block, job);
  }
  // A block draws a number for each row that it took, so that it has another.
  if (queued && *job.queue != job.rows) throw std::logic_error("a row was not taken once");
}

template <int actions, typename Precision>
void run(const Job& job, Kind kind, uint32_t turn) {
  constexpr int units = units_per_thread(actions), lean = units_of_lean(actions);
  if constexpr (std::is_same_v<Precision, Fp32>)
    if (kind == Kind::automatic) return run<actions, lean, 1, false, Precision, true>(job, turn);
  if (kind == Kind::cluster)
    return run<actions, units, blocks_of_cluster(actions), true, Precision>(job, turn);
  if (kind == Kind::lean) return run<actions, lean, 1, false, Precision>(job, turn);
  if (!is_wide(job.critic)) return run<actions, units, 1, true, Precision>(job, turn);
  return run<actions, units, 1, false, Precision>(job, turn);
}

}  // namespace

template <int actions>
void walk_rows(const Job& job, Kind kind, uint32_t turn) {
  switch (job.critic.precision) {
    case Precision::fp32:
    case Precision::tf32x3: return run<actions, Fp32>(job, kind, turn);
    case Precision::bf16: return run<actions, Bf16>(job, kind, turn);
  }
}

template void walk_rows<DTAG_ACTIONS>(const Job&, Kind, uint32_t);

}  // namespace dtag::cuda
