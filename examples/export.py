"""Ships a network: TorchScript, an AOTInductor package, ONNX, and a photo to try them on.

    python examples/export.py resnext50_32x4d --out build/shipped

Writes model.pt, model.pt2, model.onnx, photo.pt and classes.txt, and prints the five best classes
of the photo. `examples/cpp/classify.cpp` prints the same from the first two.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

import fastres
from fastres.cli.images import load_photos, photo_batch
from fastres.cli.models import load_model, make_ready

FORMATS = ("torchscript", "aot", "onnx")


def main() -> None:
    """Writes what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a name that torchvision or timm knows, or file.py:function")
    parser.add_argument("--out", type=Path, default=Path("build/shipped"), help="(%(default)s)")
    parser.add_argument("--image", help="a photo of your own (default: scikit-learn's)")
    parser.add_argument("--weights", choices=["auto", "random"], default="auto")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    args = parser.parse_args()

    torch.manual_seed(0)  # of random weights
    target = load_model(args.model, args.weights)
    photos = photo_batch(load_photos(args.image), 4)
    make_ready(target, photos)
    model = fastres.accelerate(target.model)
    frozen = fastres.freeze(model, photos)

    args.out.mkdir(parents=True, exist_ok=True)
    if "torchscript" in args.formats:
        torch.jit.script(frozen).save(args.out / "model.pt")
    if "aot" in args.formats:
        export_aot(frozen, photos, args.out / "model.pt2")
    if "onnx" in args.formats:
        export_onnx(model, photos, args.out / "model.onnx")

    photo, classes = photos[:1].clone(), class_names(args.model)
    torch.save(photo, args.out / "photo.pt")
    (args.out / "classes.txt").write_text("\n".join(classes) + "\n")
    with torch.inference_mode():
        print_best(frozen(photo), classes)


def export_aot(frozen: nn.Module, images: Tensor, path: Path) -> None:
    """Compiles for this kind of machine; any batch size, calls of fastres's operators inside."""
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(frozen, (images,), dynamic_shapes=(batch,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def export_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """An accelerated model shows its original to the exporter: standard operators only."""
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model, (images,), str(path), dynamo=True, dynamic_shapes=(batch,), verbose=False
    )


def class_names(model: str) -> Sequence[str]:
    """ImageNet's classes, where the model is one of torchvision's."""
    if model in models.list_models(models):
        return models.get_model_weights(model).DEFAULT.meta["categories"]
    return [f"class {index}" for index in range(1000)]


def print_best(logits: Tensor, classes: Sequence[str]) -> None:
    """The five likeliest classes, as classify.cpp prints them."""
    shares, indices = logits.softmax(1)[0].topk(5)
    for share, index in zip(shares.tolist(), indices.tolist(), strict=True):
        print(f"{100 * share:6.2f} %  {classes[index]}")


if __name__ == "__main__":
    main()
