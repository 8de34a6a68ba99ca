// The layers of one head for a tile of rows, by two warpgroups, each of which has half of the columns; see
// dense_tiles.h.
#pragma once

#include "dense_input.h"

namespace dtag::cuda {

// actions: dimensions of the action, or more.
template <int actions, typename Group>
class DenseNetwork : public DenseInput<Group> {
 public:
  using Base = DenseInput<Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

 protected:
  using Base::action_of;
  using Base::first_of;
  using Base::floats;
  using Base::group_;

  // The sums of z_2 but for b_2, of the rows at their actions; and which units pass.
  DTAG_BOTH void forward() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { first_layer(thread, at); });
    // W_2's rows for the units of a warpgroup.
    multiply<false>([](Thread& thread) -> auto& { return thread.sums; },
                    [](int k) { return k / 4 * At::slab + k % 4 * 32; }, At::units / At::groups * 128);
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { see_passing(thread, at); });
    group_.template wait<0>([](Thread& thread) -> auto& { return thread.sums; });
  }

  // From them the rows' q alone, a thread's part of it.
  DTAG_BOTH void evaluate_q() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      second_layer(thread, at);
      for (float& number : thread.gradient[0][0]) number = 0.0f;
    });
  }

  // And the gradient.
  DTAG_BOTH void evaluate_gradient() {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at); });
    group_.sync();  // all have done with h_1
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      DTAG_UNROLLED
      for (int i = 0; i < Thread::fragments; ++i) group_.put(at, i, thread.layer[i]);
    });
    // Its columns for the units of a warpgroup.
    multiply<true>([](Thread& thread) -> auto& { return thread.back; }, [](int k) { return k * 16 * 128; },
                   At::slab * (At::units / At::slab_units / At::groups));
    group_.template wait<0>([](Thread& thread) -> auto& { return thread.back; });
    group_.each([&](Thread& thread, const Place&) DTAG_INLINED {
      DTAG_UNROLLED
      for (int i = 0; i < 2; ++i) {
        DTAG_UNROLLED
        for (int n = 0; n < 3; ++n) {
          DTAG_UNROLLED
          for (float& number : thread.gradient[i][n]) number = 0.0f;
        }
      }
    });
    DTAG_UNROLLED
    for (int j = 0; j < eights; ++j) back(j);
    group_.each([&](Thread& thread, const Place&) DTAG_INLINED {
      auto& sums = thread.gradient;
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const float small = (sums[0][1][i] + sums[1][1][i]) + (sums[0][2][i] + sums[1][2][i]);
        sums[0][0][i] = (sums[0][0][i] + sums[1][0][i]) + small;
      }
    });
  }

  // q over the four threads of a row, to those that climb for it.
  DTAG_BOTH void sum_up() {
    group_.template exchange<1>(
        2,
        [](Thread& thread, const Place& at, float(&give)[1]) { give[0] = at.own() ? thread.q[0] : thread.q[1]; },
        [](Thread& thread, const Place& at, const float(&got)[1]) {
          thread.own_q = (at.own() ? thread.q[1] : thread.q[0]) + got[0];
        });
    group_.template exchange<1>(
        1, [](Thread& thread, const Place&, float(&give)[1]) { give[0] = thread.own_q; },
        [](Thread& thread, const Place&, const float(&got)[1]) { thread.own_q += got[0]; });
  }

 private:
  static constexpr int eights = Thread::numbers / 4;  // of a warpgroup's columns
  DTAG_BOTH static int eight_of(const Place& at, int j) { return at.group() * eights + j; }

  // What all have put, times W_2: of its columns 16 k on from byte_of(k) on, for each warpgroup's units `apart`
  // bytes on.
  template <bool transposed, typename Sums, typename ByteOf>
  DTAG_BOTH void multiply(Sums sums, ByteOf byte_of, int apart) {
    group_.sync_for_tensor_cores();
    // One warpgroup after the other, so that the first goes on while the second is multiplying.
    group_.take_turn();
    group_.fence();
    DTAG_UNROLLED
    for (int k = 0; k < At::units / 16; ++k)
      group_.template multiply<transposed>(k > 0, sums, At::layer + k / 4 * At::layer_slab + k % 4 * 32,
                                           At::weights + byte_of(k), apart);
    group_.commit();
    group_.pass_turn();
  }

  // h_1, to shared memory: of four rows at a time, whose actions are read before the four before them are written.
  DTAG_BOTH void first_layer(Thread& thread, const Place& at) {
    constexpr int together = 4;
    const int unit = at.first_unit();
    float weights[actions][4], action[2][together][actions];
    DTAG_UNROLLED
    for (int a = 0; a < actions; ++a) load_four(first_of(unit / 8) + a * 8 + unit % 8, weights[a]);
    char* const to = group_.memory() + At::layer + unit / At::slab_units * At::layer_slab + at.first_row() * 128;
    const int byte = unit % At::slab_units * 2;
    const auto read = [&](int first) DTAG_INLINED {
      DTAG_UNROLLED
      for (int i = 0; i < together; ++i)
        load_shared(action_of(at, at.first_row() + first + i), action[first / together % 2][i]);
    };
    read(0);
    DTAG_UNROLLED
    for (int first = 0; first < Thread::rows; first += together) {
      if (first + together < Thread::rows) read(first + together);
      DTAG_UNROLLED
      for (int i = 0; i < together; ++i) {
        const int row = first + i;
        float z[4] = {thread.share[row][0], thread.share[row][1], thread.share[row][2], thread.share[row][3]};
        DTAG_UNROLLED
        for (int a = 0; a < actions; ++a) {
          DTAG_UNROLLED
          for (int u = 0; u < 4; ++u) z[u] = fmaf(weights[a][u], action[first / together % 2][i][a], z[u]);
        }
        const uint32_t pairs[2] = {positive_pair_of(z[0], z[1]), positive_pair_of(z[2], z[3])};
        store_two(to + (byte ^ row % 8 << 4) + row * 128, pairs);  // as swizzled() has it
      }
    }
  }

  // Of h_1 as it is multiplied: what back() takes.
  DTAG_BOTH void see_passing(Thread& thread, const Place& at) {
    DTAG_UNROLLED
    for (int i = 0; i < Thread::fragments; ++i) {
      uint32_t fragment[4];
      group_.get(at, i, fragment);
      DTAG_UNROLLED
      for (int pair = 0; pair < 4; ++pair) {
        // Sixteen pairs to a word: of pair n the bits n and 16 + n.
        uint32_t& passing = thread.passing[i / 4];
        passing = (i % 4 == 0 && pair == 0 ? 0 : passing >> 1) | nonzero_halves(fragment[pair]);
        // The compiler is not to keep the pairs in its place.
        if (i % 4 == 3 && pair == 3) passing = anew(passing);
      }
    }
  }

  // q and g_2.
  DTAG_BOTH void second_layer(Thread& thread, const Place& at) {
    thread.q[0] = thread.q[1] = 0.0f;
    DTAG_UNROLLED
    for (int j = 0; j < eights; ++j) {
      float top[4];
      load_shared(floats(At::top) + 4 * (4 * eight_of(at, j) + at.pair()), top);
      const uint32_t weights = pair_of(top[2], top[3]);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        // -relu(z_2): its sign is set where z_2 passes.
        const float* const sums = thread.sums + 4 * j + 2 * r;
        const float first = negative_part(top[0] - sums[0]), second = negative_part(top[1] - sums[1]);
        thread.layer[j / 2][j % 2 * 2 + r] = weights & negative_halves(first, second);
        thread.q[r] = fmaf(-top[2], first, thread.q[r]);
        thread.q[r] = fmaf(-top[3], second, thread.q[r]);
      }
    }
  }

  // Of an eight: the gradient.
  DTAG_BOTH void back(int j) {
    group_.add_product(
        [&](const Thread& thread, const Place& at) DTAG_INLINED {
          SmallFactors factors;
          // The two columns that a thread has of the eight are what it has to have of eight numbers: whatever
          // their order, if it is that of both factors.
          DTAG_UNROLLED
          for (int c = 0; c < 2; ++c) {
            DTAG_UNROLLED
            for (int r = 0; r < 2; ++r) {
              const bool passes = thread.passing[j / 8] >> (j % 8 * 2 + r + 16 * c) & 1;
              factors.left[2 * c + r] = passes ? thread.back[4 * j + 2 * r + c] : 0.0f;
            }
          }
          load_two(first_of(eight_of(at, j)) + at.column() * 8 + 2 * at.pair(), factors.right);
          return factors;
        },
        [j](Thread& thread) DTAG_INLINED -> auto& { return thread.gradient[j % 2]; });
  }
};

}  // namespace dtag::cuda
