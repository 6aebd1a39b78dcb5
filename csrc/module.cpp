// The Python module fastpose._C. Loading it registers the ops with torch's dispatcher; its own surface is build_info() alone.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "simd_level.h"

namespace py = pybind11;

static std::vector<std::string> words(const char* text) {
  std::istringstream in(text);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

static py::dict build_info() {
  py::dict info;
  info["version"] = FASTPOSE_VERSION;
  info["torch_target"] = FASTPOSE_TORCH_TARGET;
#ifdef FASTPOSE_CUDA
  info["cuda"] = FASTPOSE_CUDA;
  info["cuda_architectures"] = words(FASTPOSE_CUDA_ARCHITECTURES);
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = std::vector<std::string>{};
#endif
  info["compiler"] = FASTPOSE_COMPILER;
  info["simd_levels"] = words(FASTPOSE_SIMD_LEVELS);
  info["simd_level"] = fastpose::simd_level_name(fastpose::simd_level());
  return info;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Registers fastpose's compiled ops; see fastpose.ops.";
  m.def("build_info", &build_info, "How this module was built, as a dict.");
}
