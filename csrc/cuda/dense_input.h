// What dense tiles read: the weights of a head, and the observation's share of z_1 for a tile of rows.
#pragma once

#include "dense_kernel.h"
#include "memory.h"
#include "step.h"
#include "team.h"
#include "tile_words.h"
#include "wgmma.cuh"

namespace dtag::cuda {

constexpr int fragments = TileLayout::units / 16;  // of a layer: 16 columns each
constexpr int ring = 4;                            // of h_1, at a time: a slab's
static_assert(16 * ring == TileLayout::slab_units, "a turn of a loop");

// What a thread keeps. Its row where rows climb is one of the two that it has the sums of.
template <int actions>
struct TileThread {
  float sums[2][64];  // of z_2, halves of the columns: of every eight two, of two rows
  float back[3][32];  // of g_2 W_2, quarters of the columns; the last takes the first one's place
  float share[2][2][2][2], first[2][2][2 * actions];  // of a fragment's z_1 and the next, and their W_1a
  float top[2][2][4];  // -b_2 and w of a fragment and the next
  int late;             // see fetch_top
  uint32_t hidden[ring][4];       // h_1
  uint32_t slopes[fragments][4];  // g_2 = w * relu'(z_2)
  uint32_t passing;  // z_1 > 0, a bit each
  float action[2][actions];
  float q[2];
  float gradient[2][actions];
  // Of the row that it climbs for and four dimensions of the action:
  float own_q, own[4];  // the head's q and gradient
  float total[4];       // the ensemble's gradient
  float proposal[4], initial[4];
  float length;
};

// Where a thread is: it has the sums of row(0) and row(1), of the columns 2 pair() + {0, 1} of every eight,
// and climbs for row(own()).
struct TilePlace {
  int thread;
  DTAG_BOTH int pair() const { return thread % 4; }
  DTAG_BOTH int row(int which) const { return thread / 32 * 16 + thread % 32 / 4 + 8 * which; }
  DTAG_BOTH int own() const { return thread % 4 / 2; }
  DTAG_BOTH int dimension() const { return thread % 2 * 4; }
};

DTAG_BOTH TilePlace anew(const TilePlace& place) { return {anew(place.thread)}; }

// Group: the threads, see device_warpgroup.cuh.
template <int actions, typename Group>
class DenseInput {
 public:
  using Thread = TileThread<actions>;
  using Place = TilePlace;
  using At = TileLayout;

  DTAG_BOTH DenseInput(const Group& group, const Job& job, int head)
      : group_(group), job_(job), critic_(job.critic), head_(head) {}

  // Send for the weights that stay, and for those of the first numbers of the observation.
  DTAG_BOTH void start() {
    constexpr int first_bytes = At::first_bytes(actions), top_bytes = 16 * At::units / 2;
    constexpr int matrix_bytes = At::units / At::slab_units * At::slab;
    const int rows = observation_rows(critic_), staged_bytes = 4 * At::units * (rows < At::staged ? rows : At::staged);
    const float* const numbers = critic_.tile_numbers + head_ * (top_bytes + first_bytes) / 4;
    group_.expect(0, staged_bytes + top_bytes + first_bytes);
    group_.copy(0, At::staged_weights, critic_.tile_observation + head_ * rows * At::units, staged_bytes);
    group_.copy(0, At::top, numbers, top_bytes);
    group_.copy(0, At::first, numbers + top_bytes / 4, first_bytes);
    group_.expect(1, matrix_bytes);
    for (int slab = 0; slab < matrix_bytes; slab += At::slab)
      group_.copy(1, At::weights + slab, static_cast<const char*>(critic_.tile_weights) + head_ * matrix_bytes + slab,
                  At::slab);
  }

  // A tile: the observation's share of z_1.
  DTAG_BOTH void take(bool is_first) {
    group_.sync();  // all have done with the tile before
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      if (!is_first) send_for_observation_weights(at, 0);
      copies_commit();
      float bias[2];
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        const int unit = at.thread + At::threads * half;
        bias[half] = unit < width() ? critic_.first_bias[head_ * width() + unit] : 0.0f;
      }
      const bool has_head = at.thread < critic_.heads;
      const float output_bias = has_head ? critic_.output_bias[at.thread] : 0.0f;
      put_observation(at, 0);
      if (has_head) notes().output_bias[at.thread] = output_bias;
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        DTAG_UNROLLED
        for (int row = 0; row < At::rows; ++row) thread.sums[half][row] = bias[half];
      }
      copies_wait<0>();
    });
    if (is_first) group_.arrived(0);
    group_.sync();
    for (int first = 0;;) {
      group_.each(
          [&](Thread& thread, const Place& here) { add_observation(thread, anew(here), first); });
      group_.sync();
      first += At::staged;
      if (first >= critic_.observation_dim) break;
      group_.each([&](Thread&, const Place& here) {
        const Place at = anew(here);
        send_for_observation_weights(at, first);
        copies_commit();
        put_observation(at, first);
        copies_wait<0>();
      });
      group_.sync();
    }
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        float* const share = floats(At::share) + at.thread + At::threads * half;
        // No negative zero is left, nor will be in z_1.
        DTAG_UNROLLED
        for (int row = 0; row < At::rows; ++row)
          share[row * At::share_stride] = thread.sums[half][row] + 0.0f;
      }
      notes().failed[at.thread] = 0;
    });
    if (is_first) group_.arrived(1);
    group_.sync_for_tensor_cores();
  }

 protected:
  DTAG_BOTH int64_t first_row() const { return static_cast<int64_t>(tile_) * At::rows; }
  DTAG_BOTH float* floats(int at) const { return reinterpret_cast<float*>(group_.memory() + at); }
  DTAG_BOTH TileNotes& notes() const { return *reinterpret_cast<TileNotes*>(group_.memory() + At::notes); }
  DTAG_BOTH float* action_of(int row) const {
    return floats(At::actions) + row * At::most_actions;
  }

  Group group_;
  const Job& job_;
  const PackedCritic& critic_;
  const int head_;
  int tile_ = 0;

 private:
  DTAG_BOTH int width() const { return critic_.layout.width; }

  // Of W_1s the rows of some numbers of the observation, four units to a thread.
  DTAG_BOTH void send_for_observation_weights(const Place& at, int first) {
    constexpr int pieces = At::units / 4;
    const int unit = at.thread % pieces * 4, rows = observation_rows(critic_);
    const float* const from = critic_.tile_observation + head_ * rows * At::units + unit;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int row = at.thread / pieces; row < At::staged; row += At::threads / pieces) {
      const bool real = first + row < rows;
      copy_later(floats(At::staged_weights) + row * At::units + unit, from + (real ? (first + row) * At::units : 0),
                 real);
    }
  }

  // And those numbers, standardised: one of each fourth row to a thread. All are sent for at once.
  DTAG_BOTH void put_observation(const Place& at, int first) {
    constexpr int apart = At::threads / At::staged, count = At::rows / apart;
    const int i = at.thread % At::staged, k = first + i, row = at.thread / At::staged;
    const bool real = k < critic_.observation_dim;
    const int64_t left = real ? job_.rows - first_row() - row : 0;  // rows from the thread's first on
    const float* const from = job_.observations + (first_row() + row) * critic_.observation_dim + k;
    float x[count];
    DTAG_UNROLLED
    for (int n = 0; n < count; ++n)
      x[n] = n * apart < left ? from[n * apart * critic_.observation_dim] : 0.0f;
    const float mean = real ? critic_.mean[k] : 0.0f;
    const float per_std = real ? 1.0f / critic_.std[k] : 0.0f;
    DTAG_UNROLLED
    for (int n = 0; n < count; ++n)
      floats(At::observed)[(row + n * apart) * At::observed_stride + i] =
          n * apart < left ? (x[n] - mean) * per_std : 0.0f;
  }

  DTAG_BOTH void add_observation(Thread& thread, const Place& at, int first) {
    for (int k = 0; k < At::staged && first + k < critic_.observation_dim; k += 4) {
      float weights[2][4];
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const float* const from = floats(At::staged_weights) + (k + i) * At::units + at.thread;
        weights[0][i] = from[0];
        weights[1][i] = from[At::threads];
      }
      DTAG_UNROLLED
      for (int row = 0; row < At::rows; ++row) {
        float x[4];
        load_shared(floats(At::observed) + row * At::observed_stride + k, x);
        DTAG_UNROLLED
        for (int half = 0; half < 2; ++half) {
          DTAG_UNROLLED
          for (int i = 0; i < 4; ++i)
            thread.sums[half][row] = fmaf(x[i], weights[half][i], thread.sums[half][row]);
        }
      }
    }
  }
};

}  // namespace dtag::cuda
