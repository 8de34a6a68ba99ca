// Tokens through the blocks: those of several environments together, so that weights are read once
// for all. An environment's tokens never meet another's, and every sum is taken in the same order
// whatever is computed beside it.
//
//   q, k, v = W x;  x = norm(x + W_o attention(q, k, v));  x = norm(x + W_2 act(W_1 x))
//
// or with each norm before its half. In the last block of the old tokens only k and v are computed,
// of the last one all.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../arena.h"
#include "../bfloat16.h"
#include "../transformer.h"
#include "activations.h"
#include "panels.h"

namespace dtag {
inline namespace DTAG_TARGET {

// normed [span] of x [span], of which the first `width` numbers count; may be x itself.
inline void layer_norm(const Norm& norm, const float* x, int width, int span, float* normed) {
  const int whole = width / Vec::lanes * Vec::lanes;
  const auto mean_of = [&](const auto& term, const auto& vector_term) {
    Vec partial = zero();
    for (int j = 0; j < whole; j += Vec::lanes) partial = partial + vector_term(load(x + j));
    float total = sum(partial);
    for (int j = whole; j < width; ++j) total += term(x[j]);
    return total / static_cast<float>(width);
  };
  const float mean = mean_of([](float v) { return v; }, [](Vec v) { return v; });
  const Vec center = broadcast(mean);
  const float variance = mean_of([=](float v) { return (v - mean) * (v - mean); },
                                 [=](Vec v) { return (v - center) * (v - center); });
  const Vec scale = broadcast(1.0f / std::sqrt(variance + layer_norm_epsilon));
  for (int j = 0; j < span; j += Vec::lanes)
    store(normed + j,
          fma((load(x + j) - center) * scale, load(norm.weight + j), load(norm.bias + j)));
}

class TransformerRun {
 public:
  static size_t memory(const Transformer& model, int64_t tokens) {
    Arena arena(nullptr);
    TransformerRun(model, {}, nullptr).lay_out(arena, tokens);
    return arena.used();
  }

  TransformerRun(const Transformer& model, const Advance& advance, float* workspace)
      : model_(model),
        advance_(advance),
        span_(model.span()),
        part_(model.attention_span()),
        x_stride_(stride_of(span_)),
        qkv_stride_(stride_of(3 * part_)),
        part_stride_(stride_of(part_)),
        hidden_stride_(stride_of(std::max(model.hidden_span(), part_))) {
    for (int i = 0; i < advance.count; ++i)
      tokens_ += static_cast<int>(tokens_to_enter(*advance.episodes[i], advance.last));
    Arena arena(workspace);
    if (workspace != nullptr) lay_out(arena, tokens_);
  }

  void run() {
    make_rows();
    gather();
    for (int b = 0; b < model_.block_count; ++b) {
      const bool last = b + 1 == model_.block_count;
      if (b > 0) project(b, last);
      keep(b);
      if (last) only_last_tokens();
      attend(b, last);
      tail(model_.blocks[b]);
    }
    for (int i = 0; i < advance_.count; ++i) {
      const float* const x = x_ + static_cast<size_t>(i) * x_stride_;
      float* const hidden = advance_.hidden + static_cast<size_t>(i) * span_;
      if (model_.final_norm.weight == nullptr)
        std::memcpy(hidden, x, span_ * sizeof(float));
      else
        layer_norm(model_.final_norm, x, model_.width, span_, hidden);
      advance_.episodes[i]->entered = end(*advance_.episodes[i]);
    }
  }

 private:
  // Rows a cache line longer than they need be: with lengths of powers of two, rows beside each
  // other would compete for the same few places in the first-level cache.
  static int stride_of(int span) { return span + padding; }

  // Everything is [tokens, ...].
  void lay_out(Arena& arena, int64_t tokens) {
    const auto count = static_cast<size_t>(tokens);
    x_ = arena.take(count * x_stride_);
    normed_ = arena.take(count * x_stride_);
    qkv_ = arena.take(count * qkv_stride_);
    attended_ = arena.take(count * part_stride_);
    hidden_ = arena.take(count * hidden_stride_);
    scores_ = arena.take(count * model_.columns());
    inputs_ = arena.take(count * model_.input_span());
    rounded_ = reinterpret_cast<bfloat16*>(arena.take(count * hidden_stride_));
  }

  int64_t end(const Episode& episode) const {
    return tokens_per_step * episode.step + advance_.last + 1;
  }
  float* row_of(const Episode& episode, int64_t number) const {
    return episode.embedded + static_cast<size_t>(number % model_.rows()) * model_.row_span();
  }
  int slot_of(const Episode& episode, int64_t number) const {
    return static_cast<int>(model_.sliding ? number % model_.slots() : number - episode.first);
  }
  float* keys_of(const Episode& episode, int b) const {
    return episode.keys + static_cast<size_t>(b) * part_ * model_.columns();
  }
  float* values_of(const Episode& episode, int b) const {
    return episode.values + static_cast<size_t>(b) * model_.columns() * part_;
  }
  // Calls use(episode, number) for each token that enters, in the order of the work arrays.
  template <typename Use>
  void for_tokens(const Use& use) const {
    for (int i = 0; i < advance_.count; ++i)
      for (int64_t n = advance_.episodes[i]->entered; n < end(*advance_.episodes[i]); ++n)
        use(*advance_.episodes[i], n);
  }

  // The rows of tokens that are new: embeddings, a kind at a time, then the first block's query,
  // key and value.
  void make_rows() {
    for (const TokenKind kind : {TokenKind::observation, TokenKind::action, TokenKind::token})
      embed(kind);
    const Block& first = model_.blocks[0];
    int count = 0;
    for_new_rows([&](const Episode& episode, int64_t number) {
      const float* const row = row_of(episode, number);
      float* const x = normed_ + static_cast<size_t>(count++) * x_stride_;
      if (model_.pre_norm)
        layer_norm(first.attention_norm, row, model_.width, span_, x);
      else
        std::memcpy(x, row, span_ * sizeof(float));
    });
    product<Start::bias>(first.query_key_value, normed_, x_stride_, count, qkv_, qkv_stride_);
    count = 0;
    for_new_rows([&](const Episode& episode, int64_t number) {
      std::memcpy(row_of(episode, number) + span_,
                  qkv_ + static_cast<size_t>(count++) * qkv_stride_, 3 * part_ * sizeof(float));
    });
    for (int i = 0; i < advance_.count; ++i)
      advance_.episodes[i]->ready = end(*advance_.episodes[i]);
  }

  // As multiply(), in the precision of the layer's weights.
  template <Start start, typename Then = NothingThen>
  void product(const Linear& linear, const float* x, size_t x_stride, int rows, float* out,
               size_t out_stride, const Then& then = {}) const {
    if (linear.weight != nullptr) {
      multiply<FloatTerms, start>(linear, x, x_stride, rows, out, out_stride, then);
      return;
    }
    const auto stride = static_cast<size_t>(stride_of(linear.inputs));
    for (int r = 0; r < rows; ++r)
      for (int k = 0; k < linear.inputs; ++k) rounded_[r * stride + k] = to_bfloat16(x[r * x_stride + k]);
    if (multiplies_bf16())
      multiply<DotTerms, start>(linear, rounded_, stride, rows, out, out_stride, then);
    else
      multiply<PairTerms, start>(linear, rounded_, stride, rows, out, out_stride, then);
  }

  template <typename Use>
  void for_new_rows(const Use& use) const {
    for_tokens([&](const Episode& episode, int64_t number) {
      if (number >= episode.ready) use(episode, number);
    });
  }

  void embed(TokenKind kind) {
    const Linear& layer = kind == TokenKind::observation ? model_.embed_observation
                          : kind == TokenKind::action    ? model_.embed_action
                                                         : model_.embed_return;
    const int stride = model_.input_span();
    int count = 0;
    for_new_rows([&](const Episode& episode, int64_t number) {
      if (model_.kind(number) != kind) return;
      const float* const raw =
          episode.inputs + static_cast<size_t>(number % model_.rows()) * stride;
      float* const x = inputs_ + static_cast<size_t>(count) * stride;
      for (int j = 0; j < layer.inputs; ++j) {
        if (kind == TokenKind::observation) {
          x[j] = (raw[j] - model_.mean[j]) / model_.std[j];
        } else if (kind == TokenKind::action) {
          const float low = model_.action_low[j], high = model_.action_high[j];
          x[j] = (raw[j] - (high + low) / 2.0f) / ((high - low) / 2.0f);
        } else {
          x[j] = raw[j] / model_.rtg_scale;
        }
      }
      ++count;
    });
    product<Start::bias>(layer, inputs_, stride, count, x_, x_stride_);
    count = 0;
    for_new_rows([&](const Episode& episode, int64_t number) {
      if (model_.kind(number) != kind) return;
      float* const x = x_ + static_cast<size_t>(count++) * x_stride_;
      const float* const time =
          model_.timesteps + static_cast<size_t>(number / tokens_per_step) * span_;
      for (int j = 0; j < span_; j += Vec::lanes) store(x + j, load(x + j) + load(time + j));
      layer_norm(model_.embed_norm, x, model_.width, span_, row_of(episode, number));
    });
  }

  void gather() {
    int at = 0;
    for_tokens([&](const Episode& episode, int64_t number) {
      const float* const row = row_of(episode, number);
      std::memcpy(x_ + static_cast<size_t>(at) * x_stride_, row, span_ * sizeof(float));
      std::memcpy(qkv_ + static_cast<size_t>(at) * qkv_stride_, row + span_,
                  3 * part_ * sizeof(float));
      ++at;
    });
  }

  // Query, key and value of all tokens; in the last block no query but that of each last one.
  void project(int b, bool last) {
    const Block& block = model_.blocks[b];
    const float* x = x_;
    if (model_.pre_norm) {
      norm_all(block.attention_norm, x_, normed_, tokens_);
      x = normed_;
    }
    const Linear& all = block.query_key_value;
    if (!last) {
      product<Start::bias>(all, x, x_stride_, tokens_, qkv_, qkv_stride_);
      return;
    }
    product<Start::bias>(all.part(part_, 2 * part_), x, x_stride_, tokens_, qkv_ + part_,
                          qkv_stride_);
    // Rows with the queries of last tokens, gathered.
    for_last_tokens([&](int i, int at) {
      std::memcpy(attended_ + static_cast<size_t>(i) * part_stride_,
                  x + static_cast<size_t>(at) * x_stride_, span_ * sizeof(float));
    });
    product<Start::bias>(all.part(0, part_), attended_, part_stride_, advance_.count, hidden_,
                          hidden_stride_);
    for_last_tokens([&](int i, int at) {
      std::memcpy(qkv_ + static_cast<size_t>(at) * qkv_stride_,
                  hidden_ + static_cast<size_t>(i) * hidden_stride_, part_ * sizeof(float));
    });
  }

  // Calls use(i, row in the work arrays) for each environment's last token.
  template <typename Use>
  void for_last_tokens(const Use& use) const {
    int at = -1;
    for (int i = 0; i < advance_.count; ++i) {
      at += static_cast<int>(tokens_to_enter(*advance_.episodes[i], advance_.last));
      use(i, at);
    }
  }

  // Keys and values to where later tokens find them. Keys are transposed: a column a slot.
  void keep(int b) const {
    const int columns = model_.columns();
    int at = 0;
    for_tokens([&](Episode& episode, int64_t number) {
      const int slot = slot_of(episode, number);
      const float* const row = qkv_ + static_cast<size_t>(at++) * qkv_stride_;
      float* const key = keys_of(episode, b) + slot;
      for (int j = 0; j < part_; ++j) key[static_cast<size_t>(j) * columns] = row[part_ + j];
      std::memcpy(values_of(episode, b) + static_cast<size_t>(slot) * part_, row + 2 * part_,
                  part_ * sizeof(float));
      episode.numbers[slot] =
          static_cast<float>(model_.sliding ? number : static_cast<int64_t>(slot));
    });
  }

  // From now on the work arrays have a row an environment.
  void only_last_tokens() {
    for_last_tokens([&](int i, int at) {
      std::memmove(x_ + static_cast<size_t>(i) * x_stride_, x_ + static_cast<size_t>(at) * x_stride_,
                   span_ * sizeof(float));
      std::memmove(qkv_ + static_cast<size_t>(i) * qkv_stride_,
                   qkv_ + static_cast<size_t>(at) * qkv_stride_, part_ * sizeof(float));
    });
    rows_ = advance_.count;
  }

  void attend(int b, bool last) {
    if (!last) rows_ = tokens_;
    const int head_span = padded(model_.head_width());
    int at = 0;
    for (int i = 0; i < advance_.count; ++i) {
      const Episode& episode = *advance_.episodes[i];
      const int64_t until = end(episode);
      const int64_t from = last ? until - 1 : episode.entered;
      const int count = static_cast<int>(until - from);
      const int slots = model_.sliding ? model_.slots() : static_cast<int>(until - episode.first);
      const int columns = padded(slots);
      const float* const query = qkv_ + static_cast<size_t>(at) * qkv_stride_;
      for (int h = 0; h < model_.heads; ++h) {
        multiply_rows(keys_of(episode, b) + static_cast<size_t>(h) * head_span * model_.columns(),
                      model_.columns(), columns, model_.head_width(), query + h * head_span,
                      qkv_stride_, count, scores_, columns);
        for (int r = 0; r < count; ++r) weigh(episode, from + r, scores_ + r * columns, columns);
        multiply_rows(values_of(episode, b) + h * head_span, part_, head_span, slots, scores_,
                      columns, count, attended_ + static_cast<size_t>(at) * part_stride_ + h * head_span,
                      part_stride_);
      }
      at += count;
    }
  }

  // The softmax over what token `number` sees; 0 elsewhere.
  void weigh(const Episode& episode, int64_t number, float* scores, int columns) const {
    int64_t oldest = 0, own = number - episode.first;
    if (model_.sliding) {
      own = number;
      oldest = std::max<int64_t>(
          0, tokens_per_step * (number / tokens_per_step - model_.window + 1));
    }
    const Vec low = broadcast(static_cast<float>(oldest));
    const Vec high = broadcast(static_cast<float>(own));
    const Vec nothing = broadcast(-std::numeric_limits<float>::infinity());
    Vec largest = nothing;
    for (int j = 0; j < columns; j += Vec::lanes) {
      const Vec at = load(episode.numbers + j);
      const Vec score = select(low <= at, select(at <= high, load(scores + j), nothing), nothing);
      store(scores + j, score);
      largest = select(score <= largest, largest, score);  // a NaN is kept
    }
    float lanes[Vec::lanes];
    store(lanes, largest);
    float most = lanes[0];
    for (int i = 1; i < Vec::lanes; ++i) most = lanes[i] <= most ? most : lanes[i];
    const Vec peak = broadcast(most);
    Vec total = zero();
    for (int j = 0; j < columns; j += Vec::lanes) {
      const Vec weight = exp(load(scores + j) - peak);
      store(scores + j, weight);
      total = total + weight;
    }
    const Vec share = broadcast(1.0f / sum(total));
    for (int j = 0; j < columns; j += Vec::lanes) store(scores + j, load(scores + j) * share);
  }

  // The rest of a block after its attention.
  void tail(const Block& block) {
    product<Start::bias_and_out>(block.projection, attended_, part_stride_, rows_, x_, x_stride_);
    const float* x = x_;
    if (model_.pre_norm) {
      norm_all(block.mlp_norm, x_, normed_, rows_);
      x = normed_;
    } else {
      norm_all(block.attention_norm, x_, x_, rows_);
    }
    const int wide = hidden_stride_;
    product<Start::bias>(block.expand, x, x_stride_, rows_, hidden_, wide,
                          [&](int first, int rows, int column, int columns) {
                            for (int r = first; r < first + rows; ++r)
                              activate_hidden(hidden_ + static_cast<size_t>(r) * wide + column,
                                              columns);
                          });
    product<Start::bias_and_out>(block.contract, hidden_, wide, rows_, x_, x_stride_);
    if (!model_.pre_norm) norm_all(block.mlp_norm, x_, x_, rows_);
  }

  void activate_hidden(float* z, int count) const {
    const Vec unused = zero();
    if (model_.relu)
      for (int j = 0; j < count; j += Vec::lanes)
        store(z + j, activate<Activation::relu>(load(z + j), unused).value);
    else
      for (int j = 0; j < count; j += Vec::lanes)
        store(z + j, activate<Activation::gelu>(load(z + j), unused).value);
  }

  void norm_all(const Norm& norm, const float* x, float* normed, int rows) const {
    for (int r = 0; r < rows; ++r)
      layer_norm(norm, x + static_cast<size_t>(r) * x_stride_, model_.width, span_,
                 normed + static_cast<size_t>(r) * x_stride_);
  }

  const Transformer& model_;
  const Advance advance_;
  const int span_, part_, x_stride_, qkv_stride_, part_stride_, hidden_stride_;
  int tokens_ = 0, rows_ = 0;
  float *x_ = nullptr, *normed_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr;
  float *hidden_ = nullptr, *scores_ = nullptr, *inputs_ = nullptr;
  bfloat16* rounded_ = nullptr;
};

inline void advance_transformer(const Transformer& model, const Advance& advance,
                                float* workspace) {
  TransformerRun(model, advance, workspace).run();
}

inline size_t workspace_size_transformer(const Transformer& model, int64_t tokens) {
  return TransformerRun::memory(model, tokens);
}

inline void apply_linear(const Linear& linear, const float* x, size_t x_stride, int rows,
                         float* out, size_t stride) {
  multiply<FloatTerms, Start::bias>(linear, x, x_stride, rows, out, stride, NothingThen{});
}

}  // namespace DTAG_TARGET
}  // namespace dtag
