// Records what the launchers of csrc/cuda would launch, for the tests to run under the emulator.
//
// Device memory does not exist here: pointers are tokens, kToken + (buffer << 32) + offset, which
// the tests replace by the buffers. The record is text, one launch or allocation a line.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "../../csrc/cuda/operators.h"

namespace {

using namespace fastres::cuda;
using fastres::ConvGeometry;

constexpr uint64_t kToken = 0x7f5a000000000000ULL;

class Recorder : public Executor {
 public:
  std::string text;

  void launch(const Launch& launch) override {
    text += "launch " + launch.kernel + " " + std::to_string(launch.grid) + " " +
            std::to_string(launch.block) + " " + std::to_string(launch.shared) + " ";
    char hex[3];
    for (size_t i = 0; i < launch.params_bytes; ++i) {
      std::snprintf(hex, sizeof(hex), "%02x", static_cast<const unsigned char*>(launch.params)[i]);
      text += hex;
    }
    text += "\n";
  }

  void* scratch(int64_t bytes) override {
    const uint64_t id = next_++;
    text += "scratch " + std::to_string(id) + " " + std::to_string(bytes) + "\n";
    return reinterpret_cast<void*>(kToken + (id << 32));
  }

 private:
  uint64_t next_ = 1000;  // those below are the caller's
};

// The record of what `function` launches, or "error " and what it threw; free() it.
template <class Function>
char* record(const Function& function) {
  Recorder recorder;
  try {
    function(recorder);
  } catch (const std::exception& error) {
    recorder.text = std::string("error ") + error.what();
  }
  return strdup(recorder.text.c_str());
}

struct Geometry {  // as tests/cuda_case.py fills it in
  int64_t batch, in_channels, in_h, in_w, out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t top, bottom, left, right, groups;

  ConvGeometry get() const {
    return {batch,
            in_channels,
            {in_h, in_w},
            out_channels,
            {out_h, out_w},
            {kernel_h, kernel_w},
            {stride_h, stride_w},
            {dilation_h, dilation_w},
            {top, bottom, left, right},
            groups};
  }
};

}  // namespace

extern "C" {

char* record_pack_conv_weight(const Geometry* geometry, const WeightTensor* weight,
                              const float* scale, void* packed) {
  return record([&](Executor& executor) {
    const ConvGeometry g = geometry->get();
    pack_conv_weight(executor, *weight, scale, g, krsc_header(g), packed);
  });
}

char* record_conv_bn_act(int type, const Geometry* geometry, const ConvBnActArguments* arguments) {
  return record([&](Executor& executor) {
    conv_bn_act(executor, static_cast<Dtype>(type), geometry->get(), *arguments);
  });
}

char* record_grouped_bottleneck(int type, const void* x, const Geometry* geometries,
                                const ConvBnActArguments* arguments, int layers, int choice) {
  return record([&](Executor& executor) {
    const auto layer = [&](int i) { return Layer{geometries[i].get(), arguments[i]}; };
    const Layer down = layer(layers - 1);
    grouped_bottleneck(executor, static_cast<Dtype>(type), x, layer(0), layer(1), layer(2),
                       layers == 4 ? &down : nullptr, static_cast<OneKernel>(choice));
  });
}

char* record_conv_stats(int type, const Geometry* geometry, const ConvStatsArguments* arguments) {
  return record([&](Executor& executor) {
    conv_stats(executor, static_cast<Dtype>(type), geometry->get(), *arguments);
  });
}

char* record_conv_stats_backward(int type, const Geometry* geometry,
                                 const ConvStatsBackwardArguments* arguments) {
  return record([&](Executor& executor) {
    conv_stats_backward(executor, static_cast<Dtype>(type), geometry->get(), *arguments);
  });
}

char* record_affine_add_act(int type, const AffineAddActParams* params) {
  return record(
      [&](Executor& executor) { affine_add_act(executor, static_cast<Dtype>(type), *params); });
}

char* record_affine_add_act_backward(int type, const AffineAddActParams* params,
                                     const AffineAddActGradients* out) {
  return record([&](Executor& executor) {
    affine_add_act_backward(executor, static_cast<Dtype>(type), *params, *out);
  });
}
}
