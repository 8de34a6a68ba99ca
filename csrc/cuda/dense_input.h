// What dense tiles read: the weights of a head, and the observation's share of z_1 for a tile of rows.
#pragma once

#include "dense_kernel.h"
#include "memory.h"
#include "step.h"
#include "team.h"
#include "tile_words.h"
#include "wgmma.cuh"

namespace dtag::cuda {

// What a thread keeps. Its row where rows climb is one of the two that it has sums of.
struct TileThread {
  static constexpr int rows = 16, units = 4;  // whose z_1 it makes
  static constexpr int numbers = rows * units;
  static constexpr int fragments = numbers / 8;
  float share[rows][units];  // W_1s s + b_1
  float sums[numbers];       // of z_2, but for b_2: of two rows two columns of every eight
  float back[numbers];       // of g_2 W_2, likewise
  uint32_t layer[fragments][4];    // of h_1 or g_2, of 16 columns each, likewise
  uint32_t passing[numbers / 32];  // z_1 > 0, a bit each, likewise
  float q[2];
  // Of two rows two dimensions each, by every second eight and as add_product() leaves it; of all, in the first.
  float gradient[2][3][4];
  float own_q;              // the warpgroup's part of the q of the row that it climbs for
  // Of that row and four dimensions of the action:
  float total[4];  // the ensemble's gradient
  float proposal[4], initial[4];
  float length;
};

// Of a product of 16 rows by eight numbers, and eight columns of these: a lane's part of either factor, of the
// rows (lane / 4) + {0, 8} number lane % 4 and number lane % 4 + 4, and the same two of column lane / 4.
struct SmallFactors {
  float left[4], right[2];
};

// Where a thread is. It makes z_1 of the rows first_row() to + 15 and the units first_unit() to + 3; it has the sums
// of row(0) and row(1), of the columns 2 pair() + {0, 1} of every eight of its warpgroup's half, and climbs for
// row(own()), as a thread of every warpgroup of the cluster does.
struct TilePlace {
  int thread;
  DTAG_BOTH int group() const { return thread / TileLayout::group_threads; }
  DTAG_BOTH int in_group() const { return thread % TileLayout::group_threads; }
  DTAG_BOTH int lane() const { return thread % 32; }
  DTAG_BOTH int first_row() const { return in_group() / 32 * 16; }
  DTAG_BOTH int first_unit() const { return group() * (TileLayout::units / TileLayout::groups) + lane() * 4; }
  DTAG_BOTH int pair() const { return thread % 4; }
  DTAG_BOTH int column() const { return lane() / 4; }  // of an eight, as a factor
  DTAG_BOTH int row(int which) const { return first_row() + lane() / 4 + 8 * which; }
  DTAG_BOTH int own() const { return thread % 4 / 2; }
  DTAG_BOTH int dimension() const { return thread % 2 * 4; }
};
static_assert(TileThread::units * 32 == TileLayout::units / TileLayout::groups, "a warp's lanes have a half");

DTAG_BOTH TilePlace anew(const TilePlace& place) { return {anew(place.thread)}; }

// Group: the threads, see device_warpgroup.cuh.
template <typename Group>
class DenseInput {
 public:
  using Thread = TileThread;
  using Place = TilePlace;
  using At = TileLayout;

  DTAG_BOTH DenseInput(const Group& group, const Job& job, int head)
      : group_(group), job_(job), critic_(job.critic), head_(head) {}

  // Send for the weights that stay, and for those of the first numbers of the observation.
  DTAG_BOTH void start() {
    constexpr int top_bytes = 16 * At::units / 2;
    constexpr int matrix_bytes = At::units / At::slab_units * At::slab;
    const int rows = observation_rows(critic_), staged_bytes = 4 * At::units * (rows < At::staged ? rows : At::staged);
    const float* const numbers = critic_.tile_numbers + head_ * (top_bytes + At::first_bytes) / 4;
    group_.expect(0, staged_bytes + top_bytes + At::first_bytes);
    group_.copy(0, At::staged_weights, critic_.tile_observation + head_ * rows * At::units, staged_bytes);
    group_.copy(0, At::top, numbers, top_bytes);
    group_.copy(0, At::first, numbers + top_bytes / 4, At::first_bytes);
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
      const bool has_head = at.thread < critic_.heads;
      const float output_bias = has_head ? critic_.output_bias[at.thread] : 0.0f;
      put_observation(at, 0);
      if (has_head) notes().output_bias[at.thread] = output_bias;
      if (at.thread == 0) notes().finite = *critic_.finite;
      const int unit = at.first_unit();
      float bias[4] = {};
      if (unit < width()) load(critic_.first_bias + head_ * width() + unit, bias);
      DTAG_UNROLLED
      for (int row = 0; row < Thread::rows; ++row) {
        DTAG_UNROLLED
        for (int u = 0; u < 4; ++u) thread.share[row][u] = bias[u];
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
      // No negative zero is left, nor will be in z_1.
      DTAG_UNROLLED
      for (int row = 0; row < Thread::rows; ++row) {
        DTAG_UNROLLED
        for (float& number : thread.share[row]) number += 0.0f;
      }
      notes().failed[anew(here).thread] = 0;
    });
    if (is_first) group_.arrived(1);
  }

 protected:
  DTAG_BOTH int64_t first_row() const { return static_cast<int64_t>(anew(tile_)) * At::rows; }
  DTAG_BOTH float* floats(int at) const { return reinterpret_cast<float*>(group_.memory() + at); }
  DTAG_BOTH TileNotes& notes() const { return *reinterpret_cast<TileNotes*>(group_.memory() + At::notes); }
  // A row's, by a thread's warpgroup.
  DTAG_BOTH float* action_of(const Place& at, int row) const {
    return floats(At::actions) + (at.group() * At::rows + row) * At::most_actions;
  }

  // W_1a of an eight of the units: [8, 8].
  DTAG_BOTH float* first_of(int eight) const { return floats(At::first) + eight * At::first_stride; }

  Group group_;
  const Job& job_;
  const PackedCritic& critic_;
  const int head_;
  int tile_ = 0;

 private:
  DTAG_BOTH int width() const { return critic_.layout.width; }

  // Of W_1s what some numbers of the observation are multiplied by.
  DTAG_BOTH void send_for_observation_weights(const Place& at, int first) {
    const int rows = observation_rows(critic_), left = rows - first < At::staged ? rows - first : At::staged;
    const float* const from = critic_.tile_observation + (head_ * rows + first) * At::units;
    for (int i = 4 * at.thread; i < left * At::units; i += 4 * At::threads)
      copy_later(floats(At::staged_weights) + i, from + i);
  }

  // And those numbers, standardised: one of each eighth row to a thread. All are sent for at once.
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
      float weights[4][4];
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i)
        load_shared(floats(At::staged_weights) + (k + i) * At::units + at.first_unit(), weights[i]);
      DTAG_UNROLLED
      for (int row = 0; row < Thread::rows; ++row) {
        float x[4];
        load_shared(floats(At::observed) + (at.first_row() + row) * At::observed_stride + k, x);
        DTAG_UNROLLED
        for (int i = 0; i < 4; ++i) {
          DTAG_UNROLLED
          for (int u = 0; u < 4; ++u) thread.share[row][u] = fmaf(x[i], weights[i][u], thread.share[row][u]);
        }
      }
    }
  }
};

}  // namespace dtag::cuda
