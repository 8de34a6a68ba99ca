// The native contract of refinement: what every kernel takes and gives back.
//
//   a^{i+1} = project(a^i + update(grad_a Q(s, a^i))),  i = 0 ... steps - 1;
//   the result is the candidate of the highest Q, or the last one.
//
// Pointers and sizes only: nothing here knows Python or torch. The caller checks shapes; a kernel
// assumes them. All floating point is float32, all arrays are dense and row-major; the critic's
// arrays and the floats of a workspace start on 64-byte boundaries.
//
// Sizes: B rows, N starting points a row, S observation numbers, A action numbers, E heads.
// The meaning, NaN rules included, is that of dtag_fast/refinement/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dtag {

enum class Activation { relu, leaky_relu, tanh, gelu, silu, mish, elu };
enum class Optimizer { sgd, momentum, rmsprop, adam };
enum class Ensemble { min, mean, lcb };
enum class Select { best, last };
enum class Gradient { raw, unit };

constexpr float layer_norm_epsilon = 1e-5f;

// One layer of all heads. A hidden layer is Linear -> (LayerNorm ->) activation. Rows are padded
// with zeros to `padded(...)` floats.
struct Layer {
  int inputs = 0;
  int outputs = 0;
  const float* weight = nullptr;       // [E, outputs, padded(inputs)]
  const float* transposed = nullptr;   // [E, inputs, padded(outputs)], the same numbers
  const float* bias = nullptr;         // [E, padded(outputs)]
  const float* norm_weight = nullptr;  // [E, padded(outputs)]; null without LayerNorm
  const float* norm_bias = nullptr;    // [E, padded(outputs)]; null without LayerNorm
  // The same as weight and transposed in bfloat16, without loss; null but between two hidden
  // layers of a critic packed in that precision.
  const uint16_t* weight_bf16 = nullptr;
  const uint16_t* transposed_bf16 = nullptr;
};

// 64 bytes: one cache line, and the longest vector there is.
constexpr int padding = 16;
constexpr int padded(int count) { return (count + padding - 1) / padding * padding; }

// E heads [S + A] -> hidden ... -> 1. The first layer takes the standardised observation, then
// the action.
struct Critic {
  int observation_dim = 0;
  int action_dim = 0;
  int heads = 0;
  Activation activation = Activation::relu;
  float negative_slope = 0.0f;  // of leaky_relu
  bool finite = true;           // no weight or bias is NaN or infinite
  const float* mean = nullptr;  // [S], of the observations
  const float* std = nullptr;   // [S]
  int hidden_layers = 0;
  const Layer* layers = nullptr;  // hidden_layers hidden ones, then the output layer
  // [E, padded(H_1)], 1 / |W_1a[k, :]| of each first-layer unit's weights for the action: times
  // |z_1| the distance by which the action can move before the unit can change its sign. Infinite
  // for weights of zero and for the padding.
  const float* inverse_norm = nullptr;
  // Of a critic whose linear regions can be walked and that has two or more hidden layers, the map
  // to z_2 in its home region: the one where each first-layer unit has the sign of its bias, as at
  // the mean observation and the action 0. Null otherwise.
  const float* home = nullptr;       // [E, S + A, padded(H_2)], (W_2 D W_1)^T
  const float* home_bias = nullptr;  // [E, padded(H_2)], W_2 D b_1 + b_2
};

struct Options {
  int steps = 0;
  double step_size = 0.0;
  Optimizer optimizer = Optimizer::sgd;
  const float* low = nullptr;   // [A]; null without a box
  const float* high = nullptr;  // [A]; null without a box
  Ensemble ensemble = Ensemble::min;
  float lcb_k = 1.0f;
  Select select = Select::best;
  float max_distance = -1.0f;  // negative: no ball
  Gradient gradient = Gradient::raw;
};

struct Batch {
  int64_t rows = 0;                     // B, may be 0
  int64_t starts = 1;                   // N
  const float* observations = nullptr;  // [B, S], raw
  const float* actions = nullptr;       // [B, N, A]

  Batch part(const Critic& critic, int64_t first, int64_t count) const {
    return {count, starts, observations + first * critic.observation_dim,
            actions + first * starts * critic.action_dim};
  }
};

// Written completely, whatever the rows hold.
struct Result {
  float* actions = nullptr;      // [B, A]
  float* q = nullptr;            // [B], of the result
  float* q_initial = nullptr;    // [B], the highest among the row's starting points
  int64_t* best_step = nullptr;  // [B], the candidate's index, 0 ... steps
  int64_t* start = nullptr;      // [B], the starting point it came from, 0 ... N - 1
  float* distance = nullptr;     // [B], L2, from that point (projected) to the result
  int64_t* flips = nullptr;      // [B], hidden units of all heads whose sign a walk saw change
  int64_t* dense_steps = nullptr;  // [B], steps of all starting points taken by the full network

  Result from(const Critic& critic, int64_t first) const {
    return {actions + first * critic.action_dim, q + first, q_initial + first, best_step + first,
            start + first, distance + first, flips + first, dense_steps + first};
  }
};

// Scratch memory of one call; two calls at once need two. A kernel allocates nothing itself.
struct Workspace {
  float* floats = nullptr;
  int32_t* indices = nullptr;
};

struct WorkspaceSize {
  size_t floats = 0;
  size_t indices = 0;
};

struct Kernel {
  void (*run)(const Critic&, const Options&, const Batch&, const Result&,
              const Workspace&) = nullptr;
  WorkspaceSize (*workspace_size)(const Critic&) = nullptr;
};

// Readable C++ for any CPU, any critic and all options: the specification of the other kernels,
// which hand it the rows in which they meet a number that is not finite.
WorkspaceSize workspace_size_scalar(const Critic& critic);
void refine_scalar(const Critic& critic, const Options& options, const Batch& batch,
                   const Result& result, const Workspace& workspace);

}  // namespace dtag
