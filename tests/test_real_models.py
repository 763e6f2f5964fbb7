"""Trained networks on photographs: right class, finite map, closed ledger, and evidence where the object is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import backends
import numpy as np
import pytest
from cuda_on_cpu.device import CpuDevice

from fgcam_onnx import Explainer, Explanation, imaging
from fgcam_onnx.backends.cupy import CupyBackend
from fgcam_onnx.preprocessing import Preprocessing, choose

IMAGENET = ["efficientnet_lite0_pytorch.onnx", "squeezenet_v1.0_caffe.onnx", "mobilenetv2-12-int8.onnx"]
DOGS = "dog19_mobilenetv2_keras.onnx"
PHOTOS = 6


@dataclass(frozen=True)
class Photo:
    file: Path
    target: int
    boxes: tuple[tuple[int, int, int, int], ...]  # x1, y1, x2, y2 in pixels of the file


@dataclass(frozen=True)
class Case:
    """A model with its photos, preprocessed: x as the model takes it, and each photo's boxes as a mask over x."""

    explainer: Explainer
    recipe: Preprocessing
    x: np.ndarray
    targets: list[int]
    masks: np.ndarray
    topk: int
    done: dict[str, Explanation]

    def explain(self, **options: Any) -> Explanation:
        """Of the photos' true classes; each set of options once."""
        key = repr(sorted(options.items()))
        if key not in self.done:
            self.done[key] = self.explainer.explain(self.x, target=self.targets, **options)
        return self.done[key]


@pytest.fixture(scope="module")
def case(test_data: Path) -> Callable[[str], Case]:
    @cache
    def make(name: str) -> Case:
        return _case(test_data, name)

    return make


def _case(data: Path, name: str) -> Case:
    facts = next(f for f in json.loads((data / "models" / "models.json").read_text()) if f["file"] == name)
    explainer = Explainer(data / "models" / name)
    recipe = choose(
        metadata={"preprocessing": json.dumps(facts["preprocessing"])},
        input_shape=explainer.input_shape,
        layout=explainer.layout,
        input_dtype=explainer.input_dtype,
    )
    labels = (data / "models" / facts["labels"]).read_text().splitlines()
    photos = _photos(data, [line.split()[0] for line in labels])
    arrays, masks = [], []
    for photo in photos:
        x, _ = recipe.apply(imaging.read(photo.file))
        arrays.append(x)
        masks.append(_mask(recipe, photo))
    x = np.stack(arrays) if arrays[0].ndim == 3 else np.concatenate(arrays)
    return Case(explainer, recipe, x, [p.target for p in photos], np.stack(masks), 5 if len(labels) == 1000 else 3, {})


def _photos(data: Path, synsets: list[str]) -> list[Photo]:
    """Photos with boxes, of classes the model knows; for the dog model its breeds, with or without boxes."""
    with (data / "images" / "boxes.csv").open(newline="") as stream:
        boxes: dict[str, list[tuple[int, int, int, int]]] = {}
        for row in csv.DictReader(stream):
            corners = tuple(int(row[k]) for k in ("xmin", "ymin", "xmax", "ymax"))
            boxes.setdefault(row["file"], []).append(corners)  # type: ignore[arg-type]
    with (data / "images" / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["synset"] in synsets]
    if len(synsets) == 1000:
        rows = [row for row in rows if row["file"] in boxes][::7]
    found = [
        Photo(data / "images" / r["file"], synsets.index(r["synset"]), tuple(boxes.get(r["file"], ()))) for r in rows
    ]
    return found[:PHOTOS]


def _mask(recipe: Preprocessing, photo: Photo) -> np.ndarray:
    """The photo's boxes, [h, w] of 0 and 1, carried through the same resize and crop as its pixels."""
    from PIL import Image

    size = imaging.read(photo.file).size
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    for x1, y1, x2, y2 in photo.boxes:
        canvas[y1:y2, x1:x2] = 255
    _, seen = recipe.apply(Image.fromarray(canvas))
    mask: np.ndarray = np.asarray(seen)[..., 0] > 127
    return mask


@pytest.mark.parametrize("name", [*IMAGENET, DOGS])
def test_right_class_finite_map_closed_ledger(case: Callable[[str], Case], name: str) -> None:
    """The class is among the first five (three for the dogs); with and without denoising all is accounted for."""
    c = case(name)
    assert c.explainer.coverage().complete, c.explainer.coverage().gaps
    for denoise in (False, True):
        e = c.explain(denoise=denoise)
        assert e.relevance.shape == (len(c.x), *c.recipe.size)
        assert e.relevance.any(axis=(1, 2)).all()
        assert np.isfinite(e.relevance).all()
        assert e.ledger.residual < 1e-4
        assert 0 <= e.ledger.leaked < 1
        _check_total(e)
        order = np.argsort(-e.logits, axis=1)[:, : c.topk]
        hits = sum(target in row for target, row in zip(c.targets, order, strict=True))
        assert hits >= len(c.targets) - 1, f"{hits} of {len(c.targets)} photos are recognised"


def _check_total(e: Explanation) -> None:
    """What started at L arrived, but for what the rows say leaked."""
    expected = e.ledger.start - sum(row.leaked for row in e.ledger.rows)
    tolerance = 1e-4 * e.ledger.start_absolute.max()
    np.testing.assert_allclose(e.ledger.arrived, expected, atol=tolerance)
    np.testing.assert_allclose(e.relevance.sum(axis=(1, 2)), e.ledger.arrived, atol=tolerance)


@pytest.mark.parametrize("name", IMAGENET)
@pytest.mark.parametrize(
    "options", [{"denoise": False}, {"denoise": True}, {"denoise": False, "method": "fg-layer-cam"}], ids=str
)
def test_evidence_lies_in_the_boxes(case: Callable[[str], Case], name: str, options: dict[str, Any]) -> None:
    """The share of positive relevance inside the object's boxes exceeds the boxes' share of the area, on average."""
    c = case(name)
    positive = np.maximum(c.explain(**options).relevance, 0)
    inside = (positive * c.masks).sum(axis=(1, 2)) / positive.sum(axis=(1, 2))
    area = c.masks.mean(axis=(1, 2))
    assert area.min() > 0
    assert inside.mean() > 1.1 * area.mean(), (inside, area)


def test_the_boxes_are_where_the_pixels_are(case: Callable[[str], Case]) -> None:
    """A check of the check: evidence in mirrored boxes is less than in the true ones."""
    c = case(IMAGENET[0])
    positive = np.maximum(c.explain(denoise=True).relevance, 0)
    right, wrong = ((positive * masks).sum() / positive.sum() for masks in (c.masks, c.masks[:, ::-1, ::-1]))
    assert right > wrong


@backends.needs_gxx
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "squeezenet" in name else pytest.mark.slow) for name in [*IMAGENET, DOGS]]
)
def test_the_cuda_kernels_see_the_same(case: Callable[[str], Case], name: str) -> None:
    """A photo through the CUDA kernels, run on this processor as on a large GPU: the map of NumPy in float64."""
    c = case(name)
    path, x, target = c.explainer.path, c.x[:1], c.targets[:1]
    assert path is not None
    exact = Explainer(path, backend="numpy", precision="float64").explain(x, target=target)
    device = CpuDevice(multiprocessors=132)
    for precision, allowed in (("float32", 1e-5), ("fast", 5e-4)):
        found = Explainer(path, backend=CupyBackend(precision, device)).explain(x, target=target)
        error = np.linalg.norm(found.relevance - exact.relevance) / np.linalg.norm(exact.relevance)
        assert error <= allowed
        assert (error > 1e-6) == (precision == "fast")  # it did go through the tensor cores' rounding
        assert found.ledger.residual < 1e-4
        np.testing.assert_allclose(found.ledger.leaked, exact.ledger.leaked, rtol=1e-4, atol=1e-6)
