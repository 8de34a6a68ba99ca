// Words that come from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <string>

namespace dtag {

// What a word stands for; ValueError, naming the argument, for one that stands for nothing.
template <typename Value>
Value word(const char* argument, const std::string& name, const std::map<std::string, Value>& of) {
  const auto found = of.find(name);
  if (found == of.end())
    throw pybind11::value_error(std::string(argument) + ": unknown word '" + name + "'");
  return found->second;
}

}  // namespace dtag
