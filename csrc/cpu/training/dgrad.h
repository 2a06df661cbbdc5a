// The gradient of a convolution's input, and of the affine that was applied to it.

#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "../convolution/split_rows.h"
#include "../runtime/buffer_pool.h"
#include "../runtime/scratch.h"
#include "output_gradient.h"

namespace fastres::cpu {

// Per channel, g the gradient of the affine's output: sums of g and of g * (x - mean).
struct InputGradientSums {
  Totals grad;
  Totals grad_centred;
  explicit InputGradientSums(int64_t channels) : grad(channels), grad_centred(channels) {}
  void add(const InputGradientSums& other) {
    grad.add(other.grad);
    grad_centred.add(other.grad_centred);
  }
};

// Along one axis, the input positions phase, phase + stride, ... all receive the same taps of the
// kernel. Input position phase + stride * j is the sum over t of tap taps[t] times the gradient at
// output position first + j + t * step: a convolution with stride 1.
struct PhaseAxis {
  int64_t phase = 0;
  Taps taps;
  int64_t first = 0;
  int64_t step = 1;

  // Output positions that input positions [begin, end) of this phase read.
  Range reads(int64_t begin, int64_t end) const {
    return {first + begin, first + end + (static_cast<int64_t>(taps.size()) - 1) * step};
  }
};

// An input that affine_add_act has activated: what that was given. None where y has no data.
struct ActivatedBefore {
  Image y, residual;
  AffineAct f;  // its pointers are into the convolution's constants
  bool given() const { return y.data != nullptr; }
};

// What becomes of the gradient of the activated input. `grad_in`, if it has data, flows into it
// too.
struct InputBackward {
  Image grad_x;  // dense NHWC of x's type; with `before`, its residual's gradient
  Image grad_in;
  ActivatedBefore before;

  // With join_images.
  void append_to(std::vector<Image*>& images) {
    for (Image* image : {&grad_x, &grad_in, &before.y, &before.residual}) {
      if (image->data != nullptr) images.push_back(image);
    }
  }
};

// Fills slices of grad_x.
class InputGradient {
 public:
  InputGradient(const Kernels& kernels, const TrainingConv& conv, const InputBackward& input);

  // What a slice of input rows reads of the output's gradient; it may be outside of the image.
  Range gradient_rows(const Slices::Slice& slice) const;
  Range gradient_columns() const { return columns_; }

  // Whether it is multiplied on matrix tiles, and whether weights are split anew for each band.
  bool on_tiles() const;
  bool splits_often() const;
  // Whether a slice's end reads the convolution's input.
  bool reads_input() const { return sources().x == &conv_.x || sources().result == &conv_.x; }
  // Weights that one thread has split for matrix tiles, of each phase, kept for `slices`.
  using KeptPanels = std::array<std::optional<SplitPanels>, ThreadScratch::kKeptPanels>;
  KeptPanels kept_panels(int64_t slices) const;

  // `gradient` holds those. Where `activated` has data, it receives the activated input of the
  // slice, float32 pixels of all channels. Meanwhile fetches what the slice's end reads, what the
  // next slice will write, and `upcoming`.
  void run_slice(const Slices::Slice& slice, const Slices::Slice* next, const Band& gradient,
                 Upcoming upcoming, KeptPanels& kept, InputGradientSums& sums,
                 const Band& activated) const;

  // The parts of it: the convolution of the gradient, and what happens to a slice of its output,
  // through the activation and the affine, in place.
  void convolve(const Slices::Slice& slice, const Slices::Slice* next, const Band& gradient,
                Upcoming upcoming, KeptPanels& kept, const Band& output) const;
  const ConvLayer& winograd_layer() const { return phases_.front().layer; }
  void finish(const Slices::Slice& slice, const Band& output, InputGradientSums& sums,
              const Band& activated) const;

 private:
  // One of stride.h * stride.w convolutions of the output's gradient.
  struct Phase {
    PhaseAxis h, w;
    ConvLayer layer;
    bool empty() const { return h.taps.empty() || w.taps.empty(); }
  };

  void make_phases();
  void pack_weights(int64_t floats);
  Range phase_rows(const Phase& phase, const Slices::Slice& slice) const;
  void run_phase(size_t i, const Slices::Slice& slice, const Band& gradient,
                 const Upcoming& upcoming, KeptPanels& kept, const Band& output) const;
  void clear(const ConvBand& band) const;
  // What the end of a slice reads; null for what it does not.
  struct Sources {
    const Image *x, *grad_in, *residual, *result;
    std::array<const Image*, 4> all() const { return {x, grad_in, residual, result}; }
  };
  Sources sources() const;
  void finish_row(const AffineActInputs& row, Pixels grad_x, Pixels activated, int64_t pixels,
                  InputGradientSums& sums) const;
  void copy_activated(const Slices::Slice& slice, const Band& activated) const;

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const InputBackward& input_;
  const Image& grad_x_;
  const std::vector<float> no_shift_;
  std::vector<Phase> phases_;
  std::unique_ptr<PooledFloats> packed_;
  Range columns_{0, 0};  // of the output, that the phases read
};

// The whole batch.
InputGradientSums run_dgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
                            InputBackward input);

// The same by Winograd, many images at a time.
InputGradientSums run_winograd_dgrad(const Kernels& kernels, const TrainingConv& conv,
                                     const OutputGradient& gradient, const InputBackward& input);

}  // namespace fastres::cpu
