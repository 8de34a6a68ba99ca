// The native contract of acting: a sequence model's weights, what is kept of the episodes under way,
// and the one function that computes: take tokens through the blocks.
//
// Tokens of an episode are numbered tau = 3 t + o: token o = 0, 1, 2 of timestep t, in the order of
// the model's kind. A token's row, its embedding and the first block's query, key and value, depends
// on nothing but itself, so it is kept as long as its step is in the window. Keys and values of the
// blocks above depend on what the token sees. With full attention they are made anew at every step,
// for all tokens of the window; with sliding attention they stay, in rings.
//
// As in refine.h pointers and sizes only, float32, rows padded with zeros, 64-byte boundaries. The
// meaning is that of dtag_fast/models/decision_transformer.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refine.h"

namespace dtag {

constexpr int tokens_per_step = 3;

// Weights are stored by panels of so many outputs, so that a product reads them as one stream.
constexpr int panel = 32;
constexpr int in_panels(int count) { return (count + panel - 1) / panel * panel; }

// out = W x + b. In bfloat16 both W and x are rounded to it, and sums are float32.
struct Linear {
  int inputs = 0;                 // even in bfloat16; an input beyond those there are is 0
  int outputs = 0;                // a multiple of panel
  const float* weight = nullptr;  // [outputs / panel, inputs, panel]; or null and
  const uint16_t* weight_bf16 = nullptr;  // [outputs / panel, inputs / 2, panel, 2]
  const float* bias = nullptr;            // [outputs]

  // Some of the outputs; both numbers are multiples of panel.
  Linear part(int first, int count) const {
    const size_t skipped = static_cast<size_t>(first) * inputs;
    return {inputs, count, weight == nullptr ? nullptr : weight + skipped,
            weight_bf16 == nullptr ? nullptr : weight_bf16 + skipped, bias + first};
  }
};

struct Norm {  // LayerNorm; null where there is none
  const float* weight = nullptr;  // [span]
  const float* bias = nullptr;    // [span]
};

struct Block {
  Linear query_key_value;  // to [3, attention span]; each head's numbers padded(...) apart
  Linear projection;       // from [attention span]
  Linear expand;           // to [4 width]
  Linear contract;
  Norm attention_norm;
  Norm mlp_norm;
};

enum class TokenKind { observation, action, token };

struct Transformer {
  int observation_dim = 0;  // S
  int action_dim = 0;       // A
  int window = 0;           // K, steps
  int width = 0;            // D
  int heads = 0;
  int max_timestep = 0;
  bool predicts_returns = false;  // Reinformer; token order (s, R, a) instead of (R, s, a)
  bool sliding = false;
  bool pre_norm = false;
  bool relu = false;  // else gelu
  float rtg_scale = 1.0f;
  const float* mean = nullptr;         // [S]
  const float* std = nullptr;          // [S]
  const float* action_low = nullptr;   // [A]
  const float* action_high = nullptr;  // [A]
  const float* timesteps = nullptr;    // [max_timestep, span]
  Linear embed_observation, embed_action, embed_return;
  Norm embed_norm, final_norm;
  int block_count = 0;
  const Block* blocks = nullptr;
  Linear predict_action, predict_return;

  // Of a token's numbers.
  int span() const { return in_panels(width); }
  int head_width() const { return width / heads; }
  int attention_span() const { return in_panels(heads * padded(head_width())); }
  int hidden_span() const { return in_panels(4 * width); }
  int row_span() const { return span() + 3 * attention_span(); }
  // Tokens whose rows are kept, and of which keys and values are.
  int rows() const { return tokens_per_step * window; }
  int slots() const { return tokens_per_step * (window + (sliding ? 1 : 0)); }
  int columns() const { return padded(slots()); }
  int input_span() const {
    return padded(observation_dim > action_dim ? observation_dim : action_dim);
  }
  TokenKind kind(int64_t number) const {
    const auto order = static_cast<int>(number % tokens_per_step);
    if (order == 2) return TokenKind::action;
    return (order == 0) == predicts_returns ? TokenKind::observation : TokenKind::token;
  }
};

// What is kept of an environment's episode.
struct Episode {
  int64_t step = -1;     // t; -1 before the first
  int64_t first = 0;     // number of the window's first token
  int64_t ready = 0;     // tokens before this one have their rows
  int64_t entered = 0;   // tokens before this one, from `first` on, have their keys and values
  float token = 0.0f;    // the return token written last
  float* inputs = nullptr;   // [rows, input span], raw; token tau in row tau mod rows
  float* embedded = nullptr; // [rows, row span], likewise
  float* keys = nullptr;     // [blocks, attention span, columns]
  float* values = nullptr;   // [blocks, columns, attention span]
  float* numbers = nullptr;  // [columns], of the token in each slot; below 0 where there is none
};

// Of some environments, the tokens up to token `last` (0, 1, 2) of their current steps.
struct Advance {
  Episode* const* episodes = nullptr;
  int count = 0;  // of them
  int last = 0;
  float* hidden = nullptr;  // [count, span]: of the last tokens, after the last norm
};

// Number of tokens that have to go through the blocks.
inline int64_t tokens_to_enter(const Episode& episode, int last) {
  return tokens_per_step * episode.step + last + 1 - episode.entered;
}

struct TransformerKernel {
  // Enters the tokens.
  void (*advance)(const Transformer&, const Advance&, float* workspace) = nullptr;
  // Floats for so many tokens together.
  size_t (*workspace_size)(const Transformer&, int64_t tokens) = nullptr;
  // out [rows, stride] for x [rows, x_stride], of one in float32
  void (*linear)(const Linear&, const float* x, size_t x_stride, int rows, float* out,
                 size_t stride) = nullptr;
};

}  // namespace dtag
