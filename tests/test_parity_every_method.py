"""What every method of the registry promises, on small networks: batch = single, backends agree, several classes at
once = one at a time, and no NaN where nothing happens."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tiny_models
from onnx import numpy_helper

from fgcam_onnx import Explainer, Explanation
from fgcam_onnx.errors import MethodError
from fgcam_onnx.methods import METHODS

BOUND = 2e-5
NETS = ("residual", "vgg")
# As little as a method can be asked for, and groups that divide eight channels.
OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 8, "cells": 3},
    "smooth-grad": {"samples": 3},
    "integrated-gradients": {"steps": 3},
    "group-cam": {"groups": 4},
    "fg-group-cam": {"groups": 4},
}


@cache
def model(net: str) -> onnx.ModelProto:
    made: onnx.ModelProto = getattr(tiny_models, net)(seed=3)
    return made


@cache
def explainer(net: str, backend: str = "ort", dead: bool = False) -> Explainer:
    proto = model(net) if not dead else _half_dead(model(net))
    return Explainer(proto, backend=backend, threads=1)


def _half_dead(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with half of the filters of every convolution at zero, bias and all."""
    dead = onnx.ModelProto()
    dead.CopyFrom(proto)
    by_name = {t.name: t for t in dead.graph.initializer}
    for node in dead.graph.node:
        for name in node.input[1:] if node.op_type == "Conv" else ():
            w = numpy_helper.to_array(by_name[name]).copy()
            w[: len(w) // 2] = 0
            by_name[name].CopyFrom(numpy_helper.from_array(w, name))
    return dead


def explain(e: Explainer, x: npt.NDArray[Any], method: str, **more: Any) -> Explanation:
    """The explanation, or a skip that gives the engine's own reason why this method cannot serve this network."""
    try:
        return e.explain(x, method=method, **OPTIONS.get(method, {}), **more)
    except MethodError as refusal:
        if method in ("cam", "fg-cam"):
            pytest.skip(str(refusal).splitlines()[0])
        raise


def apart(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The greatest difference over the greatest value of each map."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    a, b = (v.reshape(-1, v.shape[-1] * v.shape[-2]).astype(np.float64) for v in (found, expected))
    scale = np.abs(b).max(axis=1)
    return float((np.abs(a - b).max(axis=1) / np.where(scale == 0, 1, scale)).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_a_batch_is_its_images(net: str, method: str) -> None:
    e, x = explainer(net), tiny_models.pictures(model(net), 3, seed=5)
    whole = explain(e, x, method, target=[0, 3, 1]).relevance
    single = [explain(e, x[i : i + 1], method, target=[t]).relevance for i, t in enumerate([0, 3, 1])]
    assert apart(whole, np.concatenate(single)) <= BOUND


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_onnxruntime_is_numpy(net: str, method: str) -> None:
    x = tiny_models.pictures(model(net), 2, seed=6)
    ort, numpy = (explain(explainer(net, backend), x, method, target=[4, 2]) for backend in ("ort", "numpy"))
    assert apart(ort.relevance, numpy.relevance) <= BOUND


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_several_classes_are_one_at_a_time(net: str, method: str) -> None:
    e, x = explainer(net), tiny_models.pictures(model(net), 2, seed=7)
    several = explain(e, x, method, target=[[0, 2, 4], [3, 1, 0]])
    assert several.relevance.shape[:2] == (2, 3)
    assert several.target.tolist() == [[0, 2, 4], [3, 1, 0]]
    for k in range(3):
        one = explain(e, x, method, target=several.target[:, k].tolist())
        assert apart(several.relevance[:, k], one.relevance) <= BOUND, k


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_another_class_is_another_map(net: str, method: str) -> None:
    """A check of the checks above, which a map that ignored the target would pass. Some explain no class."""
    e, x = explainer(net), tiny_models.pictures(model(net), 1, seed=8)
    a, b = (explain(e, x, method, target=[t]).relevance for t in (0, 4))
    assert (apart(a, b) > 1e-3) is (method not in ("eigen-cam", "class-blind", "fg-class-blind"))


@pytest.mark.parametrize("picture", ["zero", "constant", "random"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_nothing_where_nothing_happens(net: str, method: str, picture: str) -> None:
    """Half of all channels dead, and pictures without a difference in them: finite maps, no warning."""
    e, x = explainer(net, dead=True), tiny_models.pictures(model(net), 1, seed=9)
    x = {"zero": np.zeros_like(x), "constant": np.full_like(x, 0.7), "random": x}[picture]
    found = explain(e, x, method, target=[1])
    assert np.isfinite(found.relevance).all()
    assert np.isfinite(found.heatmap()).all()
