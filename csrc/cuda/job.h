// What the CUDA kernel is given: a critic packed for it, options, a batch and where results go.
//
// Everything is passed by value to the kernel; pointers are to the device's memory (to the host's
// where tests run the kernel without a device). Sizes as in ../refine.h; P is the padded width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../refine.h"

#ifdef __CUDACC__
#define DTAG_BOTH __host__ __device__ __forceinline__
#define DTAG_UNROLLED _Pragma("unroll")
#define DTAG_INLINED __attribute__((always_inline))  // a lambda
#else
#define DTAG_BOTH inline
#define DTAG_UNROLLED
#define DTAG_INLINED
#endif

namespace dtag::cuda {

constexpr int warp_size = 32;
constexpr int most_actions = 32;   // one lane of a warp holds one dimension of the action
constexpr int most_threads = 256;  // of a row, in a block
constexpr int most_threads_wide = 768;      // where registers no longer hold all; a kernel of its own

// fp32; bf16: weight and transposed hold bfloat16; tf32x3: first maps are built by tensor cores, maps.h.
enum class Precision { fp32, bf16, tf32x3 };

constexpr int most_map_width = 512;  // P, with tf32x3

// The shapes there are kernels for. `actions` is the number of action dimensions that a kernel has
// registers for; unused ones are zeros. A thread holds four hidden units, or two where more dimensions
// leave registers for no more; of a lean kernel twice as many.
constexpr int kernel_actions[] = {2, 4, 6, 8, 12, 17, 24, 32};
DTAG_BOTH constexpr int units_per_thread(int actions) { return actions <= 8 ? 4 : 2; }
DTAG_BOTH constexpr int units_of_lean(int actions) { return 2 * units_per_thread(actions); }
// Whether of rows whose maps were built before, that wait in a queue, a multiprocessor holds half as many
// again as of the lean kernel's others, by threads with 168 registers: where that does for all they need.
DTAG_BOTH constexpr bool crowded_with_maps(int actions) { return actions <= 6; }
// Of a cluster: they build a row's map together, a thread half of the columns of a hidden unit.
DTAG_BOTH constexpr int blocks_of_cluster(int actions) { return 2 * units_per_thread(actions); }
// Hidden units that lie together in arrays with rows for each action dimension.
constexpr int group_units = 64;
// The same in maps that a kernel before the walk's builds.
constexpr int units_together = 16;
// From four units of a thread to four more. A warp's threads read four each at once, neighbours of their
// neighbours'.
constexpr int far_units = 4 * warp_size;
struct Layout {
  int actions;  // of the kernel, A or more
  int width;    // P, units_per_thread(actions) in each thread of whole warps
};

// Null, or why there is no kernel for the shape.
inline const char* lay_out(int action_dim, int heads, int widest, Precision precision,
                           Layout* layout) {
  if (action_dim > most_actions) return "it takes up to 32 action dimensions";
  if (precision == Precision::tf32x3 && widest > most_map_width)
    return "with precision tf32x3 hidden layers may have 512 units";
  for (const int actions : kernel_actions) {
    if (actions < action_dim) continue;
    const int units = units_per_thread(actions);
    const int threads = (widest + units * warp_size - 1) / (units * warp_size) * warp_size;
    if (static_cast<int64_t>(heads) * threads > most_threads_wide) break;
    *layout = {actions, threads * units};
    return nullptr;
  }
  return action_dim <= 8 ? "heads times hidden units, padded to multiples of 128, may be 3072"
                         : "with more than 8 action dimensions heads times hidden units, padded to "
                           "multiples of 64, may be 1536";
}

// Of kernels: what weight and transposed hold.
struct Fp32 {
  using Weight = float;
};
struct Bf16 {
  using Weight = uint16_t;
};

struct PackedCritic {
  int observation_dim = 0;
  int action_dim = 0;
  int heads = 0;
  int hidden_layers = 0;  // 1 or 2, of ReLU or LeakyReLU
  int first_units = 0;    // H_1
  int top_units = 0;      // H_2, or H_1 where there is no other
  float negative_slope = 0.0f;  // 0 for ReLU
  Precision precision = Precision::fp32;
  Layout layout = {};
  const float* mean = nullptr;                 // [S]
  const float* std = nullptr;                  // [S]
  const float* observation_weights = nullptr;  // [E, P / 64, S by fours, 64], W_1s^T
  const float* action_weights = nullptr;       // [E, P / 64, actions, 64], W_1a^T
  const float* first_bias = nullptr;           // [E, P]
  const void* weight = nullptr;                // [E, H_2, P], W_2; null with one layer
  const void* transposed = nullptr;            // [E, P, P], W_2^T; null with one layer
  const void* sliced = nullptr;                // [E, P / 32, P, 32], W_2^T; null with one layer
  // Of tf32x3 with two layers (maps.h), half floats scaled by powers of two, the large parts of numbers and
  // the small ones. A slot is eight of the columns 1 + A; what sums of column i are to be multiplied by is
  // unscale[e, i].
  const void* halves = nullptr;                // [E, P / columns, P / 64, 2, columns, 64], swizzled: W_2 by units
  const void* terms = nullptr;                 // [E, P / 16, slots, 8, 4, 2, 2, 2], W_1a
  const float* unscale = nullptr;              // [E, slots * 8]
  // Of what dense tiles take (dense_kernel.h): a head's parts of a block's shared memory, as they lie there.
  const void* tile_weights = nullptr;          // [E, 4, 256, 64], bfloat16, swizzled
  const float* tile_numbers = nullptr;         // [E, top, scales and first]
  const float* tile_observation = nullptr;     // [E, S by fours, 256], W_1s^T
  const float* second_bias = nullptr;          // [E, P]; null with one layer
  const float* output = nullptr;               // [E, P]
  const float* output_bias = nullptr;          // [E]
  const int32_t* finite = nullptr;             // [1], 0 if a weight or bias is NaN or infinite
};

// S, by fours.
DTAG_BOTH int observation_rows(const PackedCritic& critic) {
  return (critic.observation_dim + 3) / 4 * 4;
}

// Of a row, so many hidden units each.
DTAG_BOTH int threads_of(const PackedCritic& critic, int units) {
  return critic.heads * critic.layout.width / units;
}
// Floats of the observation's shares of z_1 and of the maps at a row's action: [E, P] and then
// [E, P / 16, 1 + actions, 16].
DTAG_BOTH int64_t floats_of_maps(const PackedCritic& critic) {
  return static_cast<int64_t>(2 + critic.layout.actions) * critic.heads * critic.layout.width;
}

inline bool is_wide(const PackedCritic& critic) {
  return threads_of(critic, units_per_thread(critic.layout.actions)) > most_threads;
}

struct Settings {
  int steps = 0;
  float step_size = 0.0f;
  Optimizer optimizer = Optimizer::sgd;
  Ensemble ensemble = Ensemble::min;
  float lcb_k = 1.0f;
  Select select = Select::best;
  Gradient gradient = Gradient::raw;
  float max_distance = -1.0f;  // negative: no ball
  float low[most_actions];  // infinite where there are no bounds
  float high[most_actions];
};

// Floats of what there is once and for every dimension of the action, on 16-byte boundaries.
DTAG_BOTH constexpr int term_stride(int actions) { return (1 + actions + 3) / 4 * 4; }

// The shared memory of one row's threads, by offsets in floats; in a cluster each block has all of it.
struct SharedLayout {
  // Floats of terms beyond which they are made in several goes.
  static constexpr int most_terms = 20480;
  static constexpr int listed_together = 8;  // capacity is a multiple of it

  // Of a cluster, 8 bytes each: what is on its way to the block, the map and a slice of W_2^T.
  static constexpr int map_mark = 0, slice_mark = 2;
  // Of a block that takes rows from a queue, an integer: the number that it drew. Clusters do not.
  static constexpr int drawn = 0;

  int threads_per_head;
  int warps_per_head;
  int heads_per_warp;  // the inverse times 2^16, rounded up: dividing takes a thread long
  int observation;  // [S by fours], standardised
  int share;        // [E, P], W_1s s + b_1
  int base;         // [E, P], z_1 at the base of the region, where threads have no room for it
  int sums;         // [2, E, warps, term_stride(actions)], sums of a warp: q, then the gradient
  int votes;        // [E, warps], integers: how many units change
  int capacity;     // of the lists that follow: how many rows of W_2^T
  int listed;       // [E, capacity + 16], integers: where the rows lie in the head's, in bytes
  int terms;        // [E, capacity, term_stride(actions)] and some more, their 1 + A coefficients
  int hidden;       // [E, P], of the full network: h_1
  int slope;        // [E, P], of the full network: w * act'(z_2)
  int map;          // [E, P / 64, 1 + actions, 64], where others than the units' threads build it
  int slice_groups; // of 32 units, of which a block of a cluster builds the map; 0: it has no slice
  int slice;        // [E, slice_groups, P, 32], of W_2^T, in its own precision
  int floats;       // of all

  // units: that a thread holds. has_slice: of a cluster, where there is room for it.
  SharedLayout(const PackedCritic& critic, int units, bool has_map, bool has_slice) {
    const Layout& layout = critic.layout;
    const int heads = critic.heads, stride = term_stride(layout.actions);
    threads_per_head = layout.width / units;
    warps_per_head = threads_per_head / warp_size;
    heads_per_warp = ((1 << 16) + warps_per_head - 1) / warps_per_head;
    const int all = heads * layout.width;
    capacity = most_terms / (heads * stride) / listed_together * listed_together;
    if (capacity > layout.width) capacity = layout.width;
    observation = 4;
    share = observation + observation_rows(critic);
    base = share + all;
    sums = base + all;
    votes = sums + 2 * heads * warps_per_head * stride;
    listed = (votes + heads * warps_per_head + 3) / 4 * 4;
    terms = listed + heads * (capacity + 2 * listed_together);
    // The full network is done with these before a list is made, and begins after it was used.
    hidden = terms;
    slope = hidden + all;
    const int of_terms = (heads * capacity + listed_together) * stride;
    map = terms + (of_terms > 2 * all ? of_terms : 2 * all);
    slice = map + (has_map ? (1 + layout.actions) * all : 0);
    slice_groups = has_slice && critic.hidden_layers == 2 ? (warps_per_head + 1) / 2 : 0;
    const int weights_of_float = critic.precision == Precision::bf16 ? 2 : 1;
    floats = slice + slice_groups * warp_size / weights_of_float * all;
  }
};

constexpr int64_t marked_row = -1;

struct Job {
  explicit Job(const PackedCritic& critic)
      : critic(critic), shared(critic, units_per_thread(critic.layout.actions), false, false) {}

  PackedCritic critic;
  SharedLayout shared;  // of the kernel that is launched
  Settings settings;
  bool dense = false;  // the full network at every step, no walk
  bool marked = false;  // only rows that dense tiles left, whose dense_steps are marked_row
  int64_t rows = 0;
  int64_t starts = 1;
  const float* observations = nullptr;  // [B, S], raw
  const float* actions = nullptr;       // [B, N, A]
  float* maps = nullptr;                // [B, floats_of_maps()], the first ones; null: not built before
  int32_t* queue = nullptr;             // [1], with maps: how many rows were drawn
  Result result;                        // as for every other kernel
};

// Of the job up to `most` rows, from `first` on.
inline Job part_of(const Job& job, int64_t first, int64_t most) {
  Job part = job;
  const int64_t actions = job.critic.action_dim, rows = job.rows - first;
  part.rows = rows < most ? rows : most;
  part.observations += first * job.critic.observation_dim;
  part.actions += first * job.starts * actions;
  const Result& all = job.result;
  part.result = {all.actions + first * actions, all.q + first,        all.q_initial + first,
                 all.best_step + first,         all.start + first,    all.distance + first,
                 all.flips + first,             all.dense_steps + first};
  return part;
}

}  // namespace dtag::cuda
