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

// Rows of one head: row i is data + i * stride.
struct HeadRows {
  float* data;
  ptrdiff_t stride;

  float* operator[](int i) const { return data + i * stride; }
};

// to [vectors] = sum over j < count of weights[j * step] * from[j] [vectors]
template <int vectors>
inline void combine_part(float* to, const float* weights, ptrdiff_t step, const float* from,
                         ptrdiff_t stride, int count) {
  Vec sum[vectors];
  DTAG_UNROLL
  for (int v = 0; v < vectors; ++v) sum[v] = zero();
  for (int j = 0; j < count; ++j) {
    const Vec weight = broadcast(weights[j * step]);
    DTAG_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[v] = fma(weight, load(from + j * stride + v * Vec::lanes), sum[v]);
  }
  DTAG_UNROLL
  for (int v = 0; v < vectors; ++v) store(to + v * Vec::lanes, sum[v]);
}

// The same for a width in sixteens.
inline void combine(float* to, const float* weights, ptrdiff_t step, const float* from,
                    ptrdiff_t stride, int count, int width) {
  constexpr int narrow_part = 16, wide_part = 32;
  int d = 0;
  for (; d + wide_part <= width; d += wide_part)
    combine_part<wide_part / Vec::lanes>(to + d, weights, step, from + d, stride, count);
  if (d < width)
    combine_part<narrow_part / Vec::lanes>(to + d, weights, step, from + d, stride, count);
}

// A row for each step, of so many columns that a multiple of 16 of them are there.
constexpr int score_stride = most_length;
static_assert(most_length % 16 == 0);

// scores[i, j] = x_i . y_j for j <= i < length; columns up to the next multiple of 16 are written.
inline void causal_scores(HeadRows x, HeadRows y, int length, int width, float* scores) {
  constexpr int part = 16, vectors = part / Vec::lanes;
  alignas(64) float turned[part * part];  // [width, columns] of y
  for (int first = 0; first < length; first += part)
    for (int d = 0; d < width; d += part) {
      for (int j = 0; j < part; ++j) {
        const bool real = first + j < length;
        for (int k = 0; k < part; ++k) turned[k * part + j] = real ? y[first + j][d + k] : 0.0f;
      }
      for (int i = first; i < length; ++i) {
        float* const out = scores + i * score_stride + first;
        const float* const row = x[i] + d;
        Vec sum[vectors];
        DTAG_UNROLL
        for (int v = 0; v < vectors; ++v) sum[v] = d == 0 ? zero() : load(out + v * Vec::lanes);
        DTAG_UNROLL
        for (int k = 0; k < part; ++k) {
          const Vec factor = broadcast(row[k]);
          DTAG_UNROLL
          for (int v = 0; v < vectors; ++v)
            sum[v] = fma(factor, load(turned + k * part + v * Vec::lanes), sum[v]);
        }
        DTAG_UNROLL
        for (int v = 0; v < vectors; ++v) store(out + v * Vec::lanes, sum[v]);
      }
    }
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

  HeadRows rows(const Heads& of, int head) const {
    return {of.data + head / a_.heads * of.batch + head % a_.heads * of.head, of.row};
  }
  float* probabilities(int head) const {
    return a_.probabilities + static_cast<size_t>(head) * a_.length * a_.length;
  }

  void attend(int head) const {
    alignas(64) float scores[most_length * score_stride];
    const HeadRows value = rows(a_.value, head), out = rows(a_.out, head);
    causal_scores(rows(a_.query, head), rows(a_.key, head), a_.length, a_.width, scores);
    for (int i = 0; i < a_.length; ++i) {
      float* const s = scores + i * score_stride;
      float most = -3e38f;
      for (int j = 0; j <= i; ++j) {
        s[j] *= a_.scale;
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
      float* const p = probabilities(head) + static_cast<size_t>(i) * a_.length;
      for (int j = 0; j <= i; ++j) p[j] = s[j] * share;
      combine(out[i], p, 1, value[0], value.stride, i + 1, a_.width);
    }
  }

  void differentiate(int head) const {
    alignas(64) float by_score[most_length * score_stride];
    const HeadRows query = rows(a_.query, head), key = rows(a_.key, head);
    const HeadRows value = rows(a_.value, head), by_out = rows(a_.by_out, head);
    const HeadRows by_query = rows(a_.by_query, head), by_key = rows(a_.by_key, head);
    const HeadRows by_value = rows(a_.by_value, head);
    const float* const p = probabilities(head);
    causal_scores(by_out, value, a_.length, a_.width, by_score);  // dp, to begin with
    for (int i = 0; i < a_.length; ++i) {
      const float* const own = p + static_cast<size_t>(i) * a_.length;
      float* const by_own = by_score + i * score_stride;
      float mean = 0.0f;
      for (int j = 0; j <= i; ++j) mean += own[j] * by_own[j];
      for (int j = 0; j <= i; ++j) by_own[j] = a_.scale * own[j] * (by_own[j] - mean);
      combine(by_query[i], by_own, 1, key[0], key.stride, i + 1, a_.width);
    }
    for (int j = 0; j < a_.length; ++j) {
      const int count = a_.length - j;  // those steps that see step j
      combine(by_key[j], by_score + j * score_stride + j, score_stride, query[j], query.stride,
              count, a_.width);
      combine(by_value[j], p + static_cast<size_t>(j) * a_.length + j, a_.length, by_out[j],
              by_out.stride, count, a_.width);
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
