// One head for a tile of rows, by a warpgroup; what for is said in dense_tiles.h.
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

// Where a thread is: it has the sums of row(0) and row(1), of the columns 2 pair() + {0, 1} of every eight, and
// climbs for row(own()).
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
class DenseNetwork {
 public:
  using Thread = TileThread<actions>;
  using Place = TilePlace;
  using At = TileLayout;

  DTAG_BOTH DenseNetwork(const Group& group, const Job& job, int head)
      : group_(group), job_(job), critic_(job.critic), head_(head) {}

  // The weights that stay, but for W_2, which take() sends for with the first tile.
  DTAG_BOTH void start() {
    group_.each([&](Thread&, const Place& at) {
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

  // The sums of z_2 for each of a thread's rows, at their actions. They are there after wait.
  DTAG_BOTH void forward() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        DTAG_UNROLLED
        for (int a = 0; a < actions; a += 2) load_two(action_of(at.row(r)) + a, thread.action[r] + a);
      }
    });
    DTAG_UNROLLED
    for (int k = 0; k < fragments; ++k) {
      group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { first_layer(thread, at, k); });
      group_.fence();
      multiply_hidden(0, k);
      multiply_hidden(1, k);
      group_.commit();
      if (k + 1 < ring) continue;
      // A few of them are enough, and take fewer registers.
      group_.template wait<ring - 1>(
          [k](Thread& thread) -> auto& { return thread.hidden[(k + 1) % ring]; });
    }
    group_.template wait<0>([](Thread& thread) -> auto& { return thread.sums[0]; });
    group_.keep([](Thread& thread) -> auto& { return thread.sums[1]; });
  }

  // The rows' q alone, a thread's part of it.
  DTAG_BOTH void evaluate_q() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      clear(thread);
      DTAG_UNROLLED
      for (int k = 0; k < fragments; ++k) second_layer(thread, at, k);
    });
  }

  // And the gradient, by quarters of the columns of W_2: the next one's sums are made meanwhile.
  DTAG_BOTH void evaluate_gradient() {
    constexpr int half = fragments / 2;
    group_.forget();
    group_.each([&](Thread& thread, const Place&) DTAG_INLINED { clear(thread); });
    DTAG_UNROLLED
    for (int k = 0; k < fragments; ++k) {
      group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at, k); });
      group_.fence();
      multiply_slopes(0, k, k > 0);
      if (k >= half) multiply_slopes(1, k, k > half);  // there are registers for it now
    }
    group_.commit();
    DTAG_UNROLLED
    for (int k = 0; k < half; ++k) multiply_slopes(1, k, true);
    group_.commit();
    group_.forget();
    DTAG_UNROLLED
    for (int quarter = 2; quarter < 4; ++quarter) {
      wait_for<1>(quarter - 2);
      group_.fence();
      DTAG_UNROLLED
      for (int k = 0; k < fragments; k += 2) {
        multiply_slopes(quarter, k, k > 0);
        multiply_slopes(quarter, k + 1, true);
        group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
          back(thread, at, quarter - 2, k / 2);
        });
      }
      group_.commit();
    }
    wait_for<1>(2);
    back_all(2);
    wait_for<0>(3);
    DTAG_UNROLLED
    for (int k = 0; k < fragments; ++k)
      group_.keep([k](Thread& thread) -> auto& { return thread.slopes[k]; });
    back_all(3);
  }

  // Over the four threads of a row: q to those that climb for it, the gradient by dimensions.
  DTAG_BOTH void sum_up() {
    group_.template exchange<1 + actions>(
        2,
        [](Thread& thread, const Place& at, float(&give)[1 + actions]) {
          const int other = 1 - at.own();
          give[0] = other ? thread.q[1] : thread.q[0];
          DTAG_UNROLLED
          for (int a = 0; a < actions; ++a)
            give[1 + a] = other ? thread.gradient[1][a] : thread.gradient[0][a];
        },
        [](Thread& thread, const Place& at, const float(&got)[1 + actions]) {
          const int own = at.own();
          thread.q[0] = (own ? thread.q[1] : thread.q[0]) + got[0];
          DTAG_UNROLLED
          for (int a = 0; a < actions; ++a)
            thread.gradient[0][a] =
                (own ? thread.gradient[1][a] : thread.gradient[0][a]) + got[1 + a];
        });
    const auto dimension = [](const Thread& thread, int a) {
      return a < actions ? thread.gradient[0][a < actions ? a : 0] : 0.0f;
    };
    group_.template exchange<5>(
        1,
        [&](Thread& thread, const Place& at, float(&give)[5]) {
          give[4] = thread.q[0];
          DTAG_UNROLLED
          for (int i = 0; i < 4; ++i)
            give[i] = at.dimension() ? dimension(thread, i) : dimension(thread, 4 + i);
        },
        [&](Thread& thread, const Place& at, const float(&got)[5]) {
          thread.own_q = thread.q[0] + got[4];
          DTAG_UNROLLED
          for (int i = 0; i < 4; ++i)
            thread.own[i] =
                (at.dimension() ? dimension(thread, 4 + i) : dimension(thread, i)) + got[i];
        });
  }

  Group group_;
  const Job& job_;
  const PackedCritic& critic_;
  const int head_;
  int tile_ = 0;

 private:
  DTAG_BOTH int width() const { return critic_.layout.width; }

  DTAG_BOTH static void load_two(const float* from, float* into) {
    float two[2];
    load_shared(from, two);
    into[0] = two[0], into[1] = two[1];
  }

  // ---- weights and observations ----

  // Of two neighbouring units, whose arrays are padded to an even width.
  DTAG_BOTH void put_weights(int pair) {
    const int unit = 2 * pair;
    const bool real = unit < width();
    float* const first = floats(At::first) + pair * At::first_stride(actions);
    float* const top = floats(At::top) + 4 * pair;
    DTAG_UNROLLED
    for (int i = 0; i < 2; ++i) {
      const float* const from =
          critic_.action_weights +
          (head_ * width() + unit) / group_units * critic_.layout.actions * group_units + unit % group_units + i;
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
    const float* const from =
        critic_.observation_weights + (unit < width() ? unit % group_units : 0) +
        ((head_ * width() + (unit < width() ? unit : 0)) / group_units * observation_rows(critic_) + first) *
            group_units;
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
    const float mean = real ? critic_.mean[k] : 0.0f, per_std = real ? 1.0f / critic_.std[k] : 0.0f;
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

  // ---- the layers ----

  DTAG_BOTH uint32_t& passing_of(const Place& at, int quarter) const {
    return reinterpret_cast<uint32_t*>(group_.memory() + At::passing)[quarter * At::threads + at.thread];
  }

  // Of 16 columns of W_2 from 16 k on, the rows of a half of its units.
  DTAG_BOTH void multiply_hidden(int half, int k) {
    const uint32_t at = At::weights + k / 4 * At::slab + half * (At::units / 2) * 128 + k % 4 * 32;
    group_.template multiply<false>(
        k > 0, [half](Thread& thread) -> auto& { return thread.sums[half]; },
        [k](Thread& thread) -> auto& { return thread.hidden[k % ring]; },
        wgmma_tile(group_.address(), 1024) + (at >> 4));
  }
  // Of 16 rows of W_2 from 16 k on, a quarter of the columns: a slab.
  DTAG_BOTH void multiply_slopes(int quarter, int k, bool onto) {
    const uint32_t at = At::weights + quarter * At::slab + k * 16 * 128;
    group_.template multiply<true>(
        onto, [quarter](Thread& thread) -> auto& { return thread.back[quarter % 3]; },
        [k](Thread& thread) -> auto& { return thread.slopes[k]; },
        wgmma_tile(group_.address(), 1024) + (at >> 4));
  }
  template <int pending>
  DTAG_BOTH void wait_for(int quarter) {
    group_.template wait<pending>(
        [quarter](Thread& thread) -> auto& { return thread.back[quarter % 3]; });
  }
  DTAG_BOTH void back_all(int quarter) {
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      DTAG_UNROLLED
      for (int i = 0; i < 8; ++i) back(thread, at, quarter, i);
    });
  }

  DTAG_BOTH static void clear(Thread& thread) {
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r) {
      thread.q[r] = 0.0f;
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) thread.gradient[r][a] = 0.0f;
    }
  }

  // W_1a of a thread's two columns of the eight.
  DTAG_BOTH void load_first(const Place& at, int eight, float (&w)[2 * actions]) const {
    load_shared(floats(At::first) + (4 * eight + at.pair()) * At::first_stride(actions), w);
  }

  DTAG_BOTH void first_layer(Thread& thread, const Place& at, int k) {
    DTAG_UNROLLED
    for (int j = 0; j < 2; ++j) {
      const int eight = 2 * k + j;
      float w[2 * actions];
      load_first(at, eight, w);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        float z[2];
        load_shared(floats(At::share) + at.row(r) * At::share_stride + 8 * eight + 2 * at.pair(), z);
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a) {
          z[0] = fmaf(w[2 * a], thread.action[r][a], z[0]);
          z[1] = fmaf(w[2 * a + 1], thread.action[r][a], z[1]);
        }
        const uint32_t pair = positive_pair_of(z[0], z[1]);
        thread.hidden[k % ring][2 * j + r] = pair;
        // Sixteen pairs to a word: of pair i the bits i and 16 + i.
        const bool begins = k % 4 == 0 && j == 0 && r == 0;
        thread.passing = (begins ? 0 : thread.passing >> 1) | nonzero_halves(pair);
      }
    }
    if (k % 4 == 3) passing_of(at, k / 4) = thread.passing;
  }

  // Of a fragment's columns: q and what is multiplied next.
  DTAG_BOTH void second_layer(Thread& thread, const Place& at, int k) {
    DTAG_UNROLLED
    for (int j = 0; j < 2; ++j) {
      const int eight = 2 * k + j;
      float top[4];
      load_shared(floats(At::top) + 4 * (4 * eight + at.pair()) + (k < 2 ? 0 : thread.late[k % 2]), top);
      const uint32_t weights = pair_of(top[2], top[3]);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        // -relu(z_2): its sign is set where z_2 passes.
        const float* const sums = thread.sums[eight / 16] + 4 * (eight % 16) + 2 * r;
        const float first = negative_part(top[0] - sums[0]), second = negative_part(top[1] - sums[1]);
        thread.slopes[k][2 * j + r] = weights & negative_halves(first, second);
        thread.q[r] = fmaf(-top[2], first, thread.q[r]);
        thread.q[r] = fmaf(-top[3], second, thread.q[r]);
      }
    }    // The weights of the fragment after the next are made to wait for q: else the compiler reads all of them at
    // once, and is short of registers. No sum is a signalling NaN, which it does not know.
    constexpr uint32_t signalling = 0x7fa00000u;
    thread.late[k % 2] = word_of(thread.q[0] + thread.q[1]) == signalling ? 4 : 0;
  }

  // Of eight columns of a quarter: the gradient.
  DTAG_BOTH void back(Thread& thread, const Place& at, int quarter, int i) {
    const int eight = 8 * quarter + i;
    const uint32_t passing = passing_of(at, quarter);
    float w[2 * actions];
    load_first(at, eight, w);
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r) {
      const int bit = 2 * i + r;
      DTAG_UNROLLED
      for (int c = 0; c < 2; ++c) {
        const bool passes = passing >> (bit + 16 * c) & 1;
        const float g = passes ? thread.back[quarter % 3][4 * i + 2 * r + c] : 0.0f;
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a)
          thread.gradient[r][a] = fmaf(g, w[2 * a + c], thread.gradient[r][a]);
      }
    }
  }
};

}  // namespace dtag::cuda
