"""For those who measure with Quantus: our maps and networks in its form, and its metrics by their names here.

    import quantus
    from fgcam_onnx.metrics import quantus as ours

    ours.evaluate(quantus.MaxSensitivity(), explainer, x, classes, method="fg-grad-cam")           # without PyTorch
    quantus.PixelFlipping()(model=ours.module(explainer), x_batch=x, y_batch=classes, a_batch=None,
                            explain_func=ours.explain_func(explainer), explain_func_kwargs={"method": "grad-cam"})
    ours.by_quantus_name("PixelFlipping")                                                   # deletion_insertion

Quantus takes a model of PyTorch or TensorFlow and wraps it itself; what it then works with is a ``ModelInterface``.
:func:`evaluate` gives it :func:`interface`, one of onnxruntime, in the place where a metric may change what it was
given. :func:`module` is for calls in Quantus' own form: a shell of PyTorch around the same session.

Maps are [n, 1, h, w], of the input's size. Quantus is licensed under the LGPL; nothing of it is in here, and only
:func:`interface` and :func:`evaluate` load it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import InputError, OptionError, nearest
from fgcam_onnx.metrics.pixels import at_input
from fgcam_onnx.optional import need

if TYPE_CHECKING:
    from fgcam_onnx import Explainer

__all__ = ["METRICS", "Equivalent", "a_batch", "by_quantus_name", "evaluate", "explain_func", "interface", "module"]

Array = npt.NDArray[Any]
CHUNK = 32
# Metrics that wrap the random networks once more themselves, and take only a framework's.
WRAPPED = ("EfficientMPRT",)


# --- maps -------------------------------------------------------------------------------------------------------------


def a_batch(explainer: Explainer, x: Any, targets: Any = None, *, signed: bool | None = None, **options: Any) -> Array:
    """Maps of pictures as Quantus asks for them, [n, 1, h, w].

    ``targets``: a class for each picture; None for the predicted one. ``signed``: None ReLUs a map of a lower
    resolution before it is stretched, and keeps the signs of others. ``options`` as of ``explainer.explain``.
    """
    x = np.asarray(x)
    classes = None if targets is None else [int(c) for c in np.broadcast_to(np.asarray(targets), len(x))]
    maps = explainer.explain(x, target=classes, **options).relevance
    size = tuple(side for side, letter in zip(x.shape, explainer.layout, strict=True) if letter not in "NC")
    return np.ascontiguousarray(at_input(maps, size, signed=signed)[:, None], maps.dtype)


def explain_func(explainer: Explainer, **defaults: Any) -> Callable[..., Array]:
    """``explain_func(model, inputs, targets, **kwargs)`` of a Quantus metric; options as of :func:`a_batch`.

    A metric that changes the network hands the changed one in as ``model``; that is then explained. ``device`` and
    whatever else ``model`` may be are ignored.
    """

    def explain(model: Any = None, inputs: Any = None, targets: Any = None, **options: Any) -> Array:
        options.pop("device", None)
        changed = getattr(model, "explainer", model)
        return a_batch(changed if hasattr(changed, "explain") else explainer, inputs, targets, **defaults | options)

    return explain


# --- networks ---------------------------------------------------------------------------------------------------------


def interface(explainer: Explainer, *, softmax: bool = False, modules: bool = False) -> Any:
    """A ``quantus.helpers.model.model_interface.ModelInterface`` of onnxruntime.

    ``softmax``: predict probabilities, by the model's own last step, and not logits. ``modules``: random networks come
    as :func:`module`, and not as Explainers. What would need a framework's parameters raises NotImplementedError.

    Raises:
        MissingPackageError: Quantus is not installed.
        InputError: a dense output.
    """
    if explainer.dense:
        raise InputError(
            "Quantus asks for one score a class, and a dense output has more",
            known=f"output {explainer.output_name!r} is {list(explainer.output_shape)}",
        )
    return _interface_class()(explainer, softmax, modules)


def evaluate(metric: Any, explainer: Explainer, x: Any, targets: Any, **options: Any) -> Any:
    """What ``metric``, an instance of a Quantus metric, gives for maps of pictures, without a model of PyTorch.

    ``x`` [n, ...] as the model takes it; ``targets``: a class for each. ``options``: those of the metric's call
    (``a_batch``, ``s_batch``, ``softmax``, ``batch_size``, ...); all others go to :func:`a_batch`, as ``method``.

    Raises:
        MissingPackageError: Quantus is not installed; or PyTorch, which EfficientMPRT asks for all the same.
    """
    x = np.asarray(x)
    taken = inspect.signature(type(metric).__call__).parameters
    call: dict[str, Any] = {name: options.pop(name) for name in list(options) if name in taken}
    default = taken["softmax"].default if "softmax" in taken else False
    softmax = call.get("softmax", None if default is inspect.Parameter.empty else default)
    model = interface(explainer, softmax=bool(softmax), modules=type(metric).__name__ in WRAPPED)
    own, kept = metric.custom_preprocess, dict(vars(metric))

    def with_our_model(**data: Any) -> dict[str, Any]:
        found: dict[str, Any] = own(**data | {"model": model}) or {}
        return {"model": model, **found}

    call.setdefault("explain_func", explain_func(explainer))
    call.setdefault("channel_first", explainer.layout[1] == "C")
    call["explain_func_kwargs"] = {**options, **(call.get("explain_func_kwargs") or {})}
    metric.custom_preprocess = with_our_model
    try:
        return metric(model=None, x_batch=x, y_batch=np.broadcast_to(np.asarray(targets), len(x)), **call)
    finally:
        del metric.custom_preprocess
        if "custom_preprocess" in kept:  # somebody else's
            metric.custom_preprocess = kept["custom_preprocess"]


def module(explainer: Explainer) -> Any:
    """A ``torch.nn.Module`` that runs the model in onnxruntime, for calls in Quantus' own form: logits, no gradient.

    Raises:
        MissingPackageError: PyTorch is not installed.
    """
    return _module_class()(explainer)


def _scores(explainer: Explainer, x: Array) -> Array:
    parts = [explainer.scores(x[first : first + CHUNK]) for first in range(0, len(x), CHUNK)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@cache
def _module_class() -> Any:
    torch: Any = need("torch", "test", "a model for Quantus' own calls is a torch.nn.Module")

    class Shell(torch.nn.Module):  # type: ignore[misc]
        """Logits of an Explainer."""

        def __init__(self, explainer: Explainer) -> None:
            super().__init__()
            self.explainer = explainer
            self.eval()

        def forward(self, x: Any) -> Any:
            given = x.detach().cpu().numpy().astype(self.explainer.input_dtype, copy=False)
            return torch.from_numpy(_scores(self.explainer, given)).to(x.device)

    return Shell


@cache
def _interface_class() -> Any:
    found: Any = need("quantus.helpers.model.model_interface", "test", "its metrics run in Quantus")

    class OnnxModel(found.ModelInterface):  # type: ignore[misc]
        """An Explainer as Quantus sees a model. Pictures come channels first; the model gets them as it takes them."""

        def __init__(self, explainer: Explainer, softmax: bool, modules: bool) -> None:
            super().__init__(explainer, channel_first=explainer.layout[1] == "C", softmax=softmax)
            self.modules = modules

        def get_softmax_arg_model(self) -> Any:
            return self.model

        def predict(self, x: Any, **kwargs: Any) -> Array:
            logits = _scores(self.model, np.asarray(x).astype(self.model.input_dtype, copy=False))
            if not self.softmax:
                return logits
            wide = logits.astype(np.float64)
            if self.model.graph.head == "Sigmoid" or wide.shape[1] == 1:
                return np.asarray(np.exp(-np.logaddexp(0, -wide)))
            e = np.exp(wide - wide.max(axis=1, keepdims=True))
            return np.asarray(e / e.sum(axis=1, keepdims=True))

        def shape_input(self, x: Any, shape: Any, channel_first: bool | None = None, batched: bool = False) -> Array:
            x = np.reshape(x, shape if batched else (1, *shape))
            first = self.channel_first if channel_first is None else channel_first
            if first != self.channel_first:
                x = np.moveaxis(x, 1, -1) if first else np.moveaxis(x, -1, 1)
            return np.asarray(x)

        def get_model(self) -> Any:
            return self.model

        def state_dict(self) -> Any:
            raise NotImplementedError("an ONNX model has no state_dict: its weights are in its file")

        @property
        def random_layer_generator_length(self) -> int:
            from fgcam_onnx.metrics.randomisation import weight_layers

            return len(weight_layers(self.model))

        def get_random_layer_generator(self, order: str = "top_down", seed: int = 42) -> Iterator[tuple[str, Any]]:
            """``top_down``: the last k layers random. ``bottom_up``: the first k. ``independent``: one alone."""
            from fgcam_onnx.metrics.randomisation import random_twin, weight_layers

            if order not in ("top_down", "bottom_up", "independent"):
                raise OptionError(f"option order cannot be {order!r}", known="top_down, bottom_up, independent")
            names = weight_layers(self.model)
            names = names[::-1] if order == "top_down" else names
            for i, name in enumerate(names):
                twin = random_twin(self.model, [name] if order == "independent" else names[: i + 1], seed)
                yield name, module(twin) if self.modules else twin

        def add_mean_shift_to_first_layer(self, input_shift: Any, shape: Any) -> Any:
            raise NotImplementedError(
                "InputInvariance shifts the bias of a framework's first layer: give it such a model"
            )

        def get_hidden_representations(
            self, x: Any, layer_names: list[str] | None = None, layer_indices: list[int] | None = None
        ) -> Array:
            """Activations of stages, flat and side by side; names of any tensor or node, or numbers of stages."""
            stages = [stage.name for stage in self.model.layers()]
            names = list(layer_names or ([stages[i] for i in layer_indices] if layer_indices else stages))
            found = self.model.activations(np.asarray(x).astype(self.model.input_dtype, copy=False), names)
            return np.concatenate([found[name].reshape(len(found[name]), -1) for name in names], axis=1)

    return OnnxModel


# --- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equivalent:
    """``ours``: the function of ``fgcam_onnx.metrics``. ``differs``: what Quantus' metric does otherwise."""

    ours: str
    differs: str


METRICS: dict[str, Equivalent] = {
    "PixelFlipping": Equivalent(
        "deletion_insertion",
        "the deletion curve without its first score, to a number instead of the blurred picture; numbers of the input "
        "one by one, so that a pixel of three channels is three of them; its area is not divided by the steps",
    ),
    "Selectivity": Equivalent("deletion_insertion", "the deletion curve of patches ranked by their sum, without s_0"),
    "RegionPerturbation": Equivalent("deletion_insertion", "patches ranked by their sum; p_c(x) less the curve"),
    "ROAD": Equivalent(
        "road", "top pixels only; whether the class is still predicted, not p_c; 0.6.0 fails on pictures in colour"
    ),
    "SensitivityN": Equivalent(
        "sensitivity_n",
        "removes the pixels one step after the other by their rank, not sets at random; Pearson at each step over the "
        "pictures, not over sets of one picture",
    ),
    "FaithfulnessCorrelation": Equivalent(
        "sensitivity_n", "sets are of numbers of the input, and drawn anew each time"
    ),
    "Infidelity": Equivalent("infidelity", "squares cover the picture one after the other, and stay; no best factor"),
    "MaxSensitivity": Equivalent("max_sensitivity", "maps are divided by their largest first; other draws each time"),
    "Sparseness": Equivalent("sparseness", "|E| over its largest, and 1e-7 added to each"),
    "Complexity": Equivalent("complexity", "1e-12 is added within the logarithm"),
    "RelevanceMassAccuracy": Equivalent(
        "localisation", "proportion without the relu: of signed maps it may leave 0 to 1"
    ),
    "AttributionLocalisation": Equivalent("localisation", "proportion, of |E| unless abs=False, 1e-9 added below"),
    "RelevanceRankAccuracy": Equivalent("localisation", "rank_accuracy; ties in any order"),
    "PointingGame": Equivalent("localisation", "pointing_game that hits if any of several equal maxima lies inside"),
    "MPRT": Equivalent("randomisation", "layers are drawn as their framework initialises them; Spearman only"),
    "ModelParameterRandomisation": Equivalent("randomisation", "the former name of MPRT"),
    "EfficientMPRT": Equivalent("efficient_randomisation", "layers are drawn as their framework initialises them"),
    "RandomLogit": Equivalent("random_logit", "the other class is drawn anew each time; another window of the SSIM"),
    "Completeness": Equivalent("completeness", "whether the sum is exact, against a baseline, instead of the gap"),
}


def by_quantus_name(name: str) -> Callable[..., Any]:
    """Our function for a metric of Quantus, by the name of its class; what differs is in :data:`METRICS`.

    Raises:
        OptionError: a name that has none here; the nearest is suggested.
    """
    from fgcam_onnx import metrics

    if name not in METRICS:
        raise OptionError(
            f"no metric here for {name!r} of Quantus",
            known=", ".join(METRICS),
            next=nearest(name, METRICS) or "run Quantus' own: fgcam_onnx.metrics.quantus.evaluate",
        )
    found: Callable[..., Any] = getattr(metrics, METRICS[name].ours)
    return found
