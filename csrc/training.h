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
// and inner is at least 1. Rows of out are `out_stride` apart.
struct Product {
  int rows, columns, inner;
  Matrix a, b;
  const float* bias;
  float* out;
  ptrdiff_t out_stride;
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
  float rate, root_factor, beta1, beta2, epsilon;
};

// rows [any, 2 S + A + 2] hold observation, action, next observation, reward, and 0 after a
// termination, 1 otherwise; index [batch] picks them. losses [4]: of Q, of V, mean Q, mean V.
struct IqlBatch {
  const float* rows;
  const int64_t* index;
  Adam adam;
  float* losses;
};

// Of one instruction set. Workspaces are numbers of floats; memory is aligned to 64 bytes.
struct TrainingKernels {
  size_t (*multiply_workspace)(const Product& product);
  void (*multiply)(const Product& product, float* workspace, int threads);
  size_t (*iql_workspace)(const Iql& iql);
  void (*iql_step)(const Iql& iql, const IqlBatch& batch, float* workspace, int threads);
};

extern const TrainingKernels training_avx512;
extern const TrainingKernels training_avx2;
extern const TrainingKernels training_baseline;
extern const TrainingKernels training_neon;

}  // namespace dtag
