// The module dtag_fast._native: names, sizes and pointers from Python to the kernels. No
// mathematics. Sizes and dtypes of what comes as a pointer are checked in refinement/cpu.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "acting_bindings.h"
#include "arrays.h"
#include "execution.h"
#include "fast_call.h"
#include "kernels.h"
#include "packed_critic.h"
#include "python_options.h"
#include "refine.h"
#include "training_bindings.h"
#include "weights_version.h"

namespace py = pybind11;

namespace dtag {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

Activation activation_named(const std::string& name) {
  static const std::map<std::string, Activation> activations = {
      {"relu", Activation::relu}, {"leaky_relu", Activation::leaky_relu},
      {"tanh", Activation::tanh}, {"gelu", Activation::gelu},
      {"silu", Activation::silu}, {"mish", Activation::mish},
      {"elu", Activation::elu}};
  return word("activation", name, activations);
}

const float* checked(const char* name, const FloatArray& array, std::vector<py::ssize_t> shape) {
  if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape)
    throw py::value_error(std::string(name) + ": not of the expected shape");
  return array.data();
}

// layers: (weight [E, out, in], bias [E, out]) or (..., norm_weight [E, out], norm_bias [E, out])
std::unique_ptr<PackedCritic> pack(int observation_dim, int action_dim, int heads,
                                   const std::string& activation, float negative_slope,
                                   const FloatArray& mean, const FloatArray& std,
                                   const std::vector<std::vector<FloatArray>>& layers,
                                   const std::string& precision) {
  if (observation_dim < 1 || action_dim < 1 || heads < 1 || layers.empty())
    throw py::value_error(
        "observation_dim, action_dim, heads, layers: expected at least 1 of each");
  std::vector<LayerSource> sources;
  py::ssize_t inputs = static_cast<py::ssize_t>(observation_dim) + action_dim;
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::vector<FloatArray>& arrays = layers[l];
    const bool last = l + 1 == layers.size();
    if (arrays.size() != 2 && (last || arrays.size() != 4))
      throw py::value_error("layers: expected 2 arrays a layer, or 4 in a hidden one");
    if (arrays[0].ndim() != 3) throw py::value_error("weight: not of the expected shape");
    const py::ssize_t outputs = arrays[0].shape(1);
    if (outputs < 1 || outputs > std::numeric_limits<int>::max() || (last && outputs != 1))
      throw py::value_error("weight: not of the expected shape");
    LayerSource source{};
    source.inputs = static_cast<int>(inputs);
    source.outputs = static_cast<int>(outputs);
    source.weight = checked("weight", arrays[0], {heads, outputs, inputs});
    source.bias = checked("bias", arrays[1], {heads, outputs});
    if (arrays.size() == 4) {
      source.norm_weight = checked("norm_weight", arrays[2], {heads, outputs});
      source.norm_bias = checked("norm_bias", arrays[3], {heads, outputs});
    }
    sources.push_back(source);
    inputs = outputs;
  }
  return std::make_unique<PackedCritic>(
      observation_dim, action_dim, heads, activation_named(activation),
      negative_slope, checked("mean", mean, {observation_dim}),
      checked("std", std, {observation_dim}), sources,
      precision_named(precision));
}

Execution execution_of(const PackedCritic& critic, const OwnedOptions& options, const Batch& batch,
                       const std::string& algorithm, int threads) {
  check_box(critic, options);
  const Algorithm asked = algorithm_named(algorithm);
  try {
    return {choose(critic.view(), options.view(), batch, asked), threads};
  } catch (const std::invalid_argument& reason) {
    throw py::value_error("algorithm: expected one that the critic allows, got '" + algorithm +
                          "', and " + reason.what());
  }
}

Batch batch_at(int64_t rows, int64_t starts, uintptr_t observations, uintptr_t actions) {
  return {rows, starts, reinterpret_cast<const float*>(observations),
          reinterpret_cast<const float*>(actions)};
}

// Returns the algorithm used.
std::string run(const PackedCritic& critic, const OwnedOptions& options,
                const std::string& algorithm, int threads, int64_t rows, int64_t starts,
                uintptr_t observations, uintptr_t actions, uintptr_t result, uintptr_t q,
                uintptr_t q_initial, uintptr_t best_step, uintptr_t start, uintptr_t distance,
                uintptr_t flips, uintptr_t dense_steps) {
  const Batch batch = batch_at(rows, starts, observations, actions);
  const Result into{reinterpret_cast<float*>(result),      reinterpret_cast<float*>(q),
                    reinterpret_cast<float*>(q_initial),   reinterpret_cast<int64_t*>(best_step),
                    reinterpret_cast<int64_t*>(start),     reinterpret_cast<float*>(distance),
                    reinterpret_cast<int64_t*>(flips),     reinterpret_cast<int64_t*>(dense_steps)};
  const Execution execution = execution_of(critic, options, batch, algorithm, threads);
  {
    const py::gil_scoped_release release;
    refine(critic.view(), options.view(), batch, into, execution);
  }
  return execution.algorithm == Algorithm::walk ? "walk" : "dense";
}

// Seconds of each of so many refinements of one batch, nothing else around them.
std::vector<double> time_kernel(const PackedCritic& critic, const OwnedOptions& options,
                                const std::string& algorithm, int threads, int64_t rows,
                                int64_t starts, uintptr_t observations, uintptr_t actions,
                                int repeats) {
  using Clock = std::chrono::steady_clock;
  const Batch batch = batch_at(rows, starts, observations, actions);
  const Execution execution = execution_of(critic, options, batch, algorithm, threads);
  const size_t count = static_cast<size_t>(rows);
  std::vector<float> floats(count * (critic.view().action_dim + 3));
  std::vector<int64_t> indices(count * 4);
  float* const f = floats.data();
  int64_t* const i = indices.data();
  const Result into{f + 3 * count, f,         f + count,     i,
                    i + count,     f + 2 * count, i + 2 * count, i + 3 * count};
  std::vector<double> seconds(static_cast<size_t>(repeats));
  const py::gil_scoped_release release;
  for (double& each : seconds) {
    const Clock::time_point begin = Clock::now();
    refine(critic.view(), options.view(), batch, into, execution);
    each = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  return seconds;
}

py::object fast_call(const py::object& critic, const py::object& options,
                     const std::string& algorithm, std::optional<int> threads,
                     std::pair<int64_t, int64_t> rows, const py::object& version) {
  const auto& packed = critic.cast<const PackedCritic&>();
  const auto& owned = options.cast<const OwnedOptions&>();
  check_box(packed, owned);
  return make_fast_call({packed.view(), owned.view(), algorithm_named(algorithm),
                         threads.value_or(0), rows, version.cast<const WeightsVersion&>(),
                         py::make_tuple(critic, options, version)});
}

// Of a critic with finite weights.
std::optional<std::string> why_no_walk_of(const std::string& activation, int hidden_layers,
                                          bool layer_norm) {
  if (hidden_layers < 0) throw py::value_error("hidden_layers: expected 0 or more");
  const float norm = 1.0f;
  Layer layer;
  layer.norm_weight = layer.norm_bias = layer_norm ? &norm : nullptr;
  const std::vector<Layer> layers(static_cast<size_t>(hidden_layers) + 1, layer);
  Critic critic;
  critic.activation = activation_named(activation);
  critic.hidden_layers = hidden_layers;
  critic.layers = layers.data();
  try {
    choose(critic, {}, {}, Algorithm::walk);
  } catch (const std::invalid_argument& reason) {
    return reason.what();
  }
  return std::nullopt;
}

// Use the instruction set that DTAG_ISA names; why it cannot be used, if so. The module loads all
// the same: what does not need it may go on.
std::optional<std::string> force_isa() {
  const char* const name = std::getenv("DTAG_ISA");
  if (name == nullptr || *name == '\0') return std::nullopt;
  try {
    select_isa(name);
  } catch (const std::invalid_argument& reason) {
    return std::string("DTAG_ISA: ") + reason.what();
  }
  return std::nullopt;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = DTAG_COMPILER;
  info["flags"] = DTAG_FLAGS;
  info["build_type"] = DTAG_BUILD_TYPE;
  info["processor"] = DTAG_PROCESSOR;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
      PYBIND11_VERSION_MINOR);
  info["version"] = DTAG_VERSION;
  return info;
}

}  // namespace
}  // namespace dtag

PYBIND11_MODULE(_native, module) {
  using namespace dtag;
  module.doc() = "Native kernels of dtag_fast; called by dtag_fast.refinement.cpu.";

  py::class_<PackedCritic>(module, "PackedCritic")
      .def(py::init(&pack), py::arg("observation_dim"), py::arg("action_dim"), py::arg("heads"),
           py::arg("activation"), py::arg("negative_slope"), py::arg("mean").noconvert(),
           py::arg("std").noconvert(), py::arg("layers").noconvert(),
           py::arg("precision") = "fp32")
      .def_property_readonly("observation_dim",
                             [](const PackedCritic& self) { return self.view().observation_dim; })
      .def_property_readonly("action_dim",
                             [](const PackedCritic& self) { return self.view().action_dim; });

  py::class_<OwnedOptions>(module, "Options")
      .def(py::init<int, double, const std::string&, std::vector<float>, std::vector<float>,
                    const std::string&, float, const std::string&, std::optional<float>,
                    const std::string&>(),
           py::kw_only(), py::arg("steps"), py::arg("step_size"), py::arg("optimizer"),
           py::arg("low"), py::arg("high"), py::arg("ensemble"), py::arg("lcb_k"),
           py::arg("select"), py::arg("max_distance"), py::arg("gradient"));

  py::class_<WeightsVersion>(module, "WeightsVersion")
      .def(py::init<py::handle>(), py::arg("module"))
      .def("is_current", &WeightsVersion::is_current)
      .def("expire", &WeightsVersion::expire);
  module.def("count_optimizer_step",
             [](const py::args&) { WeightsVersion::count_optimizer_step(); });
  module.def("optimizer_steps", &WeightsVersion::optimizer_steps);
  module.def("fast_call", &fast_call, py::arg("critic"), py::arg("options"), py::arg("algorithm"),
             py::arg("threads"), py::arg("rows"), py::arg("version"));
  module.def("use_exchange_api", [](bool use) { return Torch::get().use_exchange_api(use); });
  module.def("time_kernel", &time_kernel, py::arg("critic"), py::arg("options"),
             py::arg("algorithm"), py::arg("threads"), py::arg("rows"), py::arg("starts"),
             py::arg("observations"), py::arg("actions"), py::arg("repeats"));

  module.def("isa", [] { return kernels().isa; });
  module.def("isas", &runnable_isas);
  module.def("select_isa", &select_isa, py::arg("name"));
  module.attr("isa_error") = force_isa();
  module.def("why_no_walk", &why_no_walk_of, py::arg("activation"), py::arg("hidden_layers"),
             py::arg("layer_norm"));
  module.def("refine", &run, py::arg("critic"), py::arg("options"), py::arg("algorithm"),
             py::arg("threads"), py::arg("rows"), py::arg("starts"), py::arg("observations"),
             py::arg("actions"), py::arg("result"), py::arg("q"), py::arg("q_initial"),
             py::arg("best_step"), py::arg("start"), py::arg("distance"), py::arg("flips"),
             py::arg("dense_steps"));
  bind_training(module);
  module.def("build_info", &build_info);
  bind_acting(module);
}
