// What bindings share: words, and the options of a refinement with the memory they need.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cost_model.h"
#include "packed_critic.h"
#include "python_words.h"
#include "refine.h"

namespace dtag {

namespace py = pybind11;

inline Precision precision_named(const std::string& name) {
  static const std::map<std::string, Precision> precisions = {{"fp32", Precision::fp32},
                                                              {"bf16", Precision::bf16}};
  return word("precision", name, precisions);
}

// Options with the memory of their box.
class OwnedOptions {
 public:
  OwnedOptions(int steps, double step_size, const std::string& optimizer, std::vector<float> low,
               std::vector<float> high, const std::string& ensemble, float lcb_k,
               const std::string& select, std::optional<float> max_distance,
               const std::string& gradient)
      : low_(std::move(low)), high_(std::move(high)) {
    static const std::map<std::string, Optimizer> optimizers = {
        {"sgd", Optimizer::sgd},
        {"momentum", Optimizer::momentum},
        {"rmsprop", Optimizer::rmsprop},
        {"adam", Optimizer::adam}};
    static const std::map<std::string, Ensemble> ensembles = {
        {"min", Ensemble::min}, {"mean", Ensemble::mean}, {"lcb", Ensemble::lcb}};
    static const std::map<std::string, Select> selects = {{"best", Select::best},
                                                          {"last", Select::last}};
    static const std::map<std::string, Gradient> gradients = {{"raw", Gradient::raw},
                                                              {"unit", Gradient::unit}};
    if (low_.size() != high_.size())
      throw py::value_error("low, high: expected as many numbers in one as in the other");
    view_.steps = steps;
    view_.step_size = step_size;
    view_.optimizer = word("optimizer", optimizer, optimizers);
    view_.low = low_.empty() ? nullptr : low_.data();
    view_.high = high_.empty() ? nullptr : high_.data();
    view_.ensemble = word("ensemble", ensemble, ensembles);
    view_.lcb_k = lcb_k;
    view_.select = word("select", select, selects);
    view_.max_distance = max_distance.value_or(-1.0f);
    view_.gradient = word("gradient", gradient, gradients);
  }
  OwnedOptions(const OwnedOptions&) = delete;
  OwnedOptions& operator=(const OwnedOptions&) = delete;

  const Options& view() const { return view_; }
  size_t box_size() const { return low_.size(); }

 private:
  std::vector<float> low_, high_;
  Options view_;
};

inline Algorithm algorithm_named(const std::string& name) {
  static const std::map<std::string, Algorithm> algorithms = {{"auto", Algorithm::automatic},
                                                              {"dense", Algorithm::dense},
                                                              {"walk", Algorithm::walk}};
  return word("algorithm", name, algorithms);
}

inline void check_box(const PackedCritic& critic, const OwnedOptions& options) {
  const size_t box = options.box_size();
  if (box != 0 && box != static_cast<size_t>(critic.view().action_dim))
    throw py::value_error("options: their box has another size than the critic's actions");
}

}  // namespace dtag
