// The layers of one head for a tile of rows, by a warpgroup; see dense_tiles.h.
#pragma once

#include "dense_input.h"

namespace dtag::cuda {

template <int actions, typename Group>
class DenseNetwork : public DenseInput<actions, Group> {
 public:
  using Base = DenseInput<actions, Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

 protected:
  using Base::action_of;
  using Base::floats;
  using Base::group_;

  // The sums of z_2 but for b_2, of the rows at their actions.
  DTAG_BOTH void forward() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        DTAG_UNROLLED
        for (int a = 0; a < actions; a += 2) load_two(action_of(at.row(r)) + a, thread.action[r] + a);
      }
      fetch_first(thread, at, 0, 0);
    });
    forward_slab<true>(0);
    // Not unrolled: instructions, too, have to come from somewhere.
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
    for (int slab = 1; slab < fragments / ring; ++slab) forward_slab<false>(slab);
    group_.template wait<0>([](Thread& thread) -> auto& { return thread.sums[0]; });
    group_.keep([](Thread& thread) -> auto& { return thread.sums[1]; });
  }

  // From them the rows' q alone, a thread's part of it.
  DTAG_BOTH void evaluate_q() {
    begin_second_layer();
    DTAG_UNROLLED
    for (int k = 0; k < fragments; ++k) {
      group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at, k); });
    }
  }

  // And the gradient, by quarters of the columns of W_2: the next one's sums are made meanwhile.
  DTAG_BOTH void evaluate_gradient() {
    constexpr int half = fragments / 2;
    begin_second_layer();
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
    group_.know([](const Thread& thread) {  // now, and not after waiting
      float sum = 0.0f;
      DTAG_UNROLLED
      for (int a = 0; a < actions; ++a) sum += thread.gradient[0][a] + thread.gradient[1][a];
      return sum;
    });
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

 private:
  DTAG_BOTH uint32_t& passing_of(const Place& at, int quarter) const {
    return reinterpret_cast<uint32_t*>(group_.memory() + At::passing)[quarter * At::threads + at.thread];
  }

  // h_1 of a slab's columns, 16 at a time, and its product.
  template <bool begins>
  DTAG_BOTH void forward_slab(int slab) {
    DTAG_UNROLLED
    for (int i = 0; i < ring; ++i) {
      group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
        // After the last for nothing.
        fetch_first(thread, at, i + 1 < ring ? slab : (slab + 1) % (fragments / ring), (i + 1) % ring);
        first_layer(thread, at, slab, i);
      });
      group_.fence_memory();
      multiply_hidden(0, slab, i, !begins || i > 0);
      multiply_hidden(1, slab, i, !begins || i > 0);
      group_.commit();
      if (begins && i + 1 < ring) continue;
      // A few of them are enough, and take fewer registers.
      group_.template wait<ring - 1>(
          [i](Thread& thread) -> auto& { return thread.hidden[(i + 1) % ring]; });
    }
  }

  // Of the 16 columns 16 i on of a slab of W_2, the rows of a half of its units.
  DTAG_BOTH void multiply_hidden(int half, int slab, int i, bool onto) {
    const uint32_t at = At::weights + slab * At::slab + half * (At::units / 2) * 128 + i * 32;
    group_.template multiply<false>(
        onto, [half](Thread& thread) -> auto& { return thread.sums[half]; },
        [i](Thread& thread) -> auto& { return thread.hidden[i]; },
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

  DTAG_BOTH void begin_second_layer() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      clear(thread);
      fetch_top(thread, at, 0);
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

  // What z_1 of the 16 columns 16 i on of a slab is made of.
  DTAG_BOTH void fetch_first(Thread& thread, const Place& at, int slab, int i) const {
    DTAG_UNROLLED
    for (int j = 0; j < 2; ++j) {
      const int eight = 2 * (ring * slab + i) + j;
      load_first(at, eight, thread.first[i % 2][j]);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r)
        load_shared(floats(At::share) + at.row(r) * At::share_stride + 8 * eight + 2 * at.pair(),
                    thread.share[i % 2][j][r]);
    }
  }

  // h_1 of the 16 columns 16 i on of a slab.
  DTAG_BOTH void first_layer(Thread& thread, const Place& at, int slab, int i) {
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) {
      DTAG_UNROLLED
      for (int j = 0; j < 2; ++j) {
        DTAG_UNROLLED
        for (int r = 0; r < 2; ++r) {
          DTAG_UNROLLED
          for (int c = 0; c < 2; ++c) {
            float& z = thread.share[i % 2][j][r][c];
            z = fmaf(thread.first[i % 2][j][2 * a + c], thread.action[r][a], z);
          }
        }
      }
    }
    DTAG_UNROLLED
    for (int j = 0; j < 2; ++j) {
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        const uint32_t pair = positive_pair_of(thread.share[i % 2][j][r][0], thread.share[i % 2][j][r][1]);
        thread.hidden[i][2 * j + r] = pair;
        // Sixteen pairs to a word: of pair i the bits i and 16 + i.
        const bool begins = i == 0 && j == 0 && r == 0;
        thread.passing = (begins ? 0 : thread.passing >> 1) | nonzero_halves(pair);
      }
    }
    if (i == ring - 1) passing_of(at, slab) = thread.passing;
  }

  // -b_2 and w of a fragment's columns. They are made to wait for the q of the one before the one before: else
  // the compiler reads all of them at once, and is short of registers.
  DTAG_BOTH void fetch_top(Thread& thread, const Place& at, int k) const {
    const int late = k < 2 ? 0 : thread.late;
    DTAG_UNROLLED
    for (int j = 0; j < 2; ++j)
      load_shared(floats(At::top) + 4 * (4 * (2 * k + j) + at.pair()) + late, thread.top[k % 2][j]);
  }

  // Of a fragment's columns: q and what is multiplied next. The weights of the next one are read meanwhile.
  DTAG_BOTH void second_layer(Thread& thread, const Place& at, int k) {
    if (k + 1 < fragments) fetch_top(thread, at, k + 1);
    DTAG_UNROLLED
    for (int j = 0; j < 2; ++j) {
      const int eight = 2 * k + j;
      const float(&top)[4] = thread.top[k % 2][j];
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
    }
    thread.late = is_signalling(thread.q[0] + thread.q[1]) ? 4 : 0;
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
