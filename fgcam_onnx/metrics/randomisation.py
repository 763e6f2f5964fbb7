"""Parameter randomisation: does the map notice when the network forgets what it has learnt?

    cascading      step k: the last k layers random, from the logits down
    independent    one layer at a time random, all others as they are
    figures        Spearman of |E| and |E'|, SSIM of E and E', each over its largest size       lower is better

E is the map of the file's network, E' that of the random one, for the same class. The efficient variant asks one
network, all layers random:

    (H(E') - H(E)) / H(E),  H = entropy of a histogram of 100 bins from min E to max E          higher is better

A layer is random when its weight is drawn anew, N(mean, deviation^2) of the tensor itself. Integers of quantised
weights are drawn by the same rule, rounded and kept within their type; scales stay. Biases, normalisations and what a
MatMul adds behind it stay as well. A weight that two layers share is drawn for both at once. Its draw depends on the
seed and its name alone: steps of a cascade build on each other.

Undefined where a map is constant, as those of dead networks are, and where the random network overflows. Methods of z+
chains tend to one pattern whatever the weights: they score high here, and it is said, not hidden.

Source: methods 7.6; Adebayo et al. 2018; Hedström et al. 2023 (efficient variant).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fgcam_onnx.errors import ActivationError, InputError, LayerError, ModelError, OptionError, nearest
from fgcam_onnx.graph.layer import Layer, LayerGraph
from fgcam_onnx.graph.load import LoadedModel, load
from fgcam_onnx.graph.view import build_view, node_names
from fgcam_onnx.metrics.base import Accumulator
from fgcam_onnx.metrics.explaining import classes_of, maps_of
from fgcam_onnx.metrics.maps import checked, entropy
from fgcam_onnx.metrics.similarity import spearman, ssim

if TYPE_CHECKING:
    from fgcam_onnx import Explainer

__all__ = [
    "EfficientRandomisation",
    "Randomisation",
    "Randomised",
    "alike",
    "efficient_randomisation",
    "histogram_entropy",
    "random_twin",
    "randomisation",
    "randomised",
    "weight_layers",
]

Array = npt.NDArray[Any]
ORDERS = ("cascading", "independent")
# Layers of the view that have a weight.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Which operands of a node of the file may be it.
WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1, 0),
    "MatMul": (1, 0),
    "QLinearConv": (3,),
    "QLinearMatMul": (3, 0),
    "ConvInteger": (1,),
    "MatMulInteger": (1, 0),
    "QGemm": (3,),
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (1,),
}
# Between a tensor of the file and the layer that reads it: these move, retype or decode its numbers.
MOVES = ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
PASSING = (*MOVES, "QuantizeLinear", "DequantizeLinear")
# What one protobuf message can hold, in bytes.
MOST = (1 << 31) - 1


# --- the weights ------------------------------------------------------------------------------------------------------


def weight_layers(explainer: Explainer) -> tuple[str, ...]:
    """The layers on the way from the picture to the logits that have a weight, by name, in the order of the graph."""
    return tuple(layer.name for layer in _weighted(explainer.graph))


def randomised(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | Explainer,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """The model with the weights of these layers drawn anew; None for all of :func:`weight_layers`.

    Raises:
        LayerError: a layer that does not exist, or has no weight.
        ModelError: a weight that is no tensor of the file, or of a type that cannot be drawn; more than 2 GB of
            weights, which no ModelProto can be written with.
    """
    source: Any = model
    loaded: LoadedModel = source._model if hasattr(source, "explain") else load(source)
    graph = source.graph if hasattr(source, "explain") else build_view(loaded)
    drawn = _randomised(loaded, graph, layers, seed)
    size = sum(array.nbytes for array in drawn.weights.values())
    if size > MOST:
        raise ModelError(f"a ModelProto cannot hold {size:,} bytes of weights", next="randomisation() can do without")
    proto = onnx.ModelProto()
    proto.CopyFrom(drawn.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in drawn.weights:
            tensor.CopyFrom(numpy_helper.from_array(drawn.weights[tensor.name], tensor.name))
    return proto


def _weighted(graph: LayerGraph) -> list[Layer]:
    """Layers with a constant weight between the picture and the logits."""
    upstream, downstream = graph.ancestors(graph.logits), graph.descendants(graph.image)
    between = upstream & downstream
    return [
        layer
        for layer in graph.layers
        if layer.op in WEIGHTED
        and between.intersection(layer.outputs)
        and any(position in layer.constants for position in (0, 1))
    ]


def _randomised(model: LoadedModel, graph: LayerGraph, layers: Sequence[str] | None, seed: int) -> LoadedModel:
    """``model`` with the weights of these layers drawn anew. Arrays of the others are shared with it."""
    known = {layer.name: layer for layer in _weighted(graph)}
    chosen = list(known) if layers is None else list(layers)
    for name in chosen:
        if name not in known:
            raise LayerError(
                f"there is no layer {name!r} with a weight",
                known=f"{', '.join(list(known)[:8])}{' and more' if len(known) > 8 else ''}",
                next=nearest(name, known) or None,
            )
    proto, weights = onnx.ModelProto(), dict(model.weights)
    proto.CopyFrom(model.proto)
    sources = _Sources(proto)
    digest = hashlib.sha256(f"{model.sha256} random {seed}".encode())
    for name in dict.fromkeys(source for layer in chosen for source in sources.of(known[layer])):
        tensor = sources.tensors[name]
        kept = weights.get(name)
        values = numpy_helper.to_array(tensor) if kept is None else kept
        drawn = _drawn(values, name, seed)
        digest.update(name.encode())
        if kept is not None:
            weights[name] = drawn
        else:
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    return replace(model, proto=proto, weights=weights, sha256=digest.hexdigest(), path=None)


def _drawn(values: Array, name: str, seed: int) -> Array:
    """An array like ``values``, N(mean, deviation^2) of its own numbers."""
    if values.dtype.kind not in "fiu":
        raise ModelError(
            f"the weight {name!r} cannot be drawn anew", known=f"it is {values.dtype}", next="export it as float32"
        )
    wide = values.astype(np.float64)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = random.normal(wide.mean(), wide.std(), values.shape)
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        drawn = np.clip(np.rint(drawn), limits.min, limits.max)
    return drawn.astype(values.dtype)


class _Sources:
    """Where the weights of layers are in the file: initializers, and Constant nodes by the name of their output."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self.nodes = node_names(proto)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        for name, node in self.producers.items():
            if node.op_type == "Constant":
                self.tensors.update((name, a.t) for a in node.attribute if a.name == "value")

    def of(self, layer: Layer) -> list[str]:
        """The names of the tensors behind the weight of a layer."""
        for name in dict.fromkeys((layer.name, *layer.nodes)):
            node = self.nodes.get(name)
            if node is None:
                continue
            for position in WEIGHTS.get(node.op_type, ()):
                found = self._behind(node.input[position]) if position < len(node.input) else None
                if found is not None:
                    return [found]
        raise ModelError(
            "the weight of a layer is not a tensor of the file, and cannot be drawn anew",
            at=f"layer {layer.name!r} ({layer.op})",
            known="initializers and Constant nodes can, also behind " + ", ".join(PASSING),
            next="layers= takes the names of others, or export the model with its constants folded",
        )

    def _behind(self, name: str) -> str | None:
        while name not in self.tensors:
            node = self.producers.get(name)
            if node is None or node.op_type not in PASSING:
                return None
            name = node.input[0]
        return name


# --- the metric -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Randomised:
    """``layers``: the one that each step made random. ``spearman``, ``ssim``: float64 [n, steps]."""

    layers: tuple[str, ...]
    spearman: Array
    ssim: Array


def randomisation(
    explainer: Explainer,
    x: Any,
    target: Any = None,
    *,
    order: str = "cascading",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    window: int = 7,
    **options: Any,
) -> Randomised:
    """How alike the maps of n pictures are to those of networks that are random in part.

    ``target``: a class for all, or one each; None for what ``explainer`` predicts. ``order``: "cascading" or
    "independent". ``layers``: names of :func:`weight_layers`, None for all; they are taken from the logits down.
    ``seed``: of the draws. ``window``: of SSIM. ``options``: ``method`` and others of ``Explainer.explain``. Every step
    loads a network: give many pictures at once.

    Raises:
        LayerError, ModelError: as :func:`randomised`. And as ``Explainer.explain``.
    """
    if order not in ORDERS:
        raise OptionError(f"option order cannot be {order!r}", known=", ".join(ORDERS))
    every = _with_weights(explainer)
    chosen = every if layers is None else tuple(layers)
    if not chosen:
        raise LayerError("layers= names no layer", known=", ".join(every[:8]))
    steps = [name for name in reversed(every) if name in chosen]
    steps += [name for name in chosen if name not in every]  # which no draw is made of: it says why
    pictures, classes = _asked(explainer, x, target, options)
    own = maps_of(explainer, options)(pictures, classes)
    found = []
    for i, name in enumerate(steps):
        twin = random_twin(explainer, steps[: i + 1] if order == "cascading" else [name], seed)
        found.append(alike(own, _maps(twin, pictures, classes, options), window))
    return Randomised(tuple(steps), np.stack([s for s, _ in found], axis=1), np.stack([s for _, s in found], axis=1))


def efficient_randomisation(
    explainer: Explainer, x: Any, target: Any = None, *, bins: int = 100, seed: int = 0, **options: Any
) -> Array:
    """(H(E') - H(E)) / H(E) of each picture, all layers random, float64 [n]; NaN of a constant map.

    ``bins``: of the histogram. The other arguments as of :func:`randomisation`.

    Raises:
        ModelError: as :func:`randomised`. And as ``Explainer.explain``.
    """
    _with_weights(explainer)
    return _rise(explainer, random_twin(explainer, None, seed), x, target, bins, options)


def _rise(explainer: Any, twin: Any, x: Any, target: Any, bins: int, options: Mapping[str, Any]) -> Array:
    pictures, classes = _asked(explainer, x, target, options)
    own = histogram_entropy(maps_of(explainer, options)(pictures, classes), bins=bins)
    maps = _maps(twin, pictures, classes, options)
    if maps is None:
        return np.full(len(own), np.nan)
    rise = histogram_entropy(maps, bins=bins) - own
    found: Array = np.divide(rise, own, out=np.full(len(own), np.nan), where=own > 0)
    return found


def histogram_entropy(relevance: Any, *, bins: int = 100) -> Array:
    """Of each map [n, ...] in nats, float64 [n]: ``bins`` of equal width from its least to its largest value.

    Raises:
        InputError, OptionError: no maps, or less than 2 bins.
    """
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 2:
        raise OptionError(f"option bins cannot be {bins!r}", known="of the histogram, at least 2")
    counts = [np.histogram(each, bins=int(bins))[0] for each in checked(relevance)]
    return entropy(np.array(counts, np.float64))


def _with_weights(explainer: Any) -> tuple[str, ...]:
    """The layers that can be made random; raises where there is no Explainer, or no such layer."""
    if not hasattr(explainer, "explain"):
        raise InputError(
            "parameter randomisation draws the weights of a model anew, and asks an Explainer for them",
            known=f"it is {type(explainer).__name__}",
        )
    layers = weight_layers(explainer)
    if not layers:
        raise LayerError("no layer of this model has a weight to draw anew")
    return layers


def _asked(explainer: Any, x: Any, target: Any, options: Mapping[str, Any]) -> tuple[Array, Array | None]:
    pictures = np.asarray(x)
    return pictures, classes_of(explainer, pictures, target, inputs=options.get("inputs"))


def random_twin(explainer: Any, layers: Sequence[str] | None, seed: int) -> Explainer:
    """An Explainer of the network with these layers random, that computes as ``explainer`` does.

    It has a backend of its own: what was compiled for the random network goes when it goes.
    """
    from fgcam_onnx import Explainer

    drawn: Any = _randomised(explainer._model, explainer.graph, layers, seed)
    return Explainer(
        drawn,
        backend=explainer.backend,
        precision=explainer.precision,
        providers=explainer._engine._providers,
        input=explainer.graph.image,
        output=explainer._output,
        threads=explainer._engine._threads,
    )


def _maps(twin: Explainer, x: Array, classes: Array | None, options: Mapping[str, Any]) -> Array | None:
    """Of a random network; None where it overflows."""
    try:
        return maps_of(twin, options)(x, classes)
    except ActivationError:
        return None


def alike(own: Array, other: Array | None, window: int = 7) -> tuple[Array, Array]:
    """Spearman of the sizes and SSIM of the maps over their largest, [n] each."""
    if other is None:
        return np.full(len(own), np.nan), np.full(len(own), np.nan)
    return spearman(np.abs(own), np.abs(other)), ssim(_scaled(own), _scaled(other), window=window)


def _scaled(maps: Array) -> Array:
    size = np.abs(maps).max(axis=tuple(range(1, maps.ndim)), keepdims=True)
    found: Array = np.divide(maps, size, out=np.zeros(maps.shape), where=size > 0)
    return found


class Randomisation(Accumulator):
    """The means over the steps. Options as of :func:`randomisation`; ``update(x, target)``."""

    figures = ("spearman", "ssim")

    def __init__(self, explainer: Explainer, **options: Any) -> None:
        super().__init__()
        self.explainer, self.options = explainer, options

    def measure(self, x: Any, target: Any = None) -> Mapping[str, Array]:
        found = randomisation(self.explainer, x, target, **self.options)
        return {"spearman": _mean(found.spearman), "ssim": _mean(found.ssim)}


def _mean(steps: Array) -> Array:
    """Over the steps that are defined; NaN where none is."""
    known = ~np.isnan(steps)
    count = known.sum(axis=1)
    whole = np.where(known, steps, 0).sum(axis=1)
    found: Array = np.divide(whole, count, out=np.full(len(steps), np.nan), where=count > 0)
    return found


class EfficientRandomisation(Accumulator):
    """The random network is made once. Options as of :func:`efficient_randomisation`; ``update(x, target)``."""

    figures = ("entropy_rise",)

    def __init__(self, explainer: Explainer, *, bins: int = 100, seed: int = 0, **options: Any) -> None:
        super().__init__()
        _with_weights(explainer)
        self.explainer, self.bins, self.options = explainer, bins, options
        self._random = random_twin(explainer, None, seed)

    def measure(self, x: Any, target: Any = None) -> Mapping[str, Array]:
        return {"entropy_rise": _rise(self.explainer, self._random, x, target, self.bins, self.options)}
