"""L and the stages on the architectures people deploy, from both of torch's exporters; each is explained end to end.

Weights are random: what is proved is that the graph is understood, every node has a rule, the ledger closes and a batch
is its images one by one.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import tiny_models

torch = pytest.importorskip("torch")

from torch_reference.export import Exporter, export, live, smooth_images  # noqa: E402
from torch_reference.torchvision_import import import_torchvision  # noqa: E402

from fgcam_onnx import Explainer  # noqa: E402
from fgcam_onnx.errors import ModelError  # noqa: E402

# Name, (h, w), exporter, (channels, h, w) of L, the operator that makes L, number of spatial sizes with a stage.
ARCHITECTURES = [
    ("vgg11_bn", (64, 64), "dynamo", (512, 2, 2), "MaxPool", 6),
    ("vgg11_bn", (64, 64), "legacy", (512, 2, 2), "MaxPool", 6),
    ("resnet18", (64, 96), "dynamo", (512, 2, 3), "Relu", 5),
    ("resnet18", (64, 96), "legacy", (512, 2, 3), "Relu", 5),
    ("densenet121", (64, 64), "legacy", (1024, 2, 2), "Relu", 5),
    ("squeezenet1_1", (65, 97), "dynamo", (512, 4, 6), "Concat", 4),
    ("squeezenet1_1", (65, 97), "legacy", (512, 4, 6), "Concat", 4),
    ("mobilenet_v2", (64, 96), "legacy", (1280, 2, 3), "Clip", 6),
    ("mobilenet_v3_small", (96, 64), "legacy", (576, 3, 2), "Mul", 6),
    ("efficientnet_b0", (64, 64), "legacy", (1280, 2, 2), "Mul", 6),
    ("googlenet", (64, 96), "legacy", (1024, 2, 3), "Concat", 5),
]
# Exporting these takes half a minute each.
SLOW = [
    ("mobilenet_v2", (64, 96), "dynamo", (1280, 2, 3), "Clip", 6),
    ("mobilenet_v3_small", (96, 64), "dynamo", (576, 3, 2), "HardSwish", 6),
    ("inception_v3", (107, 107), "legacy", (2048, 2, 2), "Concat", 6),
]
CASES = [
    *(pytest.param(*case, id=f"{case[0]}-{case[2]}") for case in ARCHITECTURES),
    *(pytest.param(*case, id=f"{case[0]}-{case[2]}", marks=pytest.mark.slow) for case in SLOW),
]
CLASSES = 7


@cache
def exported(name: str, size: tuple[int, int], exporter: Exporter) -> bytes:
    models = import_torchvision().models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "googlenet":
        options["aux_logits"] = False
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
    if name == "inception_v3":
        model.AuxLogits = None
        model.aux_logits = False
    if name == "vgg11_bn":  # as published, but without the 400 MB of its first linear layer
        model.avgpool = torch.nn.AdaptiveAvgPool2d((1, 1))
        model.classifier = torch.nn.Sequential(torch.nn.Linear(512, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES))
    return export(live(model, 0, size, images=2), torch.zeros(1, 3, *size), exporter=exporter)


@pytest.mark.parametrize(("name", "size", "exporter", "shape", "op", "stages"), CASES)
def test_architecture(
    name: str, size: tuple[int, int], exporter: Exporter, shape: tuple[int, ...], op: str, stages: int
) -> None:
    """methods 2.2 says which tensor L is; coverage is complete; the map is finite and accounted for; 2 = 1 + 1."""
    explainer = Explainer(exported(name, size, exporter), threads=2)
    found = explainer.layers()
    producer = explainer.graph.producer(explainer.default_layer)
    assert producer is not None
    assert (found[-1].shape[1:], producer.op) == (shape, op)
    assert found[-1].default
    assert sum(stage.default for stage in found) == 1
    assert (found[0].name, found[0].scale) == ("image", 1.0)
    assert len({stage.shape[2:] for stage in found}) == stages
    areas = [math.prod(stage.shape[2:]) for stage in found]  # type: ignore[arg-type]
    assert areas == sorted(areas, reverse=True)

    coverage = explainer.coverage()
    assert coverage.complete, coverage.gaps
    assert explainer.num_classes == CLASSES
    assert not [r for r in explainer.graph.refusals if r.reason.startswith("a constant")]

    x = smooth_images(2, size, 3).numpy()
    both = explainer.explain(x, target=[1, 4])
    assert both.relevance.shape == (2, *size)
    assert np.isfinite(both.relevance).all()
    assert both.relevance.any()
    assert both.ledger.residual < 1e-4
    total = both.ledger.start - sum(row.leaked for row in both.ledger.rows)
    np.testing.assert_allclose(both.ledger.arrived, total, atol=1e-4 * both.ledger.start_absolute.max())
    for i, target in enumerate((1, 4)):
        one = explainer.explain(x[i : i + 1], target=target).relevance[0]
        np.testing.assert_allclose(one, both.relevance[i], atol=1e-4 * np.abs(one).max())


def test_both_exporters_give_the_same_map() -> None:
    """One network, two exporters, different operators in the file: the same map."""
    for name in ("resnet18", "squeezenet1_1"):
        size = (64, 96) if name == "resnet18" else (65, 97)
        x = smooth_images(1, size, 5).numpy()
        one, two = (
            Explainer(exported(name, size, exporter), threads=2).explain(x, target=2)
            for exporter in ("dynamo", "legacy")
        )
        scale = np.abs(two.relevance).max()
        np.testing.assert_allclose(one.relevance, two.relevance, atol=2e-3 * scale)


# --- the rule for L on small graphs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start", "stages"),
    [
        ("vgg", "pool2.y", ["image", "pool1.y", "pool2.y"]),
        ("residual", "b2.relu2.y", ["image", "b1.relu2.y", "b2.relu2.y"]),
        ("squeeze_excite", "hs.div.y", ["image", "se.scale.y", "hs.div.y"]),
        ("concat", "pool.y", ["image", "pool.y"]),
        ("nhwc", "to_nhwc.y", ["image", "relu1.y", "to_nhwc.y"]),
        ("softmax_end", "relu2.y", ["image", "pool.y", "relu2.y"]),
        ("one_d", "relu2.y", ["image", "pool.y", "relu2.y"]),
        ("three_d", "relu2.y", ["image", "pool.y", "relu2.y"]),
    ],
)
def test_stages_of_small_networks(name: str, start: str, stages: list[str]) -> None:
    """Cuts only, the last before each reduction, or the pool's own output where a pool reduces."""
    explainer = Explainer(getattr(tiny_models, name)())
    assert explainer.default_layer == start
    assert [stage.name for stage in explainer.layers()] == stages


def test_l_is_taken_before_average_pooling_of_the_head() -> None:
    """An adaptive pool to 2 x 2 and a linear layer: L is the tensor before the pool, as for VGG."""
    net = tiny_models.Net()
    x = net.relu("relu", net.conv("conv", "image", 3, 4))
    x = net.node("AveragePool", "adaptive", x, kernel_shape=[8, 6], strides=[8, 6])
    model = net.model(net.node("Gemm", "fc", net.node("Flatten", "flat", x), net.random(16, 5)))
    assert Explainer(model).default_layer == "relu.y"


def test_average_pooling_in_mid_network_is_no_head() -> None:
    """DenseNet's transitions: a pool with 3 x 3 convolutions behind it stays where it is; L is at the end."""
    net = tiny_models.Net()
    x = net.node("AveragePool", "transition", net.relu("relu1", net.conv("conv1", "image", 3, 4)), kernel_shape=[2, 2],
                 strides=[2, 2])  # fmt: skip
    model = net.model(net.head(net.relu("relu2", net.conv("conv2", x, 4, 4)), 4))
    explainer = Explainer(model)
    assert [s.name for s in explainer.layers()] == ["image", "transition.y", "relu2.y"]


def test_scales() -> None:
    """The scale of a stage is its height relative to the image's; nan where sizes are free."""
    scales = [stage.scale for stage in Explainer(tiny_models.vgg()).layers()]
    assert scales == [1.0, 0.5, 0.25]
    assert [stage.node for stage in Explainer(tiny_models.vgg()).layers()] == ["image", "pool1", "pool2"]
    free = Explainer(tiny_models.free_size()).layers()
    assert all(math.isnan(stage.scale) for stage in free)


def test_a_branch_is_no_cut() -> None:
    """A tensor beside a shortcut cannot be a stage: relevance passes it by."""
    names = {stage.name for stage in Explainer(tiny_models.residual()).layers()}
    assert not names & {"b1.relu1.y", "b1.conv2.y", "b2.conv2.y", "b2.down.y"}


def test_a_classifier_without_learned_weights_behind_any_space() -> None:
    """One convolution whose pooled maps are the logits: L would be the image, so the user has to name the start."""
    net = tiny_models.Net()
    x = net.node("GlobalAveragePool", "gap", net.relu("relu", net.conv("conv", "image", 3, 5)))
    model = net.model(net.node("Flatten", "flat", x))
    with pytest.raises(ModelError) as caught:
        Explainer(model).layers()
    assert caught.value.what.startswith("no layer to start from: ")
    e = Explainer(model).explain(tiny_models.pictures(model), start="relu.y")
    assert e.start == "relu.y"


def test_the_picture_turned_or_quantised_is_no_stage_of_its_own() -> None:
    """A Transpose to channels first, a QuantizeLinear: their map would be the picture's once more."""
    from test_quantised import DYNAMIC, quantised

    assert [stage.name for stage in Explainer(tiny_models.nhwc()).layers()] == ["image", "relu1.y", "to_nhwc.y"]
    for kind in ("qoperator", "qdq", DYNAMIC):
        stages = Explainer(quantised(kind, "residual")[1]).layers()
        assert [stage.scale for stage in stages] == [1.0, 1.0, 0.5]
        assert stages[0].name == "image"
        assert "image" not in stages[1].name
