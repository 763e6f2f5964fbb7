"""Integrated gradients, SmoothGrad and RISE, over a network whose gradients are torch's; captum is the second opinion.

Float64 throughout, tolerance 1e-9, but for captum's integrated gradients: it keeps its quadrature weights in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch_reference import import_torchvision

from fgcam_onnx.attributions import integrated_gradients, rise, smooth_grad
from fgcam_onnx.attributions.base import Rows
from fgcam_onnx.errors import OptionError
from fgcam_onnx.testing import close

Floats = np.ndarray
CLASSES = 4
SIZE = (9, 14)
METHODS = {"integrated_gradients": integrated_gradients, "smooth_grad": smooth_grad, "rise": rise}
# As small as the comparison allows.
CHEAP = {"integrated_gradients": {"steps": 7}, "smooth_grad": {"samples": 7}, "rise": {"masks": 23, "cells": 3}}
method = pytest.mark.parametrize("name", METHODS)


class Network(nn.Module):
    """Two convolutions and a bend, two more where the picture is channels last."""

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)),
        )
        self.channels_last = channels_last
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.body(x.permute(0, 3, 1, 2) if self.channels_last else x)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.weights = nn.Linear(3 * SIZE[0] * SIZE[1], CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x.flatten(1))


def pictures(n: int = 2, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 3, *SIZE))


def given(name: str, **options: Any) -> dict[str, Any]:
    """The options of a method as it gets them: all of them, defaults filled in."""
    full = {key: v[0] if isinstance(v, tuple) else v for key, v in METHODS[name].OPTIONS.items()}
    assert set(options) <= set(full)
    return full | options


@dataclass(frozen=True, eq=False)
class Watched(Rows):
    """``asked``: how many points each call brought. ``steps``: the progress that was told."""

    asked: list[int] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)


def rows_over(
    model: nn.Module, x: Floats, target: list[int], options: dict[str, Any], *, batch_size: int = 5, axis: int = 1
) -> Watched:
    """Rows whose gradients are autograd's."""
    several = len(x) != len(target)

    def classes(image: int) -> list[int]:
        return target if several else [target[image]]

    def gradients(points: Floats, image: int) -> Floats:
        asked.append(len(points))
        found = []
        for c in classes(image):
            leaf = torch.tensor(points, requires_grad=True)
            model(leaf)[:, c].sum().backward()
            assert leaf.grad is not None
            found.append(leaf.grad.numpy())
        return np.stack(found)

    def scores(points: Floats, image: int) -> Floats:
        asked.append(len(points))
        with torch.no_grad():
            return model(torch.tensor(points)).numpy()[:, classes(image)].T

    def probabilities(points: Floats, image: int) -> Floats:
        asked.append(len(points))
        with torch.no_grad():
            return model(torch.tensor(points)).softmax(1).numpy()[:, classes(image)].T

    asked: list[int] = []
    steps: list[tuple[int, int]] = []
    with torch.no_grad():
        logits = model(torch.tensor(x)).numpy()
    return Watched(
        x, axis, np.asarray(target), logits, gradients, scores, probabilities,
        lambda done, total: steps.append((done, total)), batch_size, options=options, asked=asked, steps=steps,
    )  # fmt: skip


def attribute(name: str, model: nn.Module, x: Floats, target: list[int], **options: Any) -> Floats:
    return METHODS[name].attribute(rows_over(model, x, target, given(name, **options)))


def summed(array: Floats) -> Floats:
    return array.reshape(len(array), -1).sum(axis=1)


# --- what all three promise -------------------------------------------------------------------------------------------


@method
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    model, x = Network(), pictures(3)
    together = attribute(name, model, x, [2, 0, 3], **CHEAP[name])
    alone = [attribute(name, model, x[i : i + 1], [c], **CHEAP[name]) for i, c in enumerate([2, 0, 3])]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert np.abs(together[0] - together[1]).max() > 1e-3 * np.abs(together).max()


@method
def test_several_classes_of_one_image_are_the_classes_one_by_one(name: str) -> None:
    model, x = Network(), pictures(1)
    together = attribute(name, model, x, [1, 3, 0], **CHEAP[name])
    alone = [attribute(name, model, x, [c], **CHEAP[name]) for c in (1, 3, 0)]
    close(together, np.concatenate(alone), 1e-12)
    assert np.abs(together[0] - together[1]).max() > 1e-3 * np.abs(together).max()


@method
def test_the_size_of_the_pieces_changes_nothing_and_bounds_what_is_asked(name: str) -> None:
    model, x, options = Network(), pictures(), given(name, **CHEAP[name])
    expected = METHODS[name].attribute(rows_over(model, x, [2, 0], options, batch_size=100))
    for size in (1, 3):
        rows = rows_over(model, x, [2, 0], options, batch_size=size)
        close(METHODS[name].attribute(rows), expected, 1e-12)
        assert max(rows.asked) == size
        done = [d for d, _ in rows.steps]
        assert done == sorted(set(done))
        assert {total for _, total in rows.steps} == {done[-1]} == {sum(rows.asked)}


@method
def test_shape_and_dtype_are_the_inputs(name: str) -> None:
    found = attribute(name, Network(), pictures(), [2, 0], **CHEAP[name])
    assert found.shape == (2, 1 if name == "rise" else 3, *SIZE)
    single = rows_over(Network().float(), pictures().astype(np.float32), [2, 0], given(name, **CHEAP[name]))
    assert METHODS[name].attribute(single).dtype == np.float32


@method
def test_channels_last(name: str) -> None:
    x, options = pictures(), given(name, **CHEAP[name])
    options |= {"noise": 0.0} if name == "smooth_grad" else {}  # noise is drawn in the order of the input's axes
    first = METHODS[name].attribute(rows_over(Network(), x, [2, 0], options))
    last = METHODS[name].attribute(
        rows_over(Network(channels_last=True), np.moveaxis(x, 1, 3), [2, 0], options, axis=3)
    )
    close(np.moveaxis(last, 3, 1), first, 1e-12)


@method
def test_a_network_that_sees_nothing_gets_an_empty_or_even_map(name: str) -> None:
    """No gradient anywhere: zeros. RISE: every picture has the same probability, so E is its share of the masks."""
    model = Network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = attribute(name, model, pictures(), [2, 0], **CHEAP[name])
    if name != "rise":
        assert not found.any()
        return
    masks = rise.random_masks(range(23), SIZE, cells=3)
    close(found, np.broadcast_to(masks.sum(axis=0, dtype=np.float64) / (23 * 0.5) / CLASSES, found.shape), 1e-9)


@method
@pytest.mark.parametrize("kind", ["zero", "constant"])
def test_pictures_without_contrast(name: str, kind: str) -> None:
    x = np.zeros((1, 3, *SIZE)) if kind == "zero" else np.full((1, 3, *SIZE), 0.7)
    found = attribute(name, Network(), x, [1], **CHEAP[name])
    assert np.isfinite(found).all()
    if name == "integrated_gradients":
        assert found.any() == (kind == "constant")
    if name == "smooth_grad":  # no contrast, no noise
        close(found, rows_over(Network(), x, [1], {}).gradients(x, 0)[0], 1e-12)


# --- integrated gradients ---------------------------------------------------------------------------------------------


@contextmanager
def captum() -> Iterator[Any]:
    import_torchvision()
    import captum.attr

    yield captum.attr


BASELINES: dict[str, Any] = {
    "number": 0.3,
    "image": pictures(1, seed=8)[0],
    "batch of one": pictures(1, seed=8),
    "batch": pictures(2, seed=9),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    ("quadrature", "theirs"), [("gauss_legendre", "gausslegendre"), ("riemann_right", "riemann_right")]
)
def test_integrated_gradients_as_captum_has_them(quadrature: str, theirs: str, baseline: str) -> None:
    model, x, x0 = Network(), pictures(), BASELINES[baseline]
    found = attribute("integrated_gradients", model, x, [2, 0], steps=11, quadrature=quadrature, baseline=x0)
    with captum() as attr:
        expected = attr.IntegratedGradients(model).attribute(
            torch.tensor(x),
            torch.tensor(np.broadcast_to(x0, x.shape).copy()),
            target=torch.tensor([2, 0]),
            n_steps=11,
            method=theirs,
        )
    close(found, expected.detach().numpy(), 1e-6)


def test_the_quadratures_differ() -> None:
    """Else the comparison with captum would not see which one was taken."""
    found = [
        attribute("integrated_gradients", Network(), pictures(), [2, 0], steps=11, quadrature=q)
        for q in integrated_gradients.OPTIONS["quadrature"]
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3 * np.abs(found[0]).max()


@pytest.mark.parametrize("quadrature", integrated_gradients.OPTIONS["quadrature"])
def test_more_steps_close_the_gap_to_what_is_promised(quadrature: str) -> None:
    model, x = Network(), pictures()
    with torch.no_grad():
        there, here = (model(torch.tensor(v)).numpy()[[0, 1], [2, 0]] for v in (x, np.full_like(x, 0.3)))
    gaps = []
    for steps in (4, 400):
        options = given("integrated_gradients", steps=steps, quadrature=quadrature, baseline=0.3)
        rows = rows_over(model, x, [2, 0], options)
        promised = integrated_gradients.promised(rows)
        close(promised, there - here, 1e-12)
        gaps.append(np.abs(summed(integrated_gradients.attribute(rows)) - promised).max() / np.abs(promised).max())
    assert gaps[0] > 1e-3
    assert gaps[1] < gaps[0] / 10


def test_what_is_promised_to_several_classes() -> None:
    model, x = Network(), pictures(1)
    promised = integrated_gradients.promised(rows_over(model, x, [1, 3, 0], given("integrated_gradients")))
    with torch.no_grad():
        change = (model(torch.tensor(x)) - model(torch.zeros_like(torch.tensor(x)))).numpy()[0]
    close(promised, change[[1, 3, 0]], 1e-12)


@pytest.mark.parametrize("quadrature", integrated_gradients.OPTIONS["quadrature"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_linear_network_needs_one_step(quadrature: str, steps: int) -> None:
    """E = w (x - x0), methods 9.3."""
    model, x = Linear(), pictures()
    found = attribute("integrated_gradients", model, x, [2, 0], steps=steps, quadrature=quadrature, baseline=0.3)
    w = model.weights.weight.detach().numpy()[[2, 0]].reshape(x.shape)
    close(found, w * (x - 0.3), 1e-12)


def test_gauss_legendre_is_exact_on_polynomials() -> None:
    """n nodes integrate x^(2n - 1) exactly; the right Riemann sum is that of k/n."""
    a, w = integrated_gradients.points_and_weights(4, "gauss_legendre")
    close((w * a**7).sum(), 1 / 8, 1e-12)
    a, w = integrated_gradients.points_and_weights(4, "riemann_right")
    close(a, [0.25, 0.5, 0.75, 1], 1e-12)
    close(w, [0.25] * 4, 1e-12)


# --- SmoothGrad -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_smooth_grad_as_captum_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its noise tunnel over the plain gradient, fed the same noise."""
    model, x = Network(), pictures().clip(-2, 2)
    drawn = smooth_grad.standard_noise(range(11), x.shape[1:], seed=6).astype(np.float64)
    found = attribute("smooth_grad", model, x, [2, 0], samples=11, noise=0.25, seed=6)
    monkeypatch.setattr(torch, "normal", lambda mean, deviation: deviation * torch.tensor(drawn))
    with captum() as attr:
        for image, c in enumerate([2, 0]):
            one = torch.tensor(x[image : image + 1])
            expected = attr.NoiseTunnel(attr.Saliency(model)).attribute(
                one, nt_type="smoothgrad", nt_samples=11, stdevs=0.25 * 4, target=c, abs=False
            )
            close(found[image : image + 1], expected.detach().numpy(), 1e-9)


def test_without_noise_it_is_the_gradient() -> None:
    rows = rows_over(Network(), pictures(), [2, 0], given("smooth_grad", samples=3, noise=0.0))
    expected = np.concatenate([rows.gradients(rows.x[i : i + 1], i)[0] for i in range(2)])
    close(smooth_grad.attribute(rows), expected, 1e-12)
    noisy = attribute("smooth_grad", Network(), pictures(), [2, 0], samples=3, noise=0.3)
    assert np.abs(noisy - expected).max() > 1e-2 * np.abs(expected).max()


def test_noise_depends_on_its_number_and_the_seed_alone() -> None:
    whole = smooth_grad.standard_noise(range(6), (3, 20, 30), seed=2)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(smooth_grad.standard_noise([4, 1], (3, 20, 30), seed=2), whole[[4, 1]])
    assert np.abs(smooth_grad.standard_noise([0], (3, 20, 30), seed=3) - whole[0]).max() > 1
    for a in range(6):  # standard, and none a copy of another
        assert abs(whole[a].mean()) < 0.1
        assert abs(whole[a].std() - 1) < 0.1
        for b in range(a):
            assert abs(np.corrcoef(whole[a].ravel(), whole[b].ravel())[0, 1]) < 0.1


# --- RISE -------------------------------------------------------------------------------------------------------------


def plain_mask(i: int, cells: int, keep: float, seed: int) -> Floats:
    """One mask, resized by torch."""
    rng = np.random.default_rng([seed, i])
    grid = torch.tensor((rng.random((cells, cells)) < keep).astype(np.float64))
    steps = [int(np.ceil(length / cells)) for length in SIZE]
    up = F.interpolate(grid[None, None], tuple((cells + 1) * s for s in steps), mode="bilinear", align_corners=False)
    top, left = (int(rng.integers(s)) for s in steps)
    return up[0, 0, top : top + SIZE[0], left : left + SIZE[1]].numpy()


def test_rise_as_a_plain_loop() -> None:
    model, x = Network(), pictures()
    found = attribute("rise", model, x, [2, 0], masks=37, cells=4, keep=0.3, seed=5)
    expected = np.zeros((2, 1, *SIZE))
    with torch.no_grad():
        for i in range(37):
            mask = plain_mask(i, 4, 0.3, 5)
            p = model(torch.tensor(x * mask)).softmax(1).numpy()
            expected += (p[[0, 1], [2, 0]] / (37 * 0.3))[:, None, None, None] * mask
    close(found, expected, 1e-6)  # the masks are float32


def test_masks_depend_on_their_number_and_the_seed_alone() -> None:
    whole = rise.random_masks(range(300), SIZE, cells=3, keep=0.3, seed=1)
    assert whole.shape == (300, *SIZE)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(rise.random_masks([200, 7], SIZE, cells=3, keep=0.3, seed=1), whole[[200, 7]])
    assert (rise.random_masks([7], SIZE, cells=3, keep=0.3, seed=2) != whole[7]).any()
    assert whole.min() == 0
    assert whole.max() == 1
    assert abs(whole.mean() - 0.3) < 0.03
    assert np.abs(whole.mean(axis=0) - 0.3).max() < 0.1  # at every pixel: the offset is random


def test_rise_in_one_and_three_dimensions() -> None:
    for size in ((17,), (5, 6, 7)):
        assert rise.random_masks(range(2), size, cells=3).shape == (2, *size)


def test_rise_finds_the_cell_that_decides() -> None:
    """A network that reads one pixel: the map is largest there, and the probability seen through it is the value."""

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 2, 11] * 9 - 4, torch.zeros(len(x)).double()], 1)

    found = attribute("rise", Reads(), np.ones((1, 3, *SIZE)), [0], masks=600, cells=7)[0, 0]
    assert np.unravel_index(found.argmax(), SIZE) == (2, 11)
    assert found.max() > 1.3 * np.median(found)


# --- options ----------------------------------------------------------------------------------------------------------


WRONG = [
    ("integrated_gradients", "steps", 0, "option steps cannot be 0", "a whole number, at least 1"),
    ("integrated_gradients", "steps", 2.5, "option steps cannot be 2.5", "a whole number, at least 1"),
    (
        "integrated_gradients",
        "quadrature",
        "simpson",
        "option quadrature cannot be 'simpson'",
        "its choices are gauss_legendre, riemann_right",
    ),
    (
        "integrated_gradients",
        "baseline",
        np.zeros((3, 9, 13)),
        "option baseline has shape [3, 9, 13]",
        "a number, an array of the input's shape [2, 3, 9, 14], or of one image's",
    ),
    (
        "integrated_gradients",
        "baseline",
        float("nan"),
        "option baseline is not made of finite numbers",
        "a number, or an array of the input's shape",
    ),
    (
        "integrated_gradients",
        "baseline",
        "blur",
        "option baseline is not made of finite numbers",
        "a number, or an array of the input's shape",
    ),
    ("smooth_grad", "samples", True, "option samples cannot be True", "a whole number, at least 1"),
    ("smooth_grad", "noise", -0.1, "option noise cannot be -0.1", "a number, at least 0"),
    ("smooth_grad", "noise", float("nan"), "option noise cannot be nan", "a number, at least 0"),
    ("smooth_grad", "seed", -1, "option seed cannot be -1", "a whole number, at least 0"),
    ("rise", "masks", 0, "option masks cannot be 0", "a whole number, at least 1"),
    ("rise", "cells", 0, "option cells cannot be 0", "a whole number, at least 1"),
    ("rise", "keep", 0.0, "option keep cannot be 0.0", "a number, above 0 and up to 1"),
    ("rise", "keep", 1.5, "option keep cannot be 1.5", "a number, above 0 and up to 1"),
    ("rise", "keep", "half", "option keep cannot be 'half'", "a number, above 0 and up to 1"),
    ("rise", "seed", "x", "option seed cannot be 'x'", "a whole number, at least 0"),
]


@pytest.mark.parametrize(("name", "option", "value", "what", "known"), WRONG)
def test_options_that_cannot_be(name: str, option: str, value: Any, what: str, known: str) -> None:
    rows = rows_over(Network(), pictures(), [2, 0], given(name, **{option: value}))
    with pytest.raises(OptionError) as error:
        METHODS[name].attribute(rows)
    assert (error.value.what, error.value.known) == (what, known)
    assert rows.asked == []


@method
def test_the_docstring_has_its_frame(name: str) -> None:
    """A table in the docs is made from it."""
    text = METHODS[name].__doc__ or ""
    paragraphs = text.split("\n\n")
    assert re.fullmatch(r"[A-Z][A-Za-z ]+: [^\n]+\.", paragraphs[0])
    assert paragraphs[1].startswith("    ")
    for word in ("Conserves: ", "Differs: ", "Source: "):
        assert sum(p.startswith(word) for p in paragraphs) == 1


@method
def test_values_of_options_may_be_numpys(name: str) -> None:
    """As they come from a sweep."""
    wrap: dict[type, Callable[[Any], Any]] = {int: np.int64, float: np.float64}
    options = given(name, **CHEAP[name])
    numpys = {key: wrap.get(type(value), lambda v: v)(value) for key, value in options.items()}
    x = pictures()
    np.testing.assert_array_equal(
        METHODS[name].attribute(rows_over(Network(), x, [2, 0], numpys)),
        METHODS[name].attribute(rows_over(Network(), x, [2, 0], options)),
    )
