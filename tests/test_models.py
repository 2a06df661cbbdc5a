"""The constructors: torchvision's signatures, keys, values, results and weights."""

import inspect
import pickle
import sys

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import fastres
from fastres.models import ResNet
from fastres.models.imagenet import ARCHITECTURES, CONSTRUCTORS

ALL = sorted(CONSTRUCTORS)
#: One of each kind, small enough to run.
SOME = ["resnet18", "resnet50", "resnext50_32x4d"]


def _pair(name, **kwargs):
    """Ours and torchvision's, from one seed."""
    torch.manual_seed(0)
    ours = CONSTRUCTORS[name](**kwargs)
    torch.manual_seed(0)
    return ours.eval(), torchvision.models.get_model(name, **kwargs).eval()


def _assert_same_state(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_there_is_every_resnet_of_torchvision():
    theirs = torchvision.models.list_models(torchvision.models, include=["*resnet*", "*resnext*"])
    assert sorted(theirs) == ALL


@pytest.mark.parametrize("name", ALL)
def test_keys_and_sizes_are_torchvisions(name):
    # Shapes alone, on the meta device: ten networks of up to 500 MB each.
    with torch.device("meta"):
        ours, theirs = CONSTRUCTORS[name](), torchvision.models.get_model(name)
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert [(key, value.shape, value.dtype) for key, value in ours.items()] == [
        (key, value.shape, value.dtype) for key, value in theirs.items()
    ]


@pytest.mark.parametrize("name", SOME)
def test_one_seed_gives_torchvisions_network(name):
    ours, theirs = _pair(name)
    _assert_same_state(ours, theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("name", SOME)
def test_results_are_torchvisions(name, assert_accurate):
    ours, theirs = _pair(name)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out, eager = ours(x), theirs(x)
        exact = theirs.double()(x.double())
        # Even where Winograd's algorithm is used, the logits keep to twice eager's error.
        assert_accurate(out, eager, exact, magnitude=exact.abs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"zero_init_residual": True, "num_classes": 7},
        {"replace_stride_with_dilation": [False, True, True]},
        {"norm_layer": lambda channels: nn.GroupNorm(4, channels)},
        {"norm_layer": nn.SyncBatchNorm},
    ],
    ids=["zero_init_residual", "dilation", "GroupNorm", "SyncBatchNorm"],
)
def test_arguments_mean_what_they_mean_to_torchvision(kwargs):
    ours, theirs = _pair("resnet50", **kwargs)
    _assert_same_state(ours, theirs)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_signature_is_torchvisions(name):
    ours = inspect.signature(CONSTRUCTORS[name]).parameters
    theirs = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    assert pickle.loads(pickle.dumps(CONSTRUCTORS[name])) is getattr(fastres.models, name)


@pytest.mark.parametrize("name", ALL)
def test_the_docstring_says_what_torchvision_publishes(name):
    published = torchvision.models.get_model_weights(name)
    architecture, doc = ARCHITECTURES[name], CONSTRUCTORS[name].__doc__
    assert architecture.enum_name == published.__name__
    assert set(architecture.accuracy) == set(published.__members__) - {"DEFAULT"}
    for weights in published:
        metrics = weights.meta["_metrics"]["ImageNet-1K"]
        assert architecture.parameters == weights.meta["num_params"]
        assert architecture.gmacs == weights.meta["_ops"]
        assert architecture.accuracy[weights.name] == (metrics["acc@1"], metrics["acc@5"])
        assert f"{weights.name}: top-1 {metrics['acc@1']:.3f} %" in doc
    assert "https://arxiv.org/abs/" in doc
    assert max(map(len, doc.splitlines())) <= 100


def test_a_detection_network_takes_the_backbone():
    backbone = fastres.models.resnet18()
    layers = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    channels = [backbone.inplanes // 2**stage for stage in (3, 2, 1, 0)]
    pyramid = BackboneWithFPN(backbone, layers, channels, 16).eval()
    assert list(pyramid(torch.randn(1, 3, 64, 64))) == ["0", "1", "2", "3", "pool"]


# ---- weights -------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    """A network whose weights are nobody's defaults."""
    torch.manual_seed(1)
    return torchvision.models.resnet18(num_classes=5).eval()


@pytest.mark.parametrize("form", ["state_dict", "checkpoint", "distributed", "str"])
def test_weights_come_from_a_file(form, trained, tmp_path):
    path = tmp_path / "weights.pth"
    state = trained.state_dict()
    if form == "distributed":
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "state_dict": state} if form == "checkpoint" else state, path)
    ours = fastres.models.resnet18(weights=str(path) if form == "str" else path).eval()
    _assert_same_state(ours, trained)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), trained(x), rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_do_not_load(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        fastres.models.resnet34(weights=tmp_path / "resnet18.pt")


def test_files_that_hold_no_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*absent\.pth'"):
        fastres.models.resnet18(weights=tmp_path / "absent.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"broken\.pth' is not a state_dict"):
        fastres.models.resnet18(weights=broken)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"holds \['epoch'\], expected a state_dict"):
        fastres.models.resnet18(weights=tmp_path / "empty.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="is not a state_dict"):
        fastres.models.resnet18(weights=tmp_path / "module.pth")


@pytest.fixture
def published(monkeypatch):
    """torchvision's weights of ResNet-18 without the download; says which were asked for."""
    asked = []
    state = torchvision.models.resnet18().state_dict()

    def get_state_dict(self, *args, **kwargs):
        asked.append((self.name, kwargs))
        return state

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)
    return asked, state


@pytest.mark.parametrize(
    "weights",
    [
        torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
        "IMAGENET1K_V1",
        "DEFAULT",
        "ResNet18_Weights.IMAGENET1K_V1",
        "ResNet18_Weights.DEFAULT",
    ],
    ids=str,
)
def test_weights_have_torchvisions_names(weights, published):
    asked, state = published
    ours = fastres.models.resnet18(weights=weights, progress=False)
    assert asked == [("IMAGENET1K_V1", {"progress": False, "check_hash": True})]
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("IMAGENET1K_V9", ValueError, "got 'IMAGENET1K_V9', expected one of IMAGENET1K_V1"),
        ("ResNet50_Weights.DEFAULT", ValueError, "expected a member of ResNet18_Weights"),
        (torchvision.models.ResNet50_Weights.DEFAULT, ValueError, "expected a member of ResNet18"),
        (True, TypeError, "got bool, expected None, a member"),
    ],
    ids=str,
)
def test_unknown_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        fastres.models.resnet18(weights=weights)


def test_weights_by_name_need_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"'DEFAULT' names weights that torchvision publishes"):
        fastres.models.resnet18(weights="DEFAULT")


def test_arguments_may_not_contradict(published):
    with pytest.raises(ValueError, match=r"num_classes: got 5, expected 1000 \(of the weights\)"):
        fastres.models.resnet18(weights="DEFAULT", num_classes=5)
    with pytest.raises(ValueError, match="groups: got 2, expected 32"):
        fastres.models.resnext50_32x4d(groups=2)
    with pytest.raises(ValueError, match="replace_stride_with_dilation: got"):
        fastres.models.resnet50(replace_stride_with_dilation=[True])


def test_the_class_builds_a_network_of_ones_own():
    network = fastres.accelerate(
        ResNet(fastres.nn.Bottleneck, [1, 2, 1, 1], num_classes=4, groups=4, width_per_group=16)
    )
    assert network.eval()(torch.randn(2, 3, 33, 47)).shape == (2, 4)
