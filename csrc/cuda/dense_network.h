// One head for a tile of rows, by a warpgroup; what for is said in dense_tiles.h.
#pragma once

#include "dense_kernel.h"
#include "memory.h"
#include "step.h"
#include "tile_words.h"
#include "wgmma.cuh"

namespace dtag::cuda {

// What a thread keeps. Its row where rows climb is one of the two that it has the sums of.
template <int actions>
struct TileThread {
  float sums[2][64];       // of a half of the columns: of every eight two, of two rows
  uint32_t hidden[16][4];  // h_1, a fragment for every 16 columns
  uint32_t slopes[16][4];  // g_2 = w * relu'(z_2), likewise
  uint32_t passing[4];     // z_1 > 0, a bit each
  float action[2][actions];
  float q[2];
  float gradient[2][actions];
  // Of the row that it climbs for and four dimensions of the action:
  float own_q, own[4];  // the head's q and gradient
  float total[4];       // the ensemble's gradient
  float proposal[4], initial[4];
  float length;
  float bias;  // of the head's q
  float q_now, best_q, q_initial;
  int best_step;
  bool failed;                     // a number was not finite
  float result_q, result_initial;  // of the starting points yet
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
    group_.each([&](Thread& thread, const Place& at) {
      thread.bias = critic_.output_bias[head_];
      put_weights(at.thread);
    });
  }

  // A tile: the observation's share of z_1.
  DTAG_BOTH void take(int64_t tile, bool is_first) {
    first_row_ = tile * At::rows;
    group_.sync();  // all have done with the tile before
    group_.each([&](Thread& thread, const Place& at) {
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
      group_.each([&](Thread& thread, const Place& at) { add_observation(thread, at, first); });
      group_.sync();
      first += At::staged;
      if (first >= critic_.observation_dim) break;
      group_.each([&](Thread&, const Place& at) {
        send_for_observation_weights(at, first);
        copies_commit();
        put_observation(at, first);
        copies_wait<0>();
      });
      group_.sync();
    }
    group_.each([&](Thread& thread, const Place& at) {
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        float* const share = floats(At::share) + at.thread + At::threads * half;
        // No negative zero is left, nor will be in z_1.
        DTAG_UNROLLED
        for (int row = 0; row < At::rows; ++row)
          share[row * At::share_stride] = thread.sums[half][row] + 0.0f;
      }
      thread.failed = false;
      copies_wait<0>();
    });
    group_.sync_for_tensor_cores();
  }

 protected:
  static constexpr int steps_of_sum = At::units / 16;  // in which a product is added up

  DTAG_BOTH float* floats(int at) const { return reinterpret_cast<float*>(group_.memory() + at); }
  DTAG_BOTH float* action_of(int row) const {
    return floats(At::actions) + row * At::most_actions;
  }

  // q of each of a thread's rows, its part, at their actions.
  DTAG_BOTH void forward() {
    group_.each([&](Thread& thread, const Place& at) {
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        thread.q[r] = 0.0f;
        DTAG_UNROLLED
        for (int a = 0; a < actions; a += 2)
          load_two(action_of(at.row(r)) + a, thread.action[r] + a);
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a) thread.gradient[r][a] = 0.0f;
      }
    });
    DTAG_UNROLLED
    for (int k = 0; k < steps_of_sum; ++k) {
      group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { first_layer(thread, at, k); });
      group_.fence();
      multiply_hidden(0, k);
    }
    group_.commit();
    group_.fence();
    DTAG_UNROLLED
    for (int k = 0; k < steps_of_sum; ++k) multiply_hidden(1, k);
    group_.commit();
    group_.template wait<1>([](Thread& thread) -> auto& { return thread.sums[0]; });
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at, 0); });
    group_.template wait<0>([](Thread& thread) -> auto& { return thread.sums[1]; });
    group_.keep([](Thread& thread) -> auto& { return thread.hidden; });
  }

  // What is left of forward(), and the gradient's part.
  DTAG_BOTH void finish(bool climbs) {
    constexpr int half = steps_of_sum / 2;
    if (!climbs) {
      group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at, 1); });
      return;
    }
    group_.fence();
    DTAG_UNROLLED
    for (int k = 0; k < half; ++k) multiply_slopes(0, k);
    group_.commit();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at, 1); });
    group_.fence();
    DTAG_UNROLLED
    for (int k = half; k < steps_of_sum; ++k) multiply_slopes(0, k);
    group_.commit();
    DTAG_UNROLLED
    for (int k = 0; k < steps_of_sum; ++k) multiply_slopes(1, k);
    group_.commit();
    group_.template wait<1>([](Thread& thread) -> auto& { return thread.sums[0]; });
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { back(thread, at, 0); });
    group_.template wait<0>([](Thread& thread) -> auto& { return thread.sums[1]; });
    group_.keep([](Thread& thread) -> auto& { return thread.slopes; });
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { back(thread, at, 1); });
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
          thread.own_q = thread.q[0] + got[4] + thread.bias;
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
  int64_t first_row_ = 0;

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
      const float* const from = critic_.action_weights +
                                (head_ * width() + unit) / group_units * actions * group_units +
                                unit % group_units + i;
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) first[2 * a + i] = real ? from[a * group_units] : 0.0f;
      const int at = head_ * width() + unit + i;
      top[i] = 0.0f - (real ? critic_.second_bias[at] : 0.0f);  // never a negative zero
      top[2 + i] = real ? critic_.output[at] : 0.0f;
    }
  }

  // W_2 of the head: zeros where it has no units.
  DTAG_BOTH void send_for_matrix(const Place& at) {
    const auto* const matrix =
        static_cast<const uint16_t*>(critic_.weight) + head_ * critic_.top_units * width();
    constexpr int pieces = At::units / 8;  // of eight numbers in a row
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int i = at.thread; i < At::units * pieces; i += At::threads) {
      const int row = i / pieces, column = i % pieces * 8;
      const bool real = row < critic_.top_units && column < width();
      copy_later(group_.memory() + At::weights + column / At::slab_units * At::slab +
                     swizzled(row * 128 + column % At::slab_units * 2),
                 real ? matrix + row * width() + column : matrix, real);
    }
  }

  // Of W_1s the rows of some numbers of the observation.
  DTAG_BOTH void send_for_observation_weights(const Place& at, int first) {
    const int rows = observation_rows(critic_);
    constexpr int pieces = At::units / 4;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int i = at.thread; i < At::staged * pieces; i += At::threads) {
      const int row = i / pieces, unit = i % pieces * 4;
      const bool real = first + row < rows && unit < width();
      const float* const from = critic_.observation_weights +
                                ((head_ * width() + unit) / group_units * rows + first + row) * group_units +
                                unit % group_units;
      copy_later(floats(At::staged_weights) + row * At::units + unit,
                 real ? from : critic_.observation_weights, real);
    }
  }

  // And those numbers, standardised.
  DTAG_BOTH void put_observation(const Place& at, int first) {
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int i = at.thread; i < At::rows * At::staged; i += At::threads) {
      const int row = i / At::staged, k = first + i % At::staged;
      float x = 0.0f;
      if (first_row_ + row < job_.rows && k < critic_.observation_dim)
        x = (job_.observations[(first_row_ + row) * critic_.observation_dim + k] - critic_.mean[k]) /
            critic_.std[k];
      floats(At::observed)[row * At::observed_stride + i % At::staged] = x;
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

  // Of 16 columns of W_2 from 16 k on, the rows of a half of its units.
  DTAG_BOTH void multiply_hidden(int half, int k) {
    const uint32_t at = At::weights + k / 4 * At::slab + half * (At::units / 2) * 128 + k % 4 * 32;
    group_.template multiply<false>(
        k > 0, [half](Thread& thread) -> auto& { return thread.sums[half]; },
        [k](Thread& thread) -> auto& { return thread.hidden[k]; },
        wgmma_tile(group_.address() + at, 1024));
  }
  // Of 16 rows of W_2 from 16 k on, a half of the columns.
  DTAG_BOTH void multiply_slopes(int half, int k) {
    const uint32_t at = At::weights + half * 2 * At::slab + k * 16 * 128;
    group_.template multiply<true>(
        k > 0, [half](Thread& thread) -> auto& { return thread.sums[half]; },
        [k](Thread& thread) -> auto& { return thread.slopes[k]; },
        wgmma_tile(group_.address() + at, 1024, At::slab));
  }

  // Columns of a fragment: two pairs eight apart.
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
        thread.hidden[k][2 * j + r] = pair;
        // Sixteen pairs to a word: of pair i the bits i and 16 + i.
        uint32_t& word = thread.passing[k / 4];
        word = (k % 4 == 0 && j == 0 && r == 0 ? 0 : word >> 1) | nonzero_halves(pair);
      }
    }
  }

  // Of a half's columns: q and what is multiplied next.
  DTAG_BOTH void second_layer(Thread& thread, const Place& at, int half) {
    DTAG_UNROLLED
    for (int i = 0; i < 16; ++i) {
      float top[4];
      load_shared(floats(At::top) + 4 * (64 * half + 4 * i + at.pair()), top);
      const uint32_t weights = pair_of(top[2], top[3]);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        // -z_2, of which the sign is set where z_2 > 0.
        const float first = top[0] - thread.sums[half][4 * i + 2 * r];
        const float second = top[1] - thread.sums[half][4 * i + 2 * r + 1];
        thread.slopes[8 * half + i / 2][2 * (i % 2) + r] = weights & negative_halves(first, second);
        thread.q[r] = fmaf(-top[2], negative_part(first), thread.q[r]);
        thread.q[r] = fmaf(-top[3], negative_part(second), thread.q[r]);
      }
    }
  }

  DTAG_BOTH void back(Thread& thread, const Place& at, int half) {
    DTAG_UNROLLED
    for (int i = 0; i < 16; ++i) {
      float w[2 * actions];
      load_first(at, 16 * half + i, w);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const int bit = 4 * (i / 2 % 4) + 2 * (i % 2) + r;
        DTAG_UNROLLED
        for (int c = 0; c < 2; ++c) {
          const bool passes = thread.passing[2 * half + i / 8] >> (bit + 16 * c) & 1;
          const float g = passes ? thread.sums[half][4 * i + 2 * r + c] : 0.0f;
          DTAG_UNROLLED
          for (int a = 0; a < actions; ++a)
            thread.gradient[r][a] = fmaf(g, w[2 * a + c], thread.gradient[r][a]);
        }
      }
    }
  }
};

}  // namespace dtag::cuda
