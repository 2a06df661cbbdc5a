// Classifies a photo with a network that examples/export.py wrote; no Python in the process.
//
//   classify FOLDER [model.pt | model.pt2]
//
// FOLDER holds photo.pt (the photo as a tensor, [1, 3, H, W]), classes.txt (a name a line) and the
// model: TorchScript, or a package of AOTInductor. The operators of fastres come with libfastres,
// which this program links: without it either file would fail to load.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/script.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::ifstream open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error("cannot open " + path);
  }
  return file;
}

at::Tensor load_tensor(const std::string& path) {
  std::ifstream file = open(path);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  return torch::jit::pickle_load(bytes).toTensor();
}

std::vector<std::string> load_lines(const std::string& path) {
  std::ifstream file = open(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(line);
  }
  return lines;
}

at::Tensor run(const std::string& path, const at::Tensor& image) {
  const c10::InferenceMode no_gradients;
  if (path.ends_with(".pt2")) {
    torch::inductor::AOTIModelPackageLoader model(path);
    return model.run({image}).at(0);
  }
  torch::jit::Module model = torch::jit::load(path);
  model.eval();
  return model.forward({image}).toTensor();
}

void print_best(const at::Tensor& logits, const std::vector<std::string>& classes) {
  const auto [shares, indices] = logits.softmax(1)[0].topk(5);
  for (int64_t i = 0; i < shares.size(0); ++i) {
    const auto index = static_cast<std::size_t>(indices[i].item<int64_t>());
    std::printf("%6.2f %%  %s\n", 100 * shares[i].item<double>(), classes.at(index).c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: classify FOLDER [model.pt | model.pt2]\n");
    return 2;
  }
  try {
    const std::string folder = std::string(argv[1]) + "/";
    const std::string model = folder + (argc == 3 ? argv[2] : "model.pt");
    print_best(run(model, load_tensor(folder + "photo.pt")), load_lines(folder + "classes.txt"));
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "classify: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
}
