// A critic's weights in one 64-byte aligned block, in the layouts the kernels read.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "refine.h"

namespace dtag {

// Uninitialised floats on a 64-byte boundary.
class AlignedFloats {
 public:
  static constexpr size_t alignment = 64;

  explicit AlignedFloats(size_t count)
      : data_(static_cast<float*>(
            ::operator new(count * sizeof(float), std::align_val_t(alignment)))) {}

  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* pointer) const {
      ::operator delete(pointer, std::align_val_t(alignment));
    }
  };
  std::unique_ptr<float, Free> data_;
};

enum class Precision { fp32, bf16 };

// Where to copy one layer from, dense and unpadded.
struct LayerSource {
  int inputs;
  int outputs;
  const float* weight;
  const float* bias;
  const float* norm_weight;
  const float* norm_bias;
};

class PackedCritic {
 public:
  // Copies everything; `sources` are the hidden layers and the output layer. With bf16 the weights
  // between hidden layers are rounded to bfloat16, to nearest even.
  PackedCritic(int observation_dim, int action_dim, int heads, Activation activation,
               float negative_slope, const float* mean, const float* std,
               const std::vector<LayerSource>& sources, Precision precision);
  PackedCritic(const PackedCritic&) = delete;
  PackedCritic& operator=(const PackedCritic&) = delete;

  const Critic& view() const { return view_; }

 private:
  AlignedFloats floats_;
  std::vector<Layer> layers_;
  Critic view_;
};

}  // namespace dtag
