// Whether the threads of the kernels of csrc/cuda wait for each other wherever they have to: as fibers (fibers.h), in
// orders drawn by lot, they make bit for bit what loops make. Built with -fsanitize=thread it is seen besides where
// two reach for the same memory and nothing orders them, or would not in another turn.
#include <cstdio>
#include <cstdlib>

#include "fiber_maps.h"
#include "fiber_team.h"
#include "fiber_warpgroup.h"
#include "host_maps.h"
#include "host_team.h"
#include "host_warpgroup.h"
#include "random_job.h"

namespace dtag::cuda {
namespace {

int cases = 0;

void expect(bool so, const char* name, const char* otherwise) {
  if (so) return;
  std::printf("%s: %s\n", name, otherwise);
  std::exit(1);
}

// crosses: whether rows are to cross from region to region.
template <typename Loops, typename Threads>
void compare(const char* name, Batch& batch, bool crosses, Loops loops, Threads threads) {
  batch.poison();
  loops(batch.job);
  const auto expected = batch.written();
  batch.poison();
  threads(batch.job);
  expect(batch.written() == expected, name, "fibers made something else than loops");
  expect(batch.crossed() == crosses && !batch.marked(), name, "rows took another way than they are to");
  ++cases;
}

constexpr int64_t blocks = 2;  // or clusters

template <int actions, int units, int blocks_of_row, bool roomy, bool queued, typename Precision>
void walk(const char* name, const PackedCritic& critic, Batch& batch) {
  constexpr bool crowded = queued && crowded_with_maps(actions), apart = blocks_of_row > 1;
  const auto layout = [&](Job& job, int64_t index) {
    // The first has room for a slice of W_2^T, the other has not.
    job.shared = SharedLayout(critic, units, apart, apart && index == 0);
  };
  compare(
      name, batch, !batch.job.dense,
      [&](Job job) {
        for (int64_t index = 0; index < blocks; ++index) {
          layout(job, index);
          HostBlock<actions, units, blocks_of_row, roomy, queued, crowded, Precision> block(job, index, blocks, 0);
          refine_rows<actions, blocks_of_row, Precision>(block, job);
        }
      },
      [&](Job job) {
        for (int64_t index = 0; index < blocks; ++index) {
          layout(job, index);
          FiberBlock<actions, units, blocks_of_row, roomy, queued, crowded, Precision>::run(job, index, blocks, 1);
        }
      });
}

void change(Settings& settings, int options) {
  settings.steps = 3;
  settings.step_size = 0.3f;
  if (options == 1) {
    settings.optimizer = Optimizer::adam;
    settings.ensemble = Ensemble::lcb;
    settings.gradient = Gradient::unit;
    settings.max_distance = 0.5f;
  }
  if (options == 2) {
    settings.ensemble = Ensemble::mean;
    settings.select = Select::last;
    settings.step_size = 3.0f;  // across many regions
  }
}

template <int actions, typename Precision>
void walks(const PackedCritic& critic, int starts) {
  constexpr int units = units_per_thread(actions), lean = units_of_lean(actions);
  for (int options = 0; options < 3; ++options) {
    Batch batch(critic, 3, starts, 7);
    change(batch.job.settings, options);
    walk<actions, units, 1, true, false, Precision>("row", critic, batch);
    walk<actions, lean, 1, false, false, Precision>("lean", critic, batch);
    walk<actions, units, blocks_of_cluster(actions), true, false, Precision>("cluster", critic, batch);
    if (options > 0) continue;
    batch.job.dense = true;
    walk<actions, units, 1, true, false, Precision>("row, dense", critic, batch);
    walk<actions, units, blocks_of_cluster(actions), true, false, Precision>("cluster, dense", critic, batch);
  }
}

// The maps, and the walk that takes them from a queue.
template <int actions, int columns, int units>
void maps(const PackedCritic& critic, int rows, int groups, int steps) {
  Batch batch(critic, rows, 1, 3);
  change(batch.job.settings, 0);
  batch.job.settings.steps = steps;
  int had = groups;
  const MapsLayout at = MapsLayout::within(227 << 10, critic, &had);
  const int kinds = critic.heads * critic.layout.width / columns;
  constexpr int lean = units_of_lean(actions);
  constexpr bool crowded = crowded_with_maps(actions);
  using Loops = HostBlock<actions, lean, 1, false, true, crowded, Fp32>;
  using Threads = FiberBlock<actions, lean, 1, false, true, crowded, Fp32>;
  const auto layout = [&](Job& job) { job.shared = SharedLayout(critic, lean, false, false); };
  compare(
      "maps and a queue", batch, steps > 0,
      [&](Job job) {
        layout(job);
        for (int kind = 0; kind < kinds; ++kind)
          for (int index = 0; index < blocks; ++index) {
            HostMapBlock<columns, units> block(job, at, {kind, index, blocks, had});
            build_maps<columns>(block, job, at);
          }
        for (int64_t index = 0; index < blocks; ++index) {
          Loops block(job, index, blocks, 0);
          refine_rows<actions, 1, Fp32>(block, job);
        }
      },
      [&](Job job) {
        layout(job);
        for (int kind = 0; kind < kinds; ++kind)
          for (int index = 0; index < blocks; ++index)
            FiberMapBlock<columns, units>::run(job, at, had, kind, index, blocks, 5);
        for (int64_t index = 0; index < blocks; ++index) Threads::run(job, index, blocks, 6);
      });
}

template <int heads>
void tiles(const Sizes& sizes, int rows, int starts) {
  const Packed packed(sizes, Precision::bf16, 4);
  for (int options = 0; options < 2; ++options) {
    Batch batch(packed.critic, rows, starts, 9);
    change(batch.job.settings, options);
    batch.job.settings.steps = 1;  // there are other tiles and starting points
    compare(
        "tiles", batch, false,
        [](const Job& job) {
          HostCluster<heads> cluster(job, 0, 1, 0);
          refine_tiles(cluster, job);
        },
        [](const Job& job) { FiberCluster<heads>::run(job, 0, 1, 8); });
  }
}

void run() {
  const Packed plain({5, 6, 2, 250, 2}, Precision::fp32, 1), small({40, 12, 1, 128, 2}, Precision::bf16, 2);
  walks<6, Fp32>(plain.critic, 2);
  walks<12, Bf16>(small.critic, 1);
  // All units' rows are listed, in several goes.
  const Packed wide({5, 4, 6, 500, 2, 0.1f}, Precision::bf16, 5);
  Batch few(wide.critic, 3, 1, 5);
  change(few.job.settings, 2);
  walk<4, 4, 1, false, false, Bf16>("wide", wide.critic, few);
  const Packed halves({40, 6, 1, 250, 2}, Precision::tf32x3, 3);
  maps<6, 128, 8>(halves.critic, 40, 2, 3);
  maps<6, 128, 8>(halves.critic, 3, 1, 0);
  tiles<1>({40, 3, 1, 200, 2}, 64, 1);
  tiles<2>({5, 6, 2, 250, 2}, 70, 2);
  std::printf("%d cases\n", cases);
}

}  // namespace
}  // namespace dtag::cuda

int main() { dtag::cuda::run(); }
