// The native contract of training: matrix products, and the update of an IQL critic. All memory is
// the caller's; sizes are checked in Python. No result depends on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dtag {

// A matrix anywhere in memory: element (i, k) is data[i * row + k * column].
struct Matrix {
  const float* data;
  ptrdiff_t row, column;
};

// out [rows, columns] = a [rows, inner] b [inner, columns] + bias [columns], where bias may be null
// and inner is at least 1. Rows of out are `out_stride` apart. So `count` times, each of them further
// on in memory by the next_ strides.
struct Product {
  int rows, columns, inner;
  Matrix a, b;
  const float* bias;
  float* out;
  ptrdiff_t out_stride;
  int count = 1;
  ptrdiff_t next_a = 0, next_b = 0, next_bias = 0, next_out = 0;
};

// Parameters as torch keeps them, with what Adam and a target network keep beside them.
struct TrainedTensor {
  float* value;
  float* mean;    // exp_avg
  float* square;  // exp_avg_sq
  float* target;  // null where there is none
};

struct TrainedLayer {
  int inputs, outputs;
  TrainedTensor weight;  // [E, outputs, inputs]
  TrainedTensor bias;    // [E, outputs]
};

// E MLPs of one shape with at least one hidden layer and one output.
struct TrainedNetwork {
  int heads, layers;
  const TrainedLayer* layer;
};

struct Iql {
  int observation_dim, action_dim, batch;
  float negative_slope;  // of the hidden layers' LeakyReLU; 0 makes it ReLU
  float discount, expectile, polyak;
  bool joint;           // Q's targets come from V as it was before its update
  float q_loss_factor;  // 1 for the sum over heads, 1 / E for their mean
  const float* mean;    // [S], of the observations
  const float* std;     // [S]
  TrainedNetwork q, value;  // of equal hidden layers; V has one head, and only Q has targets
};

// Adam at some step: the learning rate divided by the mean's bias correction, and the factor of the
// root of the square that corrects its bias.
struct Adam {
  float rate, root_factor, epsilon;
  double beta1, beta2;  // 1 - beta2 has no digits to lose
};

// rows [any, 2 S + A + 2] hold observation, action, next observation, reward, and 0 after a
// termination, 1 otherwise; index [batch] picks them. losses [4]: of Q, of V, mean Q, mean V.
struct IqlBatch {
  const float* rows;
  const int64_t* index;
  Adam adam;
  float* losses;
};

// Element i is dropped where a hash of i and the seed, uniform over 32 bits, is below the threshold;
// the others are multiplied by the scale.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;
  float scale;
};

// A tensor [batch, heads, length, width] whose last dimension has no gaps, by strides in floats.
struct Heads {
  float* data;
  ptrdiff_t batch, head, row;
};

constexpr int most_length = 128;  // of Attention

// Attention, see simd/attention.h. probabilities [batch, heads, length, length] connect the forward
// pass, which writes out and them, with the backward pass, which writes by_query, by_key and
// by_value. width is a multiple of 16. A byte of the mask [batch, heads, length, length], by strides
// of the first three, is not 0 where a row may look; null is the causal mask.
struct Attention {
  int batch, heads, length, width;
  float scale;
  Heads query, key, value, out, by_out, by_query, by_key, by_value;
  float* probabilities;
  const uint8_t* mask;
  ptrdiff_t mask_batch, mask_head, mask_row;
  Dropout dropout;
};

struct LambTensor {
  float* value;
  const float* gradient;
  float *mean, *square;  // exp_avg, exp_avg_sq
  int64_t elements;
};

// LAMB at some step: mean_factor and root_factor correct the bias of the mean and of the root of the
// square; gradients are multiplied by gradient_factor first. Without weight decay no step is scaled.
struct Lamb {
  float rate, mean_factor, root_factor, epsilon, weight_decay, gradient_factor;
  double beta1, beta2;
};

// Of one instruction set. Workspaces are numbers of floats; memory is aligned to 64 bytes.
struct TrainingKernels {
  size_t (*multiply_workspace)(const Product& product);
  void (*multiply)(const Product& product, float* workspace, int threads);
  size_t (*iql_workspace)(const Iql& iql);
  void (*iql_step)(const Iql& iql, const IqlBatch& batch, float* workspace, int threads);
  void (*gelu)(const float* x, float* value, float* slope, int64_t elements, int threads);
  void (*dropout)(const float* x, float* out, int64_t elements, const Dropout& how, int threads);
  void (*attend)(const Attention& attention, bool backward, int threads);
  int64_t (*lamb_sums)(const LambTensor* tensors, int count);  // how many lamb_step needs
  void (*lamb_step)(const LambTensor* tensors, int count, const Lamb& lamb, double* sums,
                    int threads);
};

extern const TrainingKernels training_avx512;
extern const TrainingKernels training_avx2;
extern const TrainingKernels training_baseline;
extern const TrainingKernels training_neon;

}  // namespace dtag
