// One refinement with numbers of its own: a critic's weights, a batch, options. All of it follows
// from the settings, on every platform alike.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "packed_critic.h"
#include "refine.h"

namespace dtag::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  int below(int bound) { return static_cast<int>(next() % static_cast<uint64_t>(bound)); }
  float uniform(float low, float high) {
    return low + (high - low) * (static_cast<float>(next() >> 40) * 0x1p-24f);
  }

 private:
  uint64_t state_;
};

struct Settings {
  int observation_dim = 5;
  int action_dim = 3;
  int heads = 2;
  std::vector<int> hidden = {33, 20};
  Activation activation = Activation::relu;
  float negative_slope = 0.01f;
  bool layer_norm = false;
  Precision precision = Precision::fp32;
  Options options;    // without a box
  bool boxed = true;  // [-1, 1], and narrower in the last dimension
  int64_t rows = 5;
  int64_t starts = 1;
  float gain = 2.0f;  // of the weights
  uint64_t seed = 0;
};

std::string to_string(const Settings& settings);

// Whether an update may blow rounding up without limit. In a layer of few units all of them may be
// off; the gradient is 0 there, that of a walk what rounding left of it, and these updates divide by
// its length.
bool amplifies_rounding(const Settings& settings);

struct Problem {
  explicit Problem(const Settings& settings);

  PackedCritic pack() const;
  Options options() const;  // they point into this problem

  // The same in float32, with the weights that packing rounds rounded.
  Problem as_packed() const;

  // The same, every number but the box off by up to one part in a million; so is leaky_relu's slope
  // on the left, of that on the right, which is what a walk subtracts to get there.
  Problem shaken(uint64_t seed) const;

  // Every array of numbers but the box.
  std::vector<std::vector<float>*> numbers();

  struct LayerNumbers {
    int inputs;
    int outputs;
    std::vector<float> weight, bias, norm_weight, norm_bias;  // [E, ...]; norms may be empty
  };

  Settings settings;
  std::vector<float> mean, std;
  std::vector<LayerNumbers> layers;
  std::vector<float> observations, actions;
  std::vector<float> low, high;  // empty without a box
};

}  // namespace dtag::test
