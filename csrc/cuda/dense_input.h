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
constexpr int ring = 4;                            // of h_1, at a time

// What a thread keeps. Its row where rows climb is one of the two that it has the sums of.
template <int actions>
struct TileThread {
  float sums[2][64];  // of z_2, halves of the columns: of every eight two, of two rows
  float back[3][32];  // of g_2 W_2, quarters of the columns; the last takes the first one's place
  uint32_t hidden[ring][4];       // h_1
  uint32_t slopes[fragments][4];  // g_2 = w * relu'(z_2)
  uint32_t passing;  // z_1 > 0, a bit each
  float action[2][actions];
  float q[2];
  int late[2];  // see second_layer
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

  // The weights that stay, but for W_2, which take() sends for with the first tile.
  DTAG_BOTH void start() {
    group_.each([&](Thread&, const Place& at) {
      if (at.thread < critic_.heads) notes().output_bias[at.thread] = critic_.output_bias[at.thread];
      put_weights(at.thread);
    });
  }

  // A tile: the observation's share of z_1.
  DTAG_BOTH void take(int tile, bool is_first) {
    tile_ = tile;
    group_.sync();  // all have done with the tile before
    group_.each([&](Thread& thread, const Place& here) {
      const Place at = anew(here);
      send_for_observation_weights(at, 0);
      copies_commit();
      if (is_first) send_for_matrix(at);
      copies_commit();
      put_observation(at, 0);
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        const int unit = at.thread + At::threads * half;
        const float bias = unit < width() ? critic_.first_bias[head_ * width() + unit] : 0.0f;
        DTAG_UNROLLED
        for (int row = 0; row < At::rows; ++row) thread.sums[half][row] = bias;
      }
      copies_wait<1>();
    });
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
      copies_wait<0>();
    });
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

  // Of two neighbouring units, whose arrays are padded to an even width.
  DTAG_BOTH void put_weights(int pair) {
    const int unit = 2 * pair;
    const bool real = unit < width();
    float* const first = floats(At::first) + pair * At::first_stride(actions);
    float* const top = floats(At::top) + 4 * pair;
    DTAG_UNROLLED
    for (int i = 0; i < 2; ++i) {
      const int group = (head_ * width() + unit) / group_units * critic_.layout.actions;
      const float* const from = critic_.action_weights + group * group_units + unit % group_units + i;
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a)
        first[2 * a + i] = real && a < critic_.layout.actions ? from[a * group_units] : 0.0f;
      const int at = head_ * width() + unit + i;
      top[i] = 0.0f - (real ? critic_.second_bias[at] : 0.0f);  // never a negative zero
      top[2 + i] = real ? critic_.output[at] : 0.0f;
    }
  }

  // W_2 of the head: zeros where it has no units. Eight numbers in a row to a thread.
  DTAG_BOTH void send_for_matrix(const Place& at) {
    constexpr int pieces = At::units / 8;
    const int column = at.thread % pieces * 8;
    const auto* const from = static_cast<const uint16_t*>(critic_.weight) +
                             head_ * critic_.top_units * width() + (column < width() ? column : 0);
    char* const to = group_.memory() + At::weights + column / At::slab_units * At::slab;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int row = at.thread / pieces; row < At::units; row += At::threads / pieces) {
      const bool real = row < critic_.top_units && column < width();
      copy_later(to + swizzled(row * 128 + column % At::slab_units * 2), from + (real ? row * width() : 0),
                 real);
    }
  }

  // Of W_1s the rows of some numbers of the observation, four units to a thread.
  DTAG_BOTH void send_for_observation_weights(const Place& at, int first) {
    const int thread = at.thread;
    constexpr int pieces = At::units / 4;
    const int unit = thread % pieces * 4, rows = observation_rows(critic_) - first;
    const int real_unit = head_ * width() + (unit < width() ? unit : 0);
    const float* const from =
        critic_.observation_weights + real_unit % group_units +
        (real_unit / group_units * observation_rows(critic_) + first) * group_units;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int row = thread / pieces; row < At::staged; row += At::threads / pieces) {
      const bool real = row < rows && unit < width();
      copy_later(floats(At::staged_weights) + row * At::units + unit, from + (real ? row * group_units : 0),
                 real);
    }
  }

  // And those numbers, standardised: one of each fourth row to a thread.
  DTAG_BOTH void put_observation(const Place& at, int first) {
    const int thread = at.thread, i = thread % At::staged, k = first + i;
    const bool real = k < critic_.observation_dim;
    const float mean = real ? critic_.mean[k] : 0.0f;
    const float per_std = real ? 1.0f / critic_.std[k] : 0.0f;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int row = thread / At::staged; row < At::rows; row += At::threads / At::staged) {
      float x = 0.0f;
      if (real && first_row() + row < job_.rows)
        x = (job_.observations[(first_row() + row) * critic_.observation_dim + k] - mean) * per_std;
      floats(At::observed)[row * At::observed_stride + i] = x;
    }
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
