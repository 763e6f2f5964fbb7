"""timm's classifiers, with the preprocessing of their pretrained configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fgcam_onnx import timm_config
from fgcam_onnx.errors import OptionError, nearest
from fgcam_onnx.exporters import from_torch, packages
from fgcam_onnx.exporters import weights as weight_words
from fgcam_onnx.exporters.base import Source
from fgcam_onnx.exporters.from_torch import seed

__all__ = ["load", "seed"]

NEEDS = ("timm", "onnxscript", "torch")


def load(
    name: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from a name such as ``resnet18`` or ``resnet18.a1_in1k``.

    ``weights``: None or ``DEFAULT`` for the pretrained ones that timm fetches (a tag, ``a1_in1k``, for others);
    ``none`` for random ones; or a file, see :func:`~fgcam_onnx.exporters.from_torch.load_state`. ``classes``: of a file
    with another classifier. ``size``: timm's own for testing if None.

    Raises:
        OptionError: a name that timm does not have.
        ExportError: weights that cannot be fetched or do not fit; and as from_torch.load.
    """
    packages.load("torch")
    timm = packages.load("timm", beside="torch")
    own = weight_words.random(weights) or weight_words.is_file(weights)
    if weights is not None and not own and weights.upper() != "DEFAULT":
        name = f"{name.partition('.')[0]}.{weights}"
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        what, many = f"timm has no classifier {architecture!r}", f"{len(known)} names, such as resnet18"
        raise OptionError(what, known=many, next=nearest(architecture, known) or None)
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise OptionError(f"timm has no weights {tag!r} of {architecture}", known=", ".join(filter(None, tags)) or None)
    if classes is not None and not own:
        raise OptionError("published weights have their own classes", next="leave --classes out, or give a file")

    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if own:
        with packages.captured():
            module = timm.create_model(name, pretrained=False, **options)
    else:
        with weight_words.downloading(f"of timm:{name}"):
            module = timm.create_model(name, pretrained=True, **options)
    if weight_words.is_file(weights):
        assert weights is not None
        from_torch.load_state(module, weights)

    config = import_module("timm.data").resolve_data_config({}, model=module)
    recipe = _recipe(config, name)
    labels = None if own else _labels(module)
    word = str(weights or "DEFAULT")
    return from_torch.load(
        module,
        input_shape=(config["input_size"][0], *(size or config["input_size"][1:])),
        opset=opset,
        name=f"timm:{name} weights={Path(word).name}",
        needs=NEEDS,
        recipe=recipe,
        labels=labels,
        notes=(f"preprocessing is that of timm's {name}: are these weights used so?",) if own else (),
    )


def _recipe(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of Preprocessing: timm's configuration read as the engine reads it in a ``config.json``."""
    record = {"pretrained_cfg": json.loads(json.dumps(config))}
    return {**timm_config.find(record, Path(f"configuration of {name}")).fields, "source": f"timm {name}"}


def _labels(module: Any) -> list[str] | None:
    """The names of ImageNet's classes, in timm's own table; None for another data set."""
    data = import_module("timm.data")
    subset = data.infer_imagenet_subset(module)
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(module.num_classes)]
