// The layers of one head for a tile of rows, by two warpgroups, each of which has half of the columns; see
// dense_tiles.h.
#pragma once

#include "dense_input.h"

namespace dtag::cuda {

// What climbing keeps of a thread's two rows and two dimensions, in shared memory since the network takes all
// registers.
enum Climbing { current_point, initial_point, best_point, first_moment, second_moment };

template <typename Group>
class DenseNetwork : public DenseInput<Group> {
 public:
  using Base = DenseInput<Group>;
  using Base::Base;
  using typename Base::At;
  using typename Base::Place;
  using typename Base::Thread;

 protected:
  using Base::floats;
  using Base::group_;
  using Base::scales;

  // Where climbing keeps a thread's four numbers.
  DTAG_BOTH float* climbing(const Place& at, Climbing what) const {
    return floats(At::climbs) + 4 * (what * At::threads + at.thread);
  }

  // The action of which z_1 will be made.
  DTAG_BOTH void take_action(Thread& thread, const Place& at, const float (&action)[4]) const {
    float scale[2];
    load_two(scales().of_action + at.dimension(), scale);
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r)
      split(action[2 * r] * scale[0], action[2 * r + 1] * scale[1], thread.action[r], thread.action[2 + r]);
  }

  // The sums of z_2 but for b_2, of the rows at their actions; and which units pass. For the first time W_2 is still
  // on its way.
  DTAG_BOTH void forward(bool is_first) {
    group_.forget();
    DTAG_UNROLLED
    for (int i = 0; i < Thread::fragments; ++i) first_layer(i);
    if (is_first) group_.arrived(1);
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
    for (int i = 0; i < Thread::fragments; ++i) back(i);
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      auto& sums = thread.gradient;
      float scale[2];
      load_two(scales().from_gradient + at.dimension(), scale);
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) {
        const float small = (sums[0][1][i] + sums[1][1][i]) + (sums[0][2][i] + sums[1][2][i]);
        sums[0][0][i] = ((sums[0][0][i] + sums[1][0][i]) + small) * scale[i % 2];
      }
    });
  }

  // q over the four threads of a row, to two of them.
  DTAG_BOTH void sum_up() {
    group_.template exchange<1>(
        2,
        [](Thread& thread, const Place& at, float(&give)[1]) { give[0] = at.own() ? thread.q[0] : thread.q[1]; },
        [](Thread& thread, const Place& at, const float(&got)[1]) {
          thread.own_q = (at.own() ? thread.q[1] : thread.q[0]) + got[0];
        });
    group_.template exchange<1>(
        1, [](Thread& thread, const Place&, float(&give)[1]) { give[0] = thread.own_q; },
        [&](Thread& thread, const Place&, const float(&got)[1]) {
          thread.own_q = (thread.own_q + got[0]) * scales().from_q;
        });
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

  // Of 16 columns h_1, to shared memory.
  DTAG_BOTH void first_layer(int i) {
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      group_.template get_first<false>(at, i, thread.first);
      DTAG_UNROLLED
      for (int half = 0; half < 2; ++half) {
        DTAG_UNROLLED
        for (int n = 0; n < 4; ++n) thread.z[half][n] = thread.share[8 * i + 4 * half + n];
      }
    });
    DTAG_UNROLLED
    for (int half = 0; half < 2; ++half) {
      const auto sums = [half](Thread& thread) DTAG_INLINED -> auto& { return thread.z[half]; };
      // Both parts of the action times W_1a's first one, and its first part times the second.
      group_.template add_product<16>(
          [half](const Thread& thread) DTAG_INLINED -> HalfFactors<16> {
            const auto& action = thread.action;
            const uint32_t large = thread.first[half];
            return {{action[0], action[1], action[2], action[3]}, {large, large}};
          },
          sums);
      group_.template add_product<8>(
          [half](const Thread& thread) DTAG_INLINED -> HalfFactors<8> {
            return {{thread.action[0], thread.action[1]}, {thread.first[2 + half]}};
          },
          sums);
    }
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      const auto& z = thread.z;
      const uint32_t fragment[4] = {positive_pair_of(z[0][0], z[0][1]), positive_pair_of(z[0][2], z[0][3]),
                                    positive_pair_of(z[1][0], z[1][1]), positive_pair_of(z[1][2], z[1][3])};
      group_.put(at, i, fragment);
    });
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

  // Of 16 columns the gradient.
  DTAG_BOTH void back(int i) {
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      group_.template get_first<true>(at, i, thread.first);
      DTAG_UNROLLED
      for (int pair = 0; pair < 4; ++pair) {
        float numbers[2];
        DTAG_UNROLLED
        for (int c = 0; c < 2; ++c) {
          const bool passes = thread.passing[i / 4] >> (i % 4 * 4 + pair + 16 * c) & 1;
          numbers[c] = passes ? thread.back[8 * i + 2 * pair + c] : 0.0f;
        }
        split(numbers[0], numbers[1], thread.masked[0][pair], thread.masked[1][pair]);
      }
    });
    DTAG_UNROLLED
    for (int n = 0; n < 3; ++n)
      group_.template add_product<16>(
          [n](const Thread& thread) DTAG_INLINED -> HalfFactors<16> {
            const auto& left = thread.masked[n == 2];
            const uint32_t* const right = thread.first + (n == 1 ? 2 : 0);
            return {{left[0], left[1], left[2], left[3]}, {right[0], right[1]}};
          },
          // One does not wait for the other.
          [i, n](Thread& thread) DTAG_INLINED -> auto& { return thread.gradient[i % 2][n]; });
  }
};

}  // namespace dtag::cuda
