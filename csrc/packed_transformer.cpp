#include "packed_transformer.h"

#include <algorithm>
#include <cmath>

#include "arena.h"
#include "bfloat16.h"

namespace dtag {
namespace {

// Where a number of a matrix or vector goes: heads are padded, all else is as it was.
struct Layout {
  int count;      // numbers
  int head;       // of a head; a multiple of these begins on a multiple of `head_span`
  int head_span;

  int place(int i) const { return i / head * head_span + i % head; }
  int size() const { return count / head * head_span; }
};
Layout plain(int count) { return {count, count, count}; }

class Packer {
 public:
  Packer(float* block, const Transformer& sizes, const PackedTransformer::Tensors& tensors,
         Precision precision)
      : arena_(block),
        sizes_(sizes),
        tensors_(tensors),
        bf16_(precision == Precision::bf16),
        measures_(block == nullptr) {}

  size_t used() const { return arena_.used(); }

  const float* vector(const std::string& name, int count) {
    float* const into = arena_.take(static_cast<size_t>(in_panels(count)));
    const float* const from = tensors_(name, {count});
    if (!measures_) std::copy_n(from, count, into);
    return into;
  }

  const float* table(const std::string& name, int rows, int width) {
    const auto stride = static_cast<size_t>(in_panels(width));
    float* const into = arena_.take(rows * stride);
    const float* const from = tensors_(name, {rows, width});
    for (int row = 0; !measures_ && row < rows; ++row)
      std::copy_n(from + static_cast<size_t>(row) * width, width, into + row * stride);
    return into;
  }

  Norm norm(const std::string& name) {
    Norm made;
    made.weight = vector(name + ".weight", sizes_.width);
    made.bias = vector(name + ".bias", sizes_.width);
    return made;
  }

  Linear linear(const std::string& name, Layout inputs, Layout outputs) {
    return linear(name, inputs, outputs, false);
  }
  // Of a block.
  Linear product(const std::string& name, Layout inputs, Layout outputs) {
    return linear(name, inputs, outputs, bf16_);
  }

  // Query, key and value one after another; the scale of attention is put into the query.
  Linear query_key_value(const std::string& name) {
    const int part = sizes_.attention_span();
    Linear made = begin(sizes_.width, 3 * part, bf16_);
    const float scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes_.head_width())));
    add(made, name + ".query", plain(sizes_.width), heads(), 0, scale);
    add(made, name + ".key", plain(sizes_.width), heads(), part, 1.0f);
    add(made, name + ".value", plain(sizes_.width), heads(), 2 * part, 1.0f);
    return made;
  }

  Layout heads() const {
    return {sizes_.width, sizes_.head_width(), padded(sizes_.head_width())};
  }

 private:
  Linear linear(const std::string& name, Layout inputs, Layout outputs, bool bf16) {
    Linear made = begin(inputs.size(), in_panels(outputs.size()), bf16);
    add(made, name, inputs, outputs, 0, 1.0f);
    return made;
  }

  Linear begin(int inputs, int outputs, bool bf16) {
    Linear made;
    made.inputs = bf16 ? (inputs + 1) / 2 * 2 : inputs;
    made.outputs = outputs;
    const size_t count = static_cast<size_t>(made.inputs) * outputs;
    if (bf16)
      made.weight_bf16 = reinterpret_cast<const uint16_t*>(arena_.take((count + 1) / 2));
    else
      made.weight = arena_.take(count);
    made.bias = arena_.take(static_cast<size_t>(outputs));
    return made;
  }

  // The layer's outputs from number `first` on.
  void add(const Linear& made, const std::string& name, Layout inputs, Layout outputs, int first,
           float scale) {
    const float* const weight = tensors_(name + ".weight", {outputs.count, inputs.count});
    const float* const bias = tensors_(name + ".bias", {outputs.count});
    if (measures_) return;
    for (int j = 0; j < outputs.count; ++j) {
      const int output = first + outputs.place(j);
      const_cast<float*>(made.bias)[output] = scale * bias[j];
      for (int i = 0; i < inputs.count; ++i)
        set(made, output, inputs.place(i), scale * weight[static_cast<size_t>(j) * inputs.count + i]);
    }
  }

  static void set(const Linear& made, int output, int input, float value) {
    const size_t rows = static_cast<size_t>(output / panel) * made.inputs;
    const int column = output % panel;
    if (made.weight != nullptr)
      const_cast<float*>(made.weight)[(rows + input) * panel + column] = value;
    else
      const_cast<uint16_t*>(made.weight_bf16)[(rows + input / 2 * 2) * panel + 2 * column +
                                              input % 2] = to_bfloat16(value);
  }

  Arena arena_;
  const Transformer& sizes_;
  const PackedTransformer::Tensors& tensors_;
  const bool bf16_, measures_;
};

}  // namespace

PackedTransformer::PackedTransformer(const Transformer& sizes, int blocks, const Tensors& tensors,
                                     Precision precision)
    : floats_(0), view_(sizes) {
  const auto pack = [&](float* block) {
    Packer packer(block, sizes, tensors, precision);
    const Layout width = plain(sizes.width);
    view_.mean = packer.vector("normalizer.mean", sizes.observation_dim);
    view_.std = packer.vector("normalizer.std", sizes.observation_dim);
    view_.action_low = packer.vector("action_low", sizes.action_dim);
    view_.action_high = packer.vector("action_high", sizes.action_dim);
    view_.timesteps = packer.table("embed_timestep.weight", sizes.max_timestep, sizes.width);
    view_.embed_observation =
        packer.linear("embed_observation", plain(sizes.observation_dim), width);
    view_.embed_action = packer.linear("embed_action", plain(sizes.action_dim), width);
    view_.embed_return = packer.linear("embed_return", plain(1), width);
    view_.embed_norm = packer.norm("embed_norm");
    blocks_.clear();
    for (int b = 0; b < blocks; ++b) {
      const std::string name = "blocks." + std::to_string(b) + ".";
      Block made;
      made.query_key_value = packer.query_key_value(name + "attention");
      made.projection = packer.product(name + "attention.projection", packer.heads(), width);
      made.attention_norm = packer.norm(name + "attention_norm");
      made.expand = packer.product(name + "expand", width, plain(4 * sizes.width));
      made.contract = packer.product(name + "contract", plain(4 * sizes.width), width);
      made.mlp_norm = packer.norm(name + "mlp_norm");
      blocks_.push_back(made);
    }
    if (sizes.pre_norm) view_.final_norm = packer.norm("final_norm");
    view_.predict_action = packer.linear("predict_action", width, plain(sizes.action_dim));
    if (sizes.predicts_returns)
      view_.predict_return = packer.linear("predict_return", width, plain(1));
    return packer.used();
  };
  const size_t size = pack(nullptr);
  floats_ = AlignedFloats(size);
  std::fill_n(floats_.data(), size, 0.0f);
  pack(floats_.data());
  view_.block_count = blocks;
  view_.blocks = blocks_.data();
}

}  // namespace dtag
