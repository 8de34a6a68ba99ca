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
  // The smallest multiple of 64 bytes that holds `count` floats, in floats.
  static constexpr size_t padded(size_t count) {
    constexpr size_t step = alignment / sizeof(float);
    return (count + step - 1) / step * step;
  }

  explicit AlignedFloats(size_t count)
      : data_(static_cast<float*>(
            ::operator new(padded(count) * sizeof(float), std::align_val_t(alignment)))) {}

  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* pointer) const {
      ::operator delete(pointer, std::align_val_t(alignment));
    }
  };
  std::unique_ptr<float, Free> data_;
};

// Where to copy one layer from; the shapes are those of Layer, `transposed` is made here.
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
  // Copies everything; `sources` are the hidden layers and the output layer.
  PackedCritic(int observation_dim, int action_dim, int heads, Activation activation,
               float negative_slope, const float* mean, const float* std,
               const std::vector<LayerSource>& sources);
  PackedCritic(const PackedCritic&) = delete;
  PackedCritic& operator=(const PackedCritic&) = delete;

  const Critic& view() const { return view_; }

 private:
  AlignedFloats floats_;
  std::vector<Layer> layers_;
  Critic view_;
};

}  // namespace dtag
