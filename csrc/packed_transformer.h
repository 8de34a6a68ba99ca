// A sequence model's weights in one 64-byte aligned block, in the layouts the kernels read.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "packed_critic.h"
#include "transformer.h"

namespace dtag {

class PackedTransformer {
 public:
  // The numbers of the tensor of that name in the model's state, dense, of that shape. May throw.
  using Tensors = std::function<const float*(const std::string& name, std::vector<int> shape)>;

  // `sizes` has the numbers and words of a Transformer; its weights are copied from `tensors`. With
  // bf16 those of the blocks' products are rounded to bfloat16, to nearest even.
  PackedTransformer(const Transformer& sizes, int blocks, const Tensors& tensors,
                    Precision precision);
  PackedTransformer(const PackedTransformer&) = delete;
  PackedTransformer& operator=(const PackedTransformer&) = delete;

  const Transformer& view() const { return view_; }

 private:
  AlignedFloats floats_;
  std::vector<Block> blocks_;
  Transformer view_;
};

}  // namespace dtag
