// Self-attention over short sequences, a head at a time, and its derivatives.
//
//   s_ij = scale q_i . k_j,  p_i = softmax of the s_ij that i may see,  out_i = sum keep_ij p_ij v_j
//   dp_ij = keep_ij dout_i . v_j,  ds_ij = p_ij (dp_ij - sum over k of p_ik dp_ik)
//   dq_i = scale sum ds_ij k_j,  dk_j = scale sum ds_ij q_i,  dv_j = sum keep_ij p_ij dout_i
//
// i sees the j that the mask says, or without one those up to i; who sees none gets zeros, as from
// torch. keep is dropout's factor, by the number of the probability in the tensor of all.
#pragma once

#include <algorithm>

#include "../phases.h"
#include "../training.h"
#include "activations.h"
#include "pointwise.h"
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

// What row i sees lies from first[i] to before end[i], who sees key j from rows_first[j] to before
// rows_end[j]; in between the mask decides, where there is one.
struct Sight {
  int first[most_length], end[most_length], rows_first[most_length], rows_end[most_length];
  const uint8_t* mask;
  ptrdiff_t mask_row;

  void look(const Attention& a, int head) {
    mask = nullptr, mask_row = a.mask_row;
    if (a.mask != nullptr)
      mask = a.mask + head / a.heads * a.mask_batch + head % a.heads * a.mask_head;
    for (int i = 0; i < a.length; ++i) {
      first[i] = 0, end[i] = i + 1;
      rows_first[i] = i, rows_end[i] = a.length;
    }
    if (mask == nullptr) return;
    std::fill_n(rows_first, a.length, a.length);
    std::fill_n(rows_end, a.length, 0);
    for (int i = 0; i < a.length; ++i) {
      const uint8_t* const own = mask + i * mask_row;
      int from = 0, to = a.length;
      while (from < to && own[from] == 0) ++from;
      while (to > from && own[to - 1] == 0) --to;
      if (from == to) from = to = 0;  // none
      first[i] = from, end[i] = to;
      for (int j = from; j < to; ++j) {
        rows_first[j] = std::min(rows_first[j], i);
        rows_end[j] = i + 1;
      }
    }
  }
  // Whether row i sees key j, from first[i] to before end[i].
  bool sees(int i, int j) const { return mask == nullptr || mask[i * mask_row + j] != 0; }
};

// scores[i, j] = x_i . y_j where i may see j; others of the same sixteen columns are written, too.
inline void score(HeadRows x, HeadRows y, const Sight& sight, int length, int width,
                  float* scores) {
  constexpr int part = 16, vectors = part / Vec::lanes;
  alignas(64) float turned[part * part];  // [width, columns] of y
  for (int first = 0; first < length; first += part)
    for (int d = 0; d < width; d += part) {
      for (int j = 0; j < part; ++j) {
        const bool real = first + j < length;
        for (int k = 0; k < part; ++k) turned[k * part + j] = real ? y[first + j][d + k] : 0.0f;
      }
      for (int i = 0; i < length; ++i) {
        if (sight.end[i] <= first || sight.first[i] >= first + part) continue;
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
      Sight sight;
      sight.look(a_, h);
      if (backward_)
        differentiate(h, sight);
      else
        attend(h, sight);
    }
  }

 private:
  static constexpr int heads_an_item = 16;
  static constexpr float unseen = -3e38f;

  HeadRows rows(const Heads& of, int head) const {
    return {of.data + head / a_.heads * of.batch + head % a_.heads * of.head, of.row};
  }
  size_t number(int head, int i) const {  // of the row's first probability
    return (static_cast<size_t>(head) * a_.length + i) * a_.length;
  }

  // keep_ij of row i
  void draw(int head, int i, int first, int end, float* __restrict keep) const {
    const uint32_t start = static_cast<uint32_t>(number(head, i)), threshold = a_.dropout.threshold;
    const uint64_t seed = a_.dropout.seed;
    const float scale = a_.dropout.scale;
    for (int j = first; j < end; ++j)
      keep[j] = hashed(start + static_cast<uint32_t>(j), seed) < threshold ? 0.0f : scale;
  }

  void attend(int head, const Sight& sight) const {
    alignas(64) float scores[most_length * score_stride];
    float keep[most_length];
    const HeadRows value = rows(a_.value, head), out = rows(a_.out, head);
    score(rows(a_.query, head), rows(a_.key, head), sight, a_.length, a_.width, scores);
    for (int i = 0; i < a_.length; ++i) {
      float* const s = scores + i * score_stride;
      const int first = sight.first[i], end = sight.end[i];
      float most = unseen;
      for (int j = first; j < end; ++j) {
        s[j] = sight.sees(i, j) ? a_.scale * s[j] : unseen;
        most = s[j] > most ? s[j] : most;
      }
      // Whole vectors, of sixteens in the row.
      for (int j = first / 16 * 16; j < first; ++j) s[j] = unseen;
      for (int j = end; j % 16 != 0; ++j) s[j] = unseen;
      Vec total = zero();
      for (int j = first / 16 * 16; j < end; j += Vec::lanes) {
        const Vec e = exp(load(s + j) - broadcast(most));
        total = total + e;
        store(s + j, e);
      }
      const float share = 1.0f / sum(total);
      float* const p = a_.probabilities + number(head, i);
      for (int j = first; j < end; ++j) p[j] = s[j] = s[j] * share;
      if (a_.dropout.threshold != 0) {
        draw(head, i, first, end, keep);
        for (int j = first; j < end; ++j) s[j] *= keep[j];
      }
      combine(out[i], s + first, 1, value[first], value.stride, end - first, a_.width);
    }
  }

  void differentiate(int head, const Sight& sight) const {
    alignas(64) float by_score[most_length * score_stride], dropped[most_length * score_stride];
    float keep[most_length];
    const HeadRows query = rows(a_.query, head), key = rows(a_.key, head);
    const HeadRows value = rows(a_.value, head), by_out = rows(a_.by_out, head);
    const HeadRows by_query = rows(a_.by_query, head), by_key = rows(a_.by_key, head);
    const HeadRows by_value = rows(a_.by_value, head);
    score(by_out, value, sight, a_.length, a_.width, by_score);  // dp, to begin with
    for (int i = 0; i < a_.length; ++i) {
      const float* const p = a_.probabilities + number(head, i);
      float *const by_own = by_score + i * score_stride, *const own = dropped + i * score_stride;
      const int first = sight.first[i], end = sight.end[i];
      std::copy(p + first, p + end, own + first);
      if (a_.dropout.threshold != 0) {
        draw(head, i, first, end, keep);
        for (int j = first; j < end; ++j) own[j] *= keep[j], by_own[j] *= keep[j];
      }
      float mean = 0.0f;
      for (int j = first; j < end; ++j) mean += p[j] * by_own[j];
      for (int j = first; j < end; ++j) by_own[j] = a_.scale * p[j] * (by_own[j] - mean);
      combine(by_query[i], by_own + first, 1, key[first], key.stride, end - first, a_.width);
      if (sight.mask == nullptr) continue;
      for (float* const of : {by_own, own}) {  // rows between those that see a key
        std::fill(of, of + first, 0.0f);
        std::fill(of + end, of + a_.length, 0.0f);
      }
    }
    for (int j = 0; j < a_.length; ++j) {
      const int first = sight.rows_first[j], count = sight.rows_end[j] - first;
      const int at = std::min(first, a_.length - 1);  // of a key that no row sees
      combine(by_key[j], by_score + at * score_stride + j, score_stride, query[at], query.stride,
              count, a_.width);
      combine(by_value[j], dropped + at * score_stride + j, score_stride, by_out[at],
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
