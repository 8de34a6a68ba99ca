// What dense tiles read: the weights of a head, and the observation's share of z_1 for a tile of rows.
#pragma once

#include "dense_kernel.h"
#include "memory.h"
#include "step.h"
#include "team.h"
#include "tile_words.h"
#include "wgmma.cuh"

namespace dtag::cuda {

// What a thread keeps.
struct TileThread {
  static constexpr int rows = 16, units = 4;  // whose share of z_1 it makes
  static constexpr int numbers = rows * units;
  static constexpr int fragments = numbers / 8;
  float made[rows][units];       // W_1s s + b_1
  float share[numbers];          // the same where z_1 needs it: of two rows two columns of every eight
  float sums[numbers];           // of z_2, but for b_2, likewise
  uint32_t layer[fragments][4];  // of g_2, of 16 columns each, likewise
  float back[2][numbers / 2];    // of the warpgroup's g_2 W_2, by turns of 64 columns, likewise
  uint32_t action[4];            // of two rows two dimensions each: in half floats, and what is left of them then
  uint32_t first[4];             // of W_1a what HalfFactors takes: of two eights of units, and what is left
  uint32_t masked[2][4];         // of back what passes, of 16 columns, in half floats, and what is left
  float z[2][4];                 // z_1 of two eights
  float gradient[2][4];          // of two rows two dimensions each, of large parts and of others; of all, in the first
  float q[2], own_q;             // of two rows; of row(own()) the warpgroup's part
  // Of two rows two dimensions each:
  float total[4];  // the ensemble's gradient
  float proposal[4], initial[4];
  float length[2];
};

// Of a product of 16 rows by so many numbers, half floats, and eight columns of these: a lane's part of either
// factor, pairs of numbers. Of the rows (lane / 4) + {0, 8} the numbers 2 (lane % 4) + {0, 1}, and of 16 those
// 8 on, in the same order; and the same numbers of column lane / 4.
template <int numbers>
struct HalfFactors {
  uint32_t left[numbers / 4], right[numbers / 8];
};

// Where a thread is. It has the numbers of row(0) and row(1), of the columns 2 pair() + {0, 1} of every eight of its
// warpgroup's half, and climbs for the same dimensions of these rows, as a thread of every warpgroup of the cluster
// does. The share of z_1 it makes of the rows first_row() to + 15 and the units first_unit() to + 3.
struct TilePlace {
  int thread;
  DTAG_BOTH int group() const { return over(TileLayout::group_threads); }
  DTAG_BOTH int in_group() const { return within(TileLayout::group_threads); }
  DTAG_BOTH int warp() const { return over(32); }
  DTAG_BOTH int lane() const { return within(32); }
  DTAG_BOTH int first_row() const { return warp() % (TileLayout::group_threads / 32) * 16; }
  DTAG_BOTH int first_unit() const { return group() * (TileLayout::units / TileLayout::groups) + lane() * 4; }
  DTAG_BOTH int pair() const { return within(4); }
  DTAG_BOTH int row(int which) const { return first_row() + within(32) / 4 + 8 * which; }
  DTAG_BOTH int own() const { return within(4) / 2; }
  DTAG_BOTH int dimension() const { return 2 * pair(); }

 private:
  // As the compiler does it at once with what is not negative.
  DTAG_BOTH int over(unsigned n) const { return static_cast<int>(static_cast<unsigned>(thread) / n); }
  DTAG_BOTH int within(unsigned n) const { return static_cast<int>(static_cast<unsigned>(thread) % n); }
};
static_assert(TileThread::units * 32 == TileLayout::units / TileLayout::groups, "a warp's lanes have a half");

DTAG_BOTH TilePlace anew(const TilePlace& place) { return TilePlace{anew(place.thread)}; }

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
    constexpr int matrix_bytes = At::units / At::slab_units * At::slab;
    const int rows = observation_rows(critic_), staged_bytes = 4 * At::units * (rows < At::staged ? rows : At::staged);
    group_.expect(0, staged_bytes + At::number_bytes);
    group_.copy(0, At::staged_weights, critic_.tile_observation + head_ * rows * At::units, staged_bytes);
    group_.copy(0, At::top, critic_.tile_numbers + head_ * (At::number_bytes / 4), At::number_bytes);
    group_.expect(1, matrix_bytes);
    for (int slab = 0; slab < matrix_bytes; slab += At::slab)
      group_.copy(1, At::weights + slab, static_cast<const char*>(critic_.tile_weights) + head_ * matrix_bytes + slab,
                  At::slab);
  }

  // W_2, which only the first multiplication waits for otherwise.
  DTAG_BOTH void wait_for_weights() const { group_.arrived(1); }

  // A tile: the observation's share of z_1.
  DTAG_BOTH void take(int tile, bool is_first) {
    group_.sync();  // all have done with the tile before
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      if (!is_first) send_for_observation_weights(at, 0);
      copies_commit();
      const bool has_head = at.thread < critic_.heads;
      const float output_bias = has_head ? critic_.output_bias[at.thread] : 0.0f;
      put_observation(at, tile, 0);
      if (has_head) notes().output_bias[at.thread] = output_bias;
      if (at.thread == 0) {
        notes().finite = *critic_.finite;
        notes().tile = tile;
      }
      const int unit = at.first_unit();
      float bias[4] = {};
      if (unit < width()) load(critic_.first_bias + head_ * width() + unit, bias);
      DTAG_UNROLLED
      for (int row = 0; row < Thread::rows; ++row) {
        DTAG_UNROLLED
        for (int u = 0; u < 4; ++u) thread.made[row][u] = bias[u];
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
        put_observation(at, tile, first);
        copies_wait<0>();
      });
      group_.sync();
    }
    transpose();
    group_.each([&](Thread&, const Place& here) {
      const Place at = anew(here);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) notes().failed[at.thread][r] = 0;
    });
    group_.sync();  // what is transposed lies where climbing keeps its numbers
  }

 protected:
  // Of a tile, or of the one that was taken.
  DTAG_BOTH static int64_t first_row(int tile) { return static_cast<int64_t>(tile) * At::rows; }
  DTAG_BOTH int64_t first_row() const { return first_row(notes().tile); }
  DTAG_BOTH float* floats(int at) const { return reinterpret_cast<float*>(group_.memory() + at); }
  DTAG_BOTH TileNotes& notes() const { return *reinterpret_cast<TileNotes*>(group_.memory() + At::notes); }
  DTAG_BOTH const TileScales& scales() const {
    return *reinterpret_cast<const TileScales*>(group_.memory() + At::scales);
  }

  Group group_;
  const Job& job_;
  const PackedCritic& critic_;
  const int head_;

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
  DTAG_BOTH void put_observation(const Place& at, int tile, int first) {
    constexpr int apart = At::threads / At::staged, count = At::rows / apart;
    const int i = at.thread % At::staged, k = first + i, row = at.thread / At::staged;
    const bool real = k < critic_.observation_dim;
    const int64_t left = real ? job_.rows - first_row(tile) - row : 0;  // rows from the thread's first on
    const float* const from = job_.observations + (first_row(tile) + row) * critic_.observation_dim + k;
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
          for (int u = 0; u < 4; ++u) thread.made[row][u] = fmaf(x[i], weights[i][u], thread.made[row][u]);
        }
      }
    }
  }

  // The share of z_1 from the threads that made it to those that need it, within a warp: its rows by eights.
  DTAG_BOTH void transpose() {
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r) {
      group_.each([&](Thread& thread, const Place& here) {
        const Place at = anew(here);
        DTAG_UNROLLED
        for (int row = 0; row < 8; ++row)
          store_shared(transposed(at, row) + at.lane() * Thread::units, thread.made[8 * r + row]);
      });
      group_.sync_warps();
      group_.each([&](Thread& thread, const Place& here) {
        const Place at = anew(here);
        const float scale = scales().of_share;
        DTAG_UNROLLED
        for (int j = 0; j < Thread::numbers / 4; ++j) {
          float pair[2];
          load_two(transposed(at, at.lane() / 4) + 8 * j + 2 * at.pair(), pair);
          // No negative zero is left, nor will be in z_1.
          DTAG_UNROLLED
          for (int c = 0; c < 2; ++c) thread.share[4 * j + 2 * r + c] = fmaf(pair[c], scale, 0.0f);
        }
      });
      group_.sync_warps();
    }
  }
  DTAG_BOTH float* transposed(const Place& at, int row) const {
    return floats(At::transposed) + (at.warp() * 8 + row) * At::transposed_stride;
  }
};

}  // namespace dtag::cuda
