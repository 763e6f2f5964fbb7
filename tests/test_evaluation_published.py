"""The paper's figures: as printed, consistent in themselves, and put beside the right layers of the right network."""

from __future__ import annotations

import numpy as np
import pytest
from torch_reference import import_torchvision

from fgcam_onnx.evaluation.published import (
    FIGURES,
    INPUT_METHODS,
    LAYERS,
    METHODS,
    PUBLISHED,
    looks_like_vgg16,
    provenance,
    published,
    published_layers,
    recognise,
)
from fgcam_onnx.graph.layer import Layer, LayerGraph

CONVOLUTIONS = [
    (64, 3, 3, 3),
    (64, 64, 3, 3),
    (128, 64, 3, 3),
    (128, 128, 3, 3),
    (256, 128, 3, 3),
    (256, 256, 3, 3),
    (256, 256, 3, 3),
    (512, 256, 3, 3),
    (512, 512, 3, 3),
    (512, 512, 3, 3),
    (512, 512, 3, 3),
    (512, 512, 3, 3),
    (512, 512, 3, 3),
]
HEAD = [(4096, 25088), (4096, 4096), (1000, 4096)]


@pytest.mark.parametrize(
    ("method", "layer", "figure", "value"),
    [
        ("grad-cam", 33, "average_drop", 44.53),
        ("fg-grad-cam", 33, "average_increase", 34.90),
        ("fg-grad-cam+denoise", 23, "average_drop", 17.75),
        ("score-cam", 13, "average_increase", 12.00),
        ("fg-score-cam", 23, "average_increase", 27.15),
        ("layer-cam", 13, "deletion", 0.08469),
        ("layer-cam", 33, "overall", 0.46569),
        ("fg-score-cam+denoise", 13, "insertion", 0.59341),
        ("fg-score-cam", 33, "proportion", 0.57161),
        ("grad-cam", 13, "proportion", 0.30760),
        ("lrp", "input", "average_drop", 25.48),
        ("clrp", "input", "deletion", 0.19168),
        ("sglrp", "input", "overall", 0.29340),
        ("fg-grad-cam", "input", "overall", 0.52089),
        ("fg-score-cam+denoise", "input", "proportion", 0.66983),
        ("lrp", 33, "average_drop", None),
        ("grad-cam", "input", "average_drop", None),
        ("grad-cam", 43, "average_drop", None),
        ("grad-cam", 33, "pointing_game", None),
        ("rise", 33, "overall", None),
    ],
)
def test_spot_checks(method: str, layer: int | str, figure: str, value: float | None) -> None:
    assert published(method, layer, figure) == value


def test_every_cell_is_there() -> None:
    """Six figures, seven methods at three layers and seven at the input: 168 numbers, percentages as such."""
    places = [(method, layer) for layer in LAYERS for method in METHODS] + [(m, "input") for m in INPUT_METHODS]
    values = {(place, figure): published(*place, figure) for place in places for figure in FIGURES}
    assert len(values) == 168 == sum(len(row) for places in PUBLISHED.values() for row in places.values())
    assert None not in values.values()
    for (_, figure), value in values.items():
        low, high = (3, 84) if figure.startswith("average") else (0.05, 0.69)
        assert low < value < high


# sum of position * last digits, of each row as printed: L33, L23, L13, input. A wrong digit or two that changed places.
CHECKSUMS = {
    "average_drop": [65697, 78853, 85330, 59607],
    "average_increase": [80015, 72710, 70100, 87060],
    "insertion": [1596069, 1510925, 1464726, 1649357],
    "deletion": [304095, 312855, 306536, 338164],
    "overall": [1291974, 1198070, 1158190, 1311193],
    "proportion": [1518370, 1478555, 1465199, 1642196],
}


@pytest.mark.parametrize("figure", CHECKSUMS)
def test_no_digit_has_changed(figure: str) -> None:
    scale = 100 if figure.startswith("average") else 100000
    sums = [sum(i * round(v * scale) for i, v in enumerate(r.values(), start=1)) for r in PUBLISHED[figure].values()]
    assert sums == CHECKSUMS[figure]


def test_overall_is_insertion_less_deletion() -> None:
    """In all 28 cells, exactly to the paper's fifth digit."""
    cells = [(m, layer) for layer in LAYERS for m in METHODS] + [(m, "input") for m in INPUT_METHODS]
    assert len(cells) == 28
    for cell in cells:
        difference = published(*cell, "insertion") - published(*cell, "deletion")
        assert abs(difference - published(*cell, "overall")) < 1e-9, cell


def test_orderings_hold_in_what_was_published() -> None:
    for layer in LAYERS:
        for x in ("grad-cam", "score-cam"):
            assert published(f"fg-{x}", layer, "average_drop") < published(x, layer, "average_drop")
            assert published(f"fg-{x}", layer, "average_increase") > published(x, layer, "average_increase")
            assert published(f"fg-{x}", layer, "overall") > published(x, layer, "overall")
    for layer in (*LAYERS, "input"):
        for x in ("fg-grad-cam", "fg-score-cam"):
            raised = published(f"{x}+denoise", layer, "proportion") - published(x, layer, "proportion")
            assert 0.1095 < raised < 0.1605
            assert published(f"{x}+denoise", layer, "deletion") > published(x, layer, "deletion")
        assert (
            0 < published("fg-grad-cam", layer, "overall") - published("fg-grad-cam+denoise", layer, "overall") < 0.02
        )
    for layer in (23, 13):
        row = PUBLISHED["deletion"][layer]
        assert min(row, key=row.__getitem__) == "layer-cam"


def test_the_data_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PUBLISHED["overall"][33]["grad-cam"] = 1.0  # type: ignore[index]


# --- which network ----------------------------------------------------------------------------------------------------


def test_vgg16_by_its_shapes() -> None:
    assert looks_like_vgg16(CONVOLUTIONS, HEAD)
    assert looks_like_vgg16(CONVOLUTIONS, [shape[::-1] for shape in HEAD])  # MatMul keeps [in, out]
    assert looks_like_vgg16([list(shape) for shape in CONVOLUTIONS], [list(shape) for shape in HEAD])


@pytest.mark.parametrize(
    ("convolutions", "head"),
    [
        (CONVOLUTIONS[:-1], HEAD),
        ([*CONVOLUTIONS, (512, 512, 3, 3)], HEAD),  # VGG-19 has sixteen
        ([(64, 1, 3, 3), *CONVOLUTIONS[1:]], HEAD),  # grey pictures
        ([(64, 3, 1, 1), *CONVOLUTIONS[1:]], HEAD),
        (CONVOLUTIONS, [*HEAD[:2], (365, 4096)]),  # Places
        (CONVOLUTIONS, HEAD[:2]),
        (CONVOLUTIONS, [(1000, 512)]),
        (CONVOLUTIONS, [HEAD[1], HEAD[0], HEAD[2]]),
        ([], []),
    ],
)
def test_another_network(convolutions: list[tuple[int, ...]], head: list[tuple[int, ...]]) -> None:
    assert not looks_like_vgg16(convolutions, head)


def test_the_pools_of_the_tables() -> None:
    assert published_layers(["p1", "p2", "p3", "p4", "p5"]) == {"p4": 33, "p3": 23, "p2": 13}
    assert published_layers(["p1", "p2", "p3", "p4"]) == {}


def test_torchvision_counts_as_the_paper_does() -> None:
    """L33, L23, L13 are the max-pools after block 4, 3 and 2: 14, 28 and 56 cells a side at 224."""
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = import_torchvision().models.vgg16_bn(weights=None)
        sizes, pools, x = {}, [], torch.empty(1, 3, 224, 224)
        for i, module in enumerate(model.features):
            x = module(x)
            if isinstance(module, torch.nn.MaxPool2d):
                pools.append(str(i))
                sizes[i] = tuple(x.shape[1:])
    assert published_layers(pools) == {"33": 33, "23": 23, "13": 13}
    assert [sizes[i] for i in (33, 23, 13)] == [(512, 14, 14), (256, 28, 28), (128, 56, 56)]
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1]
    assert looks_like_vgg16([s for s in shapes if len(s) == 4], [s for s in shapes if len(s) == 2])


def layer(op: str, output: str, shape: tuple[int, ...] | None = None) -> Layer:
    constants = {} if shape is None else {1: np.broadcast_to(np.float32(0), shape)}
    return Layer(output, op, 13, ("x", "w"), (output,), constants=constants)


def vgg(head: list[tuple[int, ...]], known: bool = True) -> LayerGraph:
    """The layers of VGG-16 that count, weights of no size in memory."""
    layers, shapes = [], iter(CONVOLUTIONS)
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        layers += [layer("Conv", f"c{block}.{i}", next(shapes) if known else None) for i in range(convolutions)]
        layers += [layer("Relu", f"r{block}"), layer("MaxPool", f"pool{block}")]
    layers += [layer("Gemm", f"d{i}", shape) for i, shape in enumerate(head)]
    return LayerGraph(tuple(layers), {}, ("x",), ("d2",), "x", "d2")


def test_a_graph_is_recognised() -> None:
    assert recognise(vgg(HEAD)) == {"pool4": 33, "pool3": 23, "pool2": 13}
    assert recognise(vgg(HEAD[:2])) == {}
    assert recognise(vgg(HEAD, known=False)) == {}


def test_the_text_claims_no_more_than_the_file_says() -> None:
    known = "published: for VGG-16-BN with the torchvision weights, ILSVRC2012 val, 2000 pictures (localisation: 500); "
    here = "this model has VGG-16's shapes"
    assert provenance() == f"{known}{here}; whose weights it holds, the file does not say"
    assert provenance(True) == f"{known}{here} and BatchNormalization; whose weights it holds, the file does not say"
    assert provenance(False) == (
        f"{known}{here}; whose weights it holds, the file does not say, "
        "nor whether a BatchNormalization was folded into them"
    )
