// Per-channel affines with an activation, their gradients, and the gradient of statistics.
//
// Four pixels at a time walk over the channels, so that a channel's constants are loaded once for
// four, and memory is read in order.

#include <algorithm>

#include "activation.h"
#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kPixelsAtOnce = 4;

// `count` lanes of a vector, all where kPartial is false.
template <bool kPartial>
inline Vec load_lanes(const float* p, int64_t count) {
  return kPartial ? load_partial(p, count) : load(p);
}
template <bool kPartial>
inline void store_lanes(float* p, Vec v, int64_t count) {
  if constexpr (kPartial) {
    store_partial(p, v, count);
  } else {
    store(p, v);
  }
}

template <bool kPartial>
struct Constants {
  Vec mean, scale, bias;
  Constants(const Affine& f, int64_t c, int64_t count)
      : mean(load_lanes<kPartial>(f.mean + c, count)),
        scale(load_lanes<kPartial>(f.scale + c, count)),
        bias(load_lanes<kPartial>(f.bias + c, count)) {}
};

// Calls step(pixels, partial, pixel, channel, count) over all pixels and channels, the first two as
// compile-time constants.
template <class Step>
inline void for_each_vector(int64_t pixels, int64_t channels, const Step& step) {
  const auto over_channels = [&](auto pixels_at_once, int64_t pixel) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      step(pixels_at_once, std::false_type{}, pixel, c, kLanes);
    }
    if (c < channels) step(pixels_at_once, std::true_type{}, pixel, c, channels - c);
  };
  int64_t pixel = 0;
  for (; pixel + kPixelsAtOnce <= pixels; pixel += kPixelsAtOnce) {
    over_channels(std::integral_constant<int, kPixelsAtOnce>{}, pixel);
  }
  for (; pixel < pixels; ++pixel) over_channels(std::integral_constant<int, 1>{}, pixel);
}

// The gradient of the activation's input; as PyTorch does, it lets the gradient through where the
// input is NaN.
template <Activation kAct>
inline Vec act_gradient(Vec grad, Vec z, float slope) {
  if constexpr (kAct == Activation::relu) return z <= 0.0F ? Vec{} : grad;
  if constexpr (kAct == Activation::relu6) return (z <= 0.0F) | (z >= 6.0F) ? Vec{} : grad;
  if constexpr (kAct == Activation::leaky_relu) return z > 0.0F ? grad : grad * slope;
  if constexpr (kAct == Activation::silu) {
    const Vec sigmoid = 1.0F / (1.0F + exp(-z));
    return grad * sigmoid * (1.0F + z * (1.0F - sigmoid));
  }
  return grad;
}

template <Activation kAct, bool kResidual>
void forward(const AffineAct& f, ConstPixels x, ConstPixels residual, Pixels target, int64_t pixels,
             int64_t channels) {
  for_each_vector(
      pixels, channels, [&](auto at_once, auto partial, int64_t pixel, int64_t c, int64_t count) {
        constexpr bool kPartial = decltype(partial)::value;
        const Constants<kPartial> main(f.main, c, count);
        const Constants<kPartial> shortcut(kResidual ? f.residual : f.main, c, count);
#pragma GCC unroll 4
        for (int i = 0; i < decltype(at_once)::value; ++i) {
          const Vec value = load_lanes<kPartial>(x.data + (pixel + i) * x.stride + c, count);
          Vec z = (value - main.mean) * main.scale + main.bias;
          if constexpr (kResidual) {
            const Vec r =
                load_lanes<kPartial>(residual.data + (pixel + i) * residual.stride + c, count);
            z += (r - shortcut.mean) * shortcut.scale + shortcut.bias;
          }
          store_lanes<kPartial>(target.data + (pixel + i) * target.stride + c,
                                activate(z, kAct, f.act_slope), count);
        }
      });
}

// What tells whether the activation let a value through: main(x), main(x) + residual(r), or the
// activation's result.
enum class Known { affine, sum, result };

template <Activation kAct, Known kKnown, bool kActivated>
void backward(const AffineAct& f, const AffineActInputs& inputs, const AffineActTargets& targets,
              const AffineSums& sums, int64_t pixels, int64_t channels) {
  constexpr bool kResidual = kKnown == Known::sum;
  const auto [grad, grad_in, x, residual, result] = inputs;
  const auto [grad_x, grad_residual, activated, unscaled] = targets;
  for_each_vector(
      pixels, channels, [&](auto at_once, auto partial, int64_t pixel, int64_t c, int64_t count) {
        constexpr bool kPartial = decltype(partial)::value;
        const Constants<kPartial> main(f.main, c, count);
        const Constants<kPartial> shortcut(kResidual ? f.residual : f.main, c, count);
        const Vec factor = unscaled ? Vec{} + 1.0F : main.scale;
        Vec sum{}, sum_main{}, sum_residual{};
#pragma GCC unroll 4
        for (int i = 0; i < decltype(at_once)::value; ++i) {
          const auto at = [&](auto p) { return p.data + (pixel + i) * p.stride + c; };
          const Vec centred = load_lanes<kPartial>(at(x), count) - main.mean;
          Vec z = centred * main.scale + main.bias;
          Vec r{};
          if constexpr (kResidual) {
            r = load_lanes<kPartial>(at(residual), count) - shortcut.mean;
            z += r * shortcut.scale + shortcut.bias;
          }
          if constexpr (kKnown == Known::result) z = load_lanes<kPartial>(at(result), count);
          if constexpr (kActivated) {
            store_lanes<kPartial>(at(activated), activate(z, kAct, f.act_slope), count);
          }
          Vec g = load_lanes<kPartial>(at(grad), count);
          if (grad_in.data != nullptr) g += load_lanes<kPartial>(at(grad_in), count);
          g = act_gradient<kAct>(g, z, f.act_slope);
          sum += g;
          sum_main += g * centred;
          store_lanes<kPartial>(at(grad_x), g * factor, count);
          if constexpr (kResidual) {
            sum_residual += g * r;
            if (grad_residual.data != nullptr) {
              store_lanes<kPartial>(at(grad_residual), g * shortcut.scale, count);
            }
          }
        }
        const auto add = [&](float* total, Vec v) {
          store_lanes<kPartial>(total + c, load_lanes<kPartial>(total + c, count) + v, count);
        };
        add(sums.grad, sum);
        add(sums.grad_main, sum_main);
        if constexpr (kResidual) add(sums.grad_residual, sum_residual);
      });
}

// Calls run with the activation as a compile-time constant.
template <class Run>
void with_activation(Activation act, const Run& run) {
  switch (act) {
    case Activation::none:
      return run(std::integral_constant<Activation, Activation::none>{});
    case Activation::relu:
      return run(std::integral_constant<Activation, Activation::relu>{});
    case Activation::relu6:
      return run(std::integral_constant<Activation, Activation::relu6>{});
    case Activation::leaky_relu:
      return run(std::integral_constant<Activation, Activation::leaky_relu>{});
    case Activation::silu:
      return run(std::integral_constant<Activation, Activation::silu>{});
  }
}

}  // namespace

void affine_act(const AffineAct& f, ConstPixels x, ConstPixels residual, Pixels target,
                int64_t pixels, int64_t channels) {
  with_activation(f.act, [&](auto act) {
    const auto run = residual.data != nullptr ? forward<decltype(act)::value, true>
                                              : forward<decltype(act)::value, false>;
    run(f, x, residual, target, pixels, channels);
  });
}

void affine_act_backward(const AffineAct& f, const AffineActInputs& inputs,
                         const AffineActTargets& targets, const AffineSums& sums, int64_t pixels,
                         int64_t channels) {
  if (f.act == Activation::relu && inputs.result.data != nullptr) {
    return backward<Activation::relu, Known::result, false>(f, inputs, targets, sums, pixels,
                                                            channels);
  }
  with_activation(f.act, [&](auto act) {
    constexpr Activation kAct = decltype(act)::value;
    const auto run = inputs.residual.data != nullptr     ? backward<kAct, Known::sum, false>
                     : targets.activated.data != nullptr ? backward<kAct, Known::affine, true>
                                                         : backward<kAct, Known::affine, false>;
    run(f, inputs, targets, sums, pixels, channels);
  });
}

void stats_gradient(const StatsGradient& f, ConstPixels grad, ConstPixels y, Pixels target,
                    int64_t pixels, int64_t channels) {
  for_each_vector(
      pixels, channels, [&](auto at_once, auto partial, int64_t pixel, int64_t c, int64_t count) {
        constexpr bool kPartial = decltype(partial)::value;
        const Vec scale = load_lanes<kPartial>(f.scale + c, count);
        const Vec offset = load_lanes<kPartial>(f.offset + c, count);
        const Vec slope = load_lanes<kPartial>(f.slope + c, count);
        const Vec mean = load_lanes<kPartial>(f.mean + c, count);
#pragma GCC unroll 4
        for (int i = 0; i < decltype(at_once)::value; ++i) {
          const Vec value = load_lanes<kPartial>(y.data + (pixel + i) * y.stride + c, count);
          const Vec g = load_lanes<kPartial>(grad.data + (pixel + i) * grad.stride + c, count);
          store_lanes<kPartial>(target.data + (pixel + i) * target.stride + c,
                                g * scale + ((value - mean) * slope + offset), count);
        }
      });
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE
