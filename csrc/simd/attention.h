// Self-attention over short sequences, a head at a time, and its derivatives.
//
//   s_ij = scale q_i . k_j,  p_i = softmax of the s_ij that i may see,  out_i = sum keep_ij p_ij v_j
//   dp_ij = keep_ij dout_i . v_j,  ds_ij = p_ij (dp_ij - sum over k of p_ik dp_ik)
//   dq_i = scale sum ds_ij k_j,  dk_j = scale sum ds_ij q_i,  dv_j = sum keep_ij p_ij dout_i
//
// i sees the j that the mask says, or without one those up to i; who sees none gets zeros, as from
// torch. keep is dropout's factor, by the number of the probability in the tensor of all.
#pragma once

#include "../phases.h"
#include "../training.h"
#include "activations.h"
#include "pointwise.h"
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

// Width is that of a head where the compiler is to know it, otherwise 0.
template <int Width>
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
  static constexpr float unseen = -3e38f;

  // What a row sees lies from first to before end; all of it, where mask is null.
  struct Seen {
    int first, end;
    const uint8_t* mask;
  };

  int width() const { return Width == 0 ? a_.width : Width; }

  float* row(const Heads& of, int head, int i) const {
    return of.data + head / a_.heads * of.batch + head % a_.heads * of.head + i * of.row;
  }
  size_t number(int head, int i) const {  // of the row's first probability
    return (static_cast<size_t>(head) * a_.length + i) * a_.length;
  }

  Seen seen(int head, int i) const {
    if (a_.mask == nullptr) return {0, i + 1, nullptr};
    const uint8_t* const mask =
        a_.mask + head / a_.heads * a_.mask_batch + head % a_.heads * a_.mask_head + i * a_.mask_row;
    int first = 0, end = a_.length;
    while (first < end && mask[first] == 0) ++first;
    while (end > first && mask[end - 1] == 0) --end;
    int count = 0;
    for (int j = first; j < end; ++j) count += mask[j] != 0;
    return {first, end, count == end - first ? nullptr : mask};
  }

  // keep [length] of a row
  void draw(int head, int i, const Seen& in, float* __restrict keep) const {
    const uint32_t start = static_cast<uint32_t>(number(head, i)), threshold = a_.dropout.threshold;
    const uint64_t seed = a_.dropout.seed;
    const float scale = a_.dropout.scale;
    for (int j = in.first; j < in.end; ++j)
      keep[j] = hashed(start + static_cast<uint32_t>(j), seed) < threshold ? 0.0f : scale;
  }

  // to [width] = sum over what is seen of factor_j from_j
  void weighted_sum(float* to, const float* factor, const Heads& from, int head,
                    const Seen& in) const {
    const float* const rows = row(from, head, 0);
    for (int d = 0; d < width(); d += Vec::lanes) {
      Vec total[4] = {zero(), zero(), zero(), zero()};  // so that no sum waits for the one before
      int j = in.first;
      for (; j + 4 <= in.end; j += 4)
        for (int k = 0; k < 4; ++k)
          total[k] = fma(broadcast(factor[j + k]), load(rows + (j + k) * from.row + d), total[k]);
      for (; j < in.end; ++j)
        total[0] = fma(broadcast(factor[j]), load(rows + j * from.row + d), total[0]);
      store(to + d, (total[0] + total[1]) + (total[2] + total[3]));
    }
  }

  void attend(int head) const {
    float s[most_length + Vec::lanes], keep[most_length];
    for (int i = 0; i < a_.length; ++i) {
      const Seen in = seen(head, i);
      const float* const q = row(a_.query, head, i);
      float most = unseen;
      for (int j = in.first; j < in.end; ++j) {
        s[j] = a_.scale * inner(q, row(a_.key, head, j), width());
        if (in.mask != nullptr && in.mask[j] == 0) s[j] = unseen;
        most = s[j] > most ? s[j] : most;
      }
      for (int j = in.end; j < in.end + Vec::lanes; ++j) s[j] = unseen;
      Vec total = zero();
      for (int j = in.first; j < in.end; j += Vec::lanes) {
        const Vec e = exp(load(s + j) - broadcast(most));
        total = total + e;
        store(s + j, e);
      }
      const float share = 1.0f / sum(total);
      float* const p = a_.probabilities + number(head, i);
      for (int j = in.first; j < in.end; ++j) p[j] = s[j] = s[j] * share;
      if (a_.dropout.threshold != 0) {
        draw(head, i, in, keep);
        for (int j = in.first; j < in.end; ++j) s[j] *= keep[j];
      }
      weighted_sum(row(a_.out, head, i), s, a_.value, head, in);
    }
  }

  void differentiate(int head) const {
    float by_s[most_length], dropped[most_length], keep[most_length];
    for (int j = 0; j < a_.length; ++j) {
      clear(row(a_.by_key, head, j), width());
      clear(row(a_.by_value, head, j), width());
      keep[j] = 1.0f;
    }
    for (int i = 0; i < a_.length; ++i) {
      const Seen in = seen(head, i);
      const float* const p = a_.probabilities + number(head, i);
      const float* const by_out = row(a_.by_out, head, i);
      if (a_.dropout.threshold != 0) draw(head, i, in, keep);
      float mean = 0.0f;
      for (int j = in.first; j < in.end; ++j) {
        by_s[j] = keep[j] * inner(by_out, row(a_.value, head, j), width());
        mean += p[j] * by_s[j];
      }
      for (int j = in.first; j < in.end; ++j) {
        by_s[j] = a_.scale * p[j] * (by_s[j] - mean);
        dropped[j] = keep[j] * p[j];
      }
      const float* const q = row(a_.query, head, i);
      weighted_sum(row(a_.by_query, head, i), by_s, a_.key, head, in);
      for (int j = in.first; j < in.end; ++j) {
        add_scaled(row(a_.by_key, head, j), by_s[j], q, width());
        add_scaled(row(a_.by_value, head, j), dropped[j], by_out, width());
      }
    }
  }

  const Attention& a_;
  const bool backward_;
  const int heads_;
};

inline void attend(const Attention& attention, bool backward, int threads) {
  if (attention.width == 16)
    run_phases(threads, 1, AttentionPass<16>(attention, backward));
  else if (attention.width == 32)
    run_phases(threads, 1, AttentionPass<32>(attention, backward));
  else if (attention.width == 64)
    run_phases(threads, 1, AttentionPass<64>(attention, backward));
  else
    run_phases(threads, 1, AttentionPass<0>(attention, backward));
}

}  // namespace DTAG_TARGET
}  // namespace dtag
