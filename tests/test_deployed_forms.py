"""Whole networks as they are deployed: float16, QDQ, QOperator and dynamic int8 beside their float32 originals.

``benchmarks/deployed_forms.py`` prints the same figures for more photographs; docs/quantised.md has them.
"""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployed import FORMS, Distance, drift, made
from test_quantised import saturates
from test_quantised_operators import written_out
from torch_reference.export import export, live, smooth_images
from torch_reference.torchvision_import import import_torchvision

from fgcam_onnx import Explainer, imaging
from fgcam_onnx.preprocessing import choose

PHOTOS = 4
# At an error as large as the activations themselves the int8 network is another network.
PARTED = 1.0
REAL = ["squeezenet_v1.0_caffe.onnx", "efficientnet_lite0_pytorch.onnx", "dog19_mobilenetv2_keras.onnx"]


@cache
def photographed(data: Path, name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """A real model, and photographs of classes that it knows."""
    facts = next(f for f in json.loads((data / "models" / "models.json").read_text()) if f["file"] == name)
    explainer = Explainer(data / "models" / name)
    recipe = choose(
        metadata={"preprocessing": json.dumps(facts["preprocessing"])},
        input_shape=explainer.input_shape,
        layout=explainer.layout,
        input_dtype=explainer.input_dtype,
    )
    known = {line.split()[0] for line in (data / "models" / facts["labels"]).read_text().splitlines()}
    with (data / "images" / "labels.csv").open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream) if row["synset"] in known]
    chosen = files[:: max(1, len(files) // PHOTOS)][:PHOTOS]
    x = np.stack([recipe.apply(imaging.read(data / "images" / file))[0] for file in chosen])
    return onnx.load(data / "models" / name), x


@cache
def random_network(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """A torchvision network with random live weights, and random pictures."""
    network = live(import_torchvision().models.get_model(name, weights=None), seed=1, shift=0.5)
    x = smooth_images(PHOTOS, (64, 64), seed=2)
    return onnx.ModelProto.FromString(export(network, x[:2])), x.numpy()


def check(form: str, model: onnx.ModelProto, x: np.ndarray, least: float) -> None:
    """Complete, accounted for, and near the float map: or else the activations themselves have parted before L."""
    plain, explainer = Explainer(model), Explainer(made(form, model, x))
    assert explainer.coverage().complete, explainer.coverage().gaps
    expected = plain.explain(x)
    classes = [int(c) for c in expected.target]
    found = explainer.explain(x.astype(explainer.input_dtype), target=classes)
    assert found.ledger.residual < 1e-4
    distance = Distance.between(expected.relevance, found.relevance)
    if form == "float16":
        assert np.median(distance.pearson) > 0.999
        assert np.median(distance.overlap) > 0.95
        return
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor: they are not what the file says")
    errors = drift(plain, explainer, x[:2])
    assert errors, "no tensor of the float model was found again"
    assert np.median(distance.pearson) >= least or max(errors.values()) > PARTED, (distance, errors)


SLOW = pytest.mark.slow
QUICK = ("float16", "QDQ, per channel", "dynamic")


def pairs(quick: str, *others: str) -> list[object]:
    """Every network in every form; each run takes one of them in three."""
    return [
        pytest.param(name, form, marks=() if name == quick and form in QUICK else SLOW)
        for name in (quick, *others)
        for form in FORMS
    ]


@pytest.mark.parametrize(("name", "form"), pairs(*REAL))
def test_a_real_model_in_every_form(test_data: Path, name: str, form: str) -> None:
    model, x = photographed(test_data, name)
    check(form, model, x, 0.9)


@pytest.mark.parametrize(("name", "form"), pairs("resnet18", "mobilenet_v2"))
def test_a_random_network_in_every_form(name: str, form: str) -> None:
    check(form, *random_network(name), 0.9)


def test_a_quantised_network_is_near_its_own_photographs(test_data: Path) -> None:
    """Not near by chance: the map of another photograph is far from it."""
    model, x = photographed(test_data, REAL[0])
    plain, explainer = Explainer(model), Explainer(made("QDQ, per channel", model, x))
    classes = [int(c) for c in plain.explain(x).target]
    a, b = plain.explain(x, target=classes).relevance, explainer.explain(x, target=classes).relevance
    own, other = Distance.between(a, b), Distance.between(a, np.roll(b, 1, axis=0))
    assert own.pearson.min() > other.pearson.max() + 0.3
    assert own.spearman.min() > other.spearman.max()
    assert own.overlap.min() > other.overlap.max()


def test_a_real_int8_model_beside_the_float_model_that_it_stands_for(test_data: Path) -> None:
    """Its float original is not there; its decoded layers, written out, are a float model that rounds nothing."""
    name = "mobilenetv2-12-int8.onnx"
    _, x = photographed(test_data, name)
    explainer = Explainer(test_data / "models" / name)
    plain = Explainer(written_out(explainer.graph, (None, *x.shape[1:])))
    assert plain.model_precision == "float32"
    expected = plain.explain(x)
    found = explainer.explain(x, target=[int(c) for c in expected.target])
    if saturates():
        pytest.skip("onnxruntime's integer convolutions overflow on this processor: they are not what the file says")
    assert (found.logits.argmax(1) == expected.logits.argmax(1)).mean() >= 0.75
    distance = Distance.between(expected.relevance, found.relevance)
    assert np.median(distance.pearson) > 0.9
    assert np.median(distance.spearman) > 0.9
    # The scale as well: a tensor read as bare integers would keep the shape of the map and multiply its size.
    sums = [np.abs(e.relevance).sum(axis=(1, 2)) / np.abs(e.ledger.start) for e in (expected, found)]
    np.testing.assert_allclose(sums[1], sums[0], rtol=0.2)
