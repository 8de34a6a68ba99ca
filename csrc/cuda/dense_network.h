// The layers of one head for a tile of rows, by two warpgroups, each of which has half of the columns; see
// dense_tiles.h.
#pragma once

#include "dense_input.h"

namespace dtag::cuda {

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

  // The action of which z_1 will be made.
  DTAG_BOTH void take_action(Thread& thread, const Place& at, const float (&action)[4]) const {
    float scale[2];
    load_two(scales().of_action + at.dimension(), scale);
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r)
      split(action[2 * r] * scale[0], action[2 * r + 1] * scale[1], thread.action[r], thread.action[2 + r]);
  }

  // The sums of z_2 but for b_2, of the rows at their actions. For the first time W_2 is still on its way.
  DTAG_BOTH void forward(bool is_first) {
    group_.forget();
    DTAG_UNROLLED
    for (int i = 0; i < Thread::fragments; ++i) first_layer(i);
    if (is_first) this->wait_for_weights();
    group_.sync_for_tensor_cores();
    // One warpgroup after the other, so that the first goes on while the second is multiplying.
    group_.take_turn();
    group_.fence();
    // W_2's rows for the units of a warpgroup.
    const auto sums = [](Thread& thread) DTAG_INLINED -> auto& { return thread.sums; };
    DTAG_UNROLLED
    for (int k = 0; k < At::units / 16; ++k)
      group_.multiply(k > 0, sums, At::layer + k / 4 * At::layer_slab + k % 4 * 32,
                      At::weights + k / 4 * At::slab + k % 4 * 32, At::units / At::groups * 128);
    group_.commit();
    group_.pass_turn();
    group_.template wait<0>(sums);
  }

  // From them the rows' q alone; send_q() sends own_q, of row(own()).
  template <typename SendQ>
  DTAG_BOTH void evaluate_q(SendQ send_q) {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      second_layer(thread, at);
      for (float& number : thread.gradient[0]) number = 0.0f;
    });
    sum_up();
    send_q();
  }

  // And the gradient.
  template <typename SendQ>
  DTAG_BOTH void evaluate_gradient(SendQ send_q) {
    group_.forget();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED { second_layer(thread, at); });
    group_.each([&](Thread& thread, const Place&) DTAG_INLINED {
      DTAG_UNROLLED
      for (int n = 0; n < 2; ++n) {
        DTAG_UNROLLED
        for (float& number : thread.gradient[n]) number = 0.0f;
      }
    });
    // Two slabs of W_2 are multiplied at a time, or being made a gradient of.
    set_back<0>();
    sum_up();
    send_q();
    set_back<1>();
    back<0>();
    set_back<2>();
    back<1>();
    set_back<3>();
    back<2>();
    back<3>();
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      auto& sums = thread.gradient;
      float scale[2];
      load_two(scales().from_gradient + at.dimension(), scale);
      DTAG_UNROLLED
      for (int i = 0; i < 4; ++i) sums[0][i] = (sums[0][i] + sums[1][i]) * scale[i % 2];
    });
  }

 private:
  static constexpr int eights = Thread::numbers / 4;  // of a warpgroup's columns

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

  // Begin to multiply the warpgroup's g_2, which is in its registers, by W_2, for 64 units of the first layer: of the
  // sums over layer 2 that a unit's gradient is, its half.
  template <int slab>
  DTAG_BOTH void set_back() {
    group_.fence();
    DTAG_UNROLLED
    for (int k = 0; k < Thread::fragments; ++k)
      group_.multiply_own(
          k > 0, [](Thread& thread) DTAG_INLINED -> auto& { return thread.back[slab % 2]; },
          [k](Thread& thread) DTAG_INLINED -> auto& { return thread.layer[k]; },
          At::weights + slab * At::slab + k * 16 * 128, At::units / At::groups * 128);
    group_.commit();
  }

  // Of these units what they make of the gradient, while the next are multiplied.
  template <int slab>
  DTAG_BOTH void back() {
    constexpr int blocks = At::slab_units / 16;
    group_.template wait<slab + 1 < At::units / At::slab_units ? 1 : 0>(
        [](Thread& thread) DTAG_INLINED -> auto& { return thread.back[slab % 2]; });
    DTAG_UNROLLED
    for (int i = 0; i < blocks; ++i)
      add_gradient(slab * blocks + i,
                   [i](const Thread& thread) DTAG_INLINED { return thread.back[slab % 2] + 8 * i; });
  }

  // Of 16 columns h_1, to shared memory.
  DTAG_BOTH void first_layer(int i) {
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      group_.template get_first<false>(at, at.group() * Thread::fragments + i, thread.first);
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

  // q and g_2.
  DTAG_BOTH void second_layer(Thread& thread, const Place& at) {
    float q[2][2] = {};  // of the first columns of the pairs, and of the second: one does not wait for the other
    DTAG_UNROLLED
    for (int j = 0; j < eights; ++j) {
      float top[4];
      load_shared(floats(At::top) + 4 * (4 * (at.group() * eights + j) + at.pair()), top);
      const uint32_t weights = pair_of(top[2], top[3]);
      DTAG_UNROLLED
      for (int r = 0; r < 2; ++r) {
        // -relu(z_2): its sign is set where z_2 passes.
        const float* const sums = thread.sums + 4 * j + 2 * r;
        const float first = negative_part(top[0] - sums[0]), second = negative_part(top[1] - sums[1]);
        thread.layer[j / 2][j % 2 * 2 + r] = weights & negative_halves(first, second);
        q[r][0] = fmaf(-top[2], first, q[r][0]);
        q[r][1] = fmaf(-top[3], second, q[r][1]);
      }
    }
    DTAG_UNROLLED
    for (int r = 0; r < 2; ++r) thread.q[r] = q[r][0] + q[r][1];
  }

  // Of 16 units of the first layer, of all, what they make of the gradient where h_1 is not zero. The two columns that
  // a thread has of every eight are what it has to have of a factor's numbers.
  template <typename Back>
  DTAG_BOTH void add_gradient(int block, Back back) {
    group_.each([&](Thread& thread, const Place& at) DTAG_INLINED {
      group_.template get_first<true>(at, block, thread.first);
      uint32_t fragment[4];
      group_.get(at, block, fragment);
      const float* const numbers = back(thread);
      DTAG_UNROLLED
      for (int pair = 0; pair < 4; ++pair) {
        uint32_t large, small;
        split(numbers[2 * pair], numbers[2 * pair + 1], large, small);
        const uint32_t passes = nonzero_halves(fragment[pair]);
        thread.masked[0][pair] = large & passes;
        thread.masked[1][pair] = small & passes;
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
          [n](Thread& thread) DTAG_INLINED -> auto& { return thread.gradient[n > 0]; });
  }
};

}  // namespace dtag::cuda
