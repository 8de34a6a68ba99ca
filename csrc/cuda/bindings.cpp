// The module dtag_fast._cuda: names, sizes and addresses from Python to the kernel. No mathematics.
// Sizes, dtypes and devices of what comes as an address are checked in refinement/cuda.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../python_words.h"
#include "dense_kernel.h"
#include "launch.h"
#include "maps_layout.h"

namespace py = pybind11;

namespace dtag::cuda {
namespace {

std::optional<std::string> or_none(const char* reason) {
  if (reason == nullptr) return std::nullopt;
  return reason;
}

void check(const char* what, const char* error) {
  if (error == nullptr) return;
  PyErr_SetString(PyExc_RuntimeError, (std::string(what) + ": " + error).c_str());
  throw py::error_already_set();
}

Precision precision_of(const std::string& name) {
  return word<Precision>("precision", name,
                         {{"fp32", Precision::fp32},
                          {"bf16", Precision::bf16},
                          {"tf32x3", Precision::tf32x3}});
}

Layout layout_of(int action_dim, int heads, const std::vector<int>& hidden, Precision precision) {
  Layout layout;
  if (action_dim < 1 || heads < 1 || hidden.empty() || hidden.size() > 2 ||
      *std::min_element(hidden.begin(), hidden.end()) < 1)
    throw py::value_error("expected action_dim, heads and one or two hidden widths of at least 1");
  const char* const reason =
      lay_out(action_dim, heads, *std::max_element(hidden.begin(), hidden.end()), precision, &layout);
  if (reason != nullptr) throw py::value_error(reason);
  return layout;
}

template <typename T>
const T* pointer(const std::map<std::string, uintptr_t>& addresses, const char* name) {
  const auto found = addresses.find(name);
  if (found == addresses.end()) throw py::value_error(std::string("addresses: no ") + name);
  return reinterpret_cast<const T*>(found->second);
}

PackedCritic pack(int observation_dim, int action_dim, int heads, const std::vector<int>& hidden,
                  float negative_slope, const std::string& precision,
                  const std::map<std::string, uintptr_t>& addresses) {
  PackedCritic critic;
  critic.precision = precision_of(precision);
  critic.layout = layout_of(action_dim, heads, hidden, critic.precision);
  critic.observation_dim = observation_dim;
  critic.action_dim = action_dim;
  critic.heads = heads;
  critic.hidden_layers = static_cast<int>(hidden.size());
  critic.first_units = hidden.front();
  critic.top_units = hidden.back();
  critic.negative_slope = negative_slope;
  critic.mean = pointer<float>(addresses, "mean");
  critic.std = pointer<float>(addresses, "std");
  critic.observation_weights = pointer<float>(addresses, "observation_weights");
  critic.action_weights = pointer<float>(addresses, "action_weights");
  critic.first_bias = pointer<float>(addresses, "first_bias");
  if (critic.hidden_layers == 2) {
    critic.weight = pointer<void>(addresses, "weight");
    critic.transposed = pointer<void>(addresses, "transposed");
    critic.sliced = pointer<void>(addresses, "sliced");
    critic.second_bias = pointer<float>(addresses, "second_bias");
  }
  if (critic.precision == Precision::tf32x3 && critic.hidden_layers == 2) {
    critic.halves = pointer<void>(addresses, "halves");
    critic.terms = pointer<void>(addresses, "terms");
    critic.unscale = pointer<float>(addresses, "unscale");
  }
  if (fits_tiles(critic)) {
    critic.tile_weights = pointer<void>(addresses, "tile_weights");
    critic.tile_numbers = pointer<float>(addresses, "tile_numbers");
    critic.tile_observation = pointer<float>(addresses, "tile_observation");
  }
  critic.output = pointer<float>(addresses, "output");
  critic.output_bias = pointer<float>(addresses, "output_bias");
  critic.finite = pointer<int32_t>(addresses, "finite");
  return critic;
}

Settings settings(int steps, double step_size, const std::string& optimizer,
                  const std::vector<float>& low, const std::vector<float>& high,
                  const std::string& ensemble, float lcb_k, const std::string& select,
                  std::optional<float> max_distance, const std::string& gradient) {
  if (low.size() != high.size() || low.size() > most_actions)
    throw py::value_error("low, high: expected as many numbers in both, at most 32");
  Settings made;
  made.steps = steps;
  made.step_size = static_cast<float>(step_size);
  made.optimizer = word<Optimizer>("optimizer", optimizer,
                                   {{"sgd", Optimizer::sgd},
                                    {"momentum", Optimizer::momentum},
                                    {"rmsprop", Optimizer::rmsprop},
                                    {"adam", Optimizer::adam}});
  made.ensemble = word<Ensemble>(
      "ensemble", ensemble,
      {{"min", Ensemble::min}, {"mean", Ensemble::mean}, {"lcb", Ensemble::lcb}});
  made.lcb_k = lcb_k;
  made.select = word<Select>("select", select, {{"best", Select::best}, {"last", Select::last}});
  made.gradient =
      word<Gradient>("gradient", gradient, {{"raw", Gradient::raw}, {"unit", Gradient::unit}});
  made.max_distance = max_distance.value_or(-1.0f);
  std::fill_n(made.low, most_actions, -std::numeric_limits<float>::infinity());
  std::fill_n(made.high, most_actions, std::numeric_limits<float>::infinity());
  std::copy(low.begin(), low.end(), made.low);
  std::copy(high.begin(), high.end(), made.high);
  return made;
}

Kind kind_of(const std::string& name) {
  static const std::map<std::string, Kind> kinds = {{"auto", Kind::automatic},
                                                    {"row", Kind::row},
                                                    {"lean", Kind::lean},
                                                    {"cluster", Kind::cluster}};
  return word("kernel", name, kinds);
}

// Floats of the memory that refine() takes for maps; 0 for most.
int64_t floats_for_maps(const PackedCritic& critic, bool dense, int64_t rows) {
  Job job(critic);
  job.dense = dense;
  job.rows = rows;
  return floats_with_queue(job);
}

void refine(const PackedCritic& critic, const Settings& settings, bool dense, int64_t rows,
            int64_t starts, uintptr_t observations, uintptr_t actions, uintptr_t result,
            uintptr_t floats, uintptr_t indices, uintptr_t maps, int device, uintptr_t stream,
            const std::string& kernel) {
  const Kind kind = kind_of(kernel);
  Job job(critic);
  job.settings = settings;
  job.dense = dense;
  job.rows = rows;
  job.starts = starts;
  job.observations = reinterpret_cast<const float*>(observations);
  job.actions = reinterpret_cast<const float*>(actions);
  job.maps = reinterpret_cast<float*>(maps);
  auto* const f = reinterpret_cast<float*>(floats);
  auto* const i = reinterpret_cast<int64_t*>(indices);
  job.result = {reinterpret_cast<float*>(result),
                f,
                f + rows,
                i,
                i + rows,
                f + 2 * rows,
                i + 2 * rows,
                i + 3 * rows};
  const char* error;
  {
    const py::gil_scoped_release release;
    error = launch(job, kind, device, stream);
  }
  check("launching the kernel", error);
}

}  // namespace
}  // namespace dtag::cuda

PYBIND11_MODULE(DTAG_MODULE_NAME, module) {
  using namespace dtag::cuda;
  module.doc() = "The CUDA kernels of dtag_fast; called by dtag_fast.refinement.cuda.";

  // Local to the module: the emulation of the tests, made of the same source, may be loaded beside.
  py::class_<PackedCritic>(module, "PackedCritic", py::module_local())
      .def(py::init(&pack), py::kw_only(), py::arg("observation_dim"), py::arg("action_dim"),
           py::arg("heads"), py::arg("hidden"), py::arg("negative_slope"), py::arg("precision"),
           py::arg("addresses"));
  py::class_<Settings>(module, "Options", py::module_local())
      .def(py::init(&settings), py::kw_only(), py::arg("steps"), py::arg("step_size"),
           py::arg("optimizer"), py::arg("low"), py::arg("high"), py::arg("ensemble"),
           py::arg("lcb_k"), py::arg("select"), py::arg("max_distance"), py::arg("gradient"));

  module.def(
      "layout",
      [](int action_dim, int heads, const std::vector<int>& hidden, const std::string& precision) {
        const Layout layout = layout_of(action_dim, heads, hidden, precision_of(precision));
        return py::make_tuple(layout.actions, layout.width, group_units);
      },
      py::arg("action_dim"), py::arg("heads"), py::arg("hidden"), py::arg("precision") = "fp32");
  module.def(
      "why_not",
      [](int device, const std::string& precision) {
        return or_none(why_not(device, precision_of(precision)));
      },
      py::arg("device"), py::arg("precision") = "fp32");
  module.def(
      "prepare",
      [](const PackedCritic& critic, int device) {
        check("loading the kernel", prepare(critic, device));
      },
      py::arg("critic"), py::arg("device"));
  module.def(
      "why_none",
      [](const std::string& kernel, const PackedCritic& critic, int device) {
        return or_none(why_none(kind_of(kernel), critic, device));
      },
      py::arg("kernel"), py::arg("critic"), py::arg("device"));
  module.def("columns_of_maps", &columns_of_maps, py::arg("width"));
  module.def("floats_for_maps", &floats_for_maps, py::arg("critic"), py::arg("dense"), py::arg("rows"));
  module.def("refine", &refine, py::arg("critic"), py::arg("options"), py::arg("dense"),
             py::arg("rows"), py::arg("starts"), py::arg("observations"), py::arg("actions"),
             py::arg("result"), py::arg("floats"), py::arg("indices"), py::arg("maps"),
             py::arg("device"), py::arg("stream"), py::arg("kernel") = "auto");
  module.attr("architectures") = DTAG_CUDA_ARCHITECTURES_NAMES;
}
