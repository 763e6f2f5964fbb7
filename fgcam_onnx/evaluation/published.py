"""The figures of the FG-CAM paper, tables 1 to 6, and the network they were measured on.

VGG-16-BN with the torchvision weights on ILSVRC2012 val: 2000 random pictures for A.D., A.I., insertion and deletion,
500 with one box of at most half the picture for localisation. L33, L23 and L13 are modules 33, 23 and 13 of
``vgg16_bn.features``: the max-pools after the fourth, third and second block, 14 x 14, 28 x 28 and 56 x 56 at 224.

    published("fg-grad-cam", 33, "average_drop")        18.69
    published("lrp", "input", "overall")                 0.45369

A file tells its shapes, not whose weights it holds. BatchNormalization folded into the Convs leaves VGG-16 and
VGG-16-BN alike: ``looks_like_vgg16`` says what the shapes can say, ``provenance`` what they cannot.

Source: methods 8.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from fgcam_onnx.graph.layer import LayerGraph

__all__ = [
    "FIGURES",
    "INPUT_METHODS",
    "LAYERS",
    "METHODS",
    "PUBLISHED",
    "Published",
    "looks_like_vgg16",
    "provenance",
    "published",
    "published_layers",
    "recognise",
]

Place = Literal[33, 23, 13, "input"]
# Of a place, by method.
Published = Mapping[str, float]

LAYERS: tuple[Literal[33, 23, 13], ...] = (33, 23, 13)
METHODS = (
    "grad-cam",
    "fg-grad-cam",
    "fg-grad-cam+denoise",
    "score-cam",
    "fg-score-cam",
    "fg-score-cam+denoise",
    "layer-cam",
)
INPUT_METHODS = (
    "lrp",
    "clrp",
    "sglrp",
    "fg-grad-cam",
    "fg-grad-cam+denoise",
    "fg-score-cam",
    "fg-score-cam+denoise",
)
FIGURES = ("average_drop", "average_increase", "insertion", "deletion", "overall", "proportion")


def _row(methods: Sequence[str], *values: float) -> Published:
    return MappingProxyType(dict(zip(methods, values, strict=True)))


PUBLISHED: Mapping[str, Mapping[Place, Published]] = MappingProxyType(
    {
        "average_drop": MappingProxyType(
            {
                33: _row(METHODS, 44.53, 18.69, 18.00, 32.63, 21.13, 19.19, 24.25),
                23: _row(METHODS, 72.89, 19.55, 17.75, 51.24, 22.63, 18.99, 27.32),
                13: _row(METHODS, 83.80, 19.65, 17.90, 57.06, 23.50, 19.24, 30.76),
                "input": _row(INPUT_METHODS, 25.48, 30.64, 40.62, 16.81, 16.13, 20.28, 16.84),
            }
        ),
        "average_increase": MappingProxyType(
            {
                33: _row(METHODS, 18.85, 34.90, 33.85, 21.60, 29.15, 31.70, 26.80),
                23: _row(METHODS, 5.10, 33.45, 33.55, 13.80, 27.15, 32.00, 24.50),
                13: _row(METHODS, 3.25, 32.35, 34.00, 12.00, 25.85, 30.50, 24.40),
                "input": _row(INPUT_METHODS, 25.00, 24.15, 21.75, 36.45, 36.55, 30.15, 31.80),
            }
        ),
        "insertion": MappingProxyType(
            {
                33: _row(METHODS, 0.43920, 0.60214, 0.60247, 0.51428, 0.58202, 0.59716, 0.56566),
                23: _row(METHODS, 0.30033, 0.59217, 0.60248, 0.39734, 0.57210, 0.59676, 0.54096),
                13: _row(METHODS, 0.23266, 0.58630, 0.59976, 0.36485, 0.56570, 0.59341, 0.51348),
                "input": _row(INPUT_METHODS, 0.55344, 0.56740, 0.51655, 0.60757, 0.61386, 0.58608, 0.60566),
            }
        ),
        "deletion": MappingProxyType(
            {
                33: _row(METHODS, 0.15392, 0.09640, 0.11108, 0.11988, 0.10196, 0.11198, 0.09997),
                23: _row(METHODS, 0.19113, 0.09459, 0.11378, 0.14254, 0.09985, 0.11403, 0.09333),
                13: _row(METHODS, 0.16850, 0.09256, 0.11421, 0.15037, 0.09774, 0.11435, 0.08469),
                "input": _row(INPUT_METHODS, 0.09975, 0.19168, 0.22315, 0.08668, 0.11271, 0.08980, 0.11143),
            }
        ),
        "overall": MappingProxyType(
            {
                33: _row(METHODS, 0.28528, 0.50574, 0.49139, 0.39440, 0.48006, 0.48518, 0.46569),
                23: _row(METHODS, 0.10920, 0.49758, 0.48870, 0.25480, 0.47225, 0.48273, 0.44763),
                13: _row(METHODS, 0.06416, 0.49374, 0.48555, 0.21448, 0.46796, 0.47906, 0.42879),
                "input": _row(INPUT_METHODS, 0.45369, 0.37572, 0.29340, 0.52089, 0.50115, 0.49628, 0.49423),
            }
        ),
        "proportion": MappingProxyType(
            {
                33: _row(METHODS, 0.32417, 0.51458, 0.66736, 0.35646, 0.57161, 0.68256, 0.49272),
                23: _row(METHODS, 0.31645, 0.50995, 0.65744, 0.28588, 0.56192, 0.67233, 0.49854),
                13: _row(METHODS, 0.30760, 0.50861, 0.65472, 0.29219, 0.56001, 0.66959, 0.48238),
                "input": _row(INPUT_METHODS, 0.48385, 0.59515, 0.52136, 0.49503, 0.65496, 0.54000, 0.66983),
            }
        ),
    }
)

# Channels of the 13 convolutions, block by block; a max-pool ends each block.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HEAD = ((4096, 25088), (4096, 4096), (1000, 4096))
# Blocks whose pool is in the tables, by position.
_POOLS: Mapping[int, Literal[33, 23, 13]] = MappingProxyType({3: 33, 2: 23, 1: 13})


def published(method: str, layer: int | str, figure: str) -> float | None:
    """What the paper gives for ``method`` at ``layer``, 33, 23, 13 or "input"; None where it gives nothing."""
    for place, values in PUBLISHED.get(figure, {}).items():
        if place == layer:
            return values.get(method)
    return None


def looks_like_vgg16(convolutions: Sequence[Sequence[int]], dense: Sequence[Sequence[int]]) -> bool:
    """Are these the weights of VGG-16 for 1000 classes, by their shapes and order?

    ``convolutions``: weight shapes [co, ci, kh, kw] of all Convs; ``dense``: weight shapes of all dense layers, either
    way round. The number of channels that reach the head fixes the picture to 7 x 7 cells there, not to 224 pixels.
    """
    channels = [3, *(width for block in _BLOCKS for width in block)]
    expected = [(out, into, 3, 3) for into, out in itertools.pairwise(channels)]
    if [tuple(shape) for shape in convolutions] != expected or len(dense) != len(_HEAD):
        return False
    return all(tuple(have) in (want, want[::-1]) for have, want in zip(dense, _HEAD, strict=True))


def published_layers(pools: Sequence[str]) -> dict[str, int]:
    """Tensor name -> 33, 23 or 13, of the outputs of VGG-16's five max-pools in their order; else {}."""
    return {pools[block]: index for block, index in _POOLS.items()} if len(pools) == len(_BLOCKS) else {}


def recognise(graph: LayerGraph) -> dict[str, int]:
    """Tensor name -> 33, 23 or 13 if the network has VGG-16's shapes, else {}. ``graph``: as an Explainer sees it."""
    convolutions, dense, pools = [], [], []
    for layer in graph.layers:
        weight = layer.constants.get(1)
        if layer.op == "Conv":
            convolutions.append(() if weight is None else weight.shape)
        elif layer.op in ("Gemm", "MatMul"):
            dense.append(() if weight is None else weight.shape)
        elif layer.op == "MaxPool":
            pools.append(layer.output)
    return published_layers(pools) if looks_like_vgg16(convolutions, dense) else {}


def provenance(batch_norm: bool | None = None) -> str:
    """The sentence under a table with published figures.

    ``batch_norm``: does this file still hold BatchNormalization? False for a file without, which may have folded it.
    """
    known = "published: for VGG-16-BN with the torchvision weights, ILSVRC2012 val, 2000 pictures (localisation: 500)"
    here = "this model has VGG-16's shapes; whose weights it holds, the file does not say"
    if batch_norm:
        here = "this model has VGG-16's shapes and BatchNormalization; whose weights it holds, the file does not say"
    elif batch_norm is False:
        here += ", nor whether a BatchNormalization was folded into them"
    return f"{known}; {here}"
