// Causal self-attention over short sequences, a head at a time, and its derivatives.
//
//   s_ij = scale q_i . k_j,  p_i = softmax(s_i0 ... s_ii),  out_i = sum over j <= i of p_ij v_j
//   dp_ij = dout_i . v_j,  ds_ij = p_ij (dp_ij - sum over k of p_ik dp_ik)
//   dq_i = scale sum ds_ij k_j,  dk_j = scale sum ds_ij q_i,  dv_j = sum p_ij dout_i
#pragma once

#include "../phases.h"
#include "../training.h"
#include "activations.h"
#include "product.h"

namespace dtag {
inline namespace DTAG_TARGET {

// to [width] += factor * from [width], width a multiple of 16
inline void add_scaled(float* to, float factor, const float* from, int width) {
  const Vec by = broadcast(factor);
  for (int d = 0; d < width; d += Vec::lanes) store(to + d, fma(by, load(from + d), load(to + d)));
}

inline void clear(float* to, int width) {
  for (int d = 0; d < width; d += Vec::lanes) store(to + d, zero());
}

class AttentionPass {
 public:
  AttentionPass(const Attention& attention, bool backward)
      : a_(attention), backward_(backward), heads_(attention.batch * attention.heads) {}

  int count(int) const { return (heads_ + heads_an_item - 1) / heads_an_item; }

  void item(int, int i) const {
    for (int h = i * heads_an_item; h < heads_ && h < (i + 1) * heads_an_item; ++h) {
      if (backward_)
        differentiate(h);
      else
        attend(h);
    }
  }

 private:
  static constexpr int heads_an_item = 16;

  float* row(const Heads& of, int head, int i) const {
    return of.data + head / a_.heads * of.batch + head % a_.heads * of.head + i * of.row;
  }
  float* probabilities(int head, int i) const {
    return a_.probabilities + (static_cast<size_t>(head) * a_.length + i) * a_.length;
  }

  void attend(int head) const {
    alignas(64) float s[most_length];
    for (int i = 0; i < a_.length; ++i) {
      const float* const q = row(a_.query, head, i);
      float most = -3e38f;
      for (int j = 0; j <= i; ++j) {
        s[j] = a_.scale * inner(q, row(a_.key, head, j), a_.width);
        most = s[j] > most ? s[j] : most;
      }
      for (int j = i + 1; j % 16 != 0; ++j) s[j] = -3e38f;
      Vec total = zero();
      for (int j = 0; j <= i; j += Vec::lanes) {
        const Vec e = exp(load(s + j) - broadcast(most));
        total = total + e;
        store(s + j, e);
      }
      const float share = 1.0f / sum(total);
      float* const p = probabilities(head, i);
      float* const out = row(a_.out, head, i);
      clear(out, a_.width);
      for (int j = 0; j <= i; ++j) {
        p[j] = s[j] * share;
        add_scaled(out, p[j], row(a_.value, head, j), a_.width);
      }
    }
  }

  void differentiate(int head) const {
    float by_p[most_length];
    for (int j = 0; j < a_.length; ++j) {
      clear(row(a_.by_key, head, j), a_.width);
      clear(row(a_.by_value, head, j), a_.width);
    }
    for (int i = 0; i < a_.length; ++i) {
      const float* const p = probabilities(head, i);
      const float* const by_out = row(a_.by_out, head, i);
      float mean = 0.0f;
      for (int j = 0; j <= i; ++j) {
        by_p[j] = inner(by_out, row(a_.value, head, j), a_.width);
        mean += p[j] * by_p[j];
      }
      const float* const q = row(a_.query, head, i);
      float* const by_q = row(a_.by_query, head, i);
      clear(by_q, a_.width);
      for (int j = 0; j <= i; ++j) {
        const float by_s = a_.scale * p[j] * (by_p[j] - mean);
        add_scaled(by_q, by_s, row(a_.key, head, j), a_.width);
        add_scaled(row(a_.by_key, head, j), by_s, q, a_.width);
        add_scaled(row(a_.by_value, head, j), p[j], by_out, a_.width);
      }
    }
  }

  const Attention& a_;
  const bool backward_;
  const int heads_;
};

inline void attend(const Attention& attention, bool backward, int threads) {
  run_phases(threads, 1, AttentionPass(attention, backward));
}

}  // namespace DTAG_TARGET
}  // namespace dtag
