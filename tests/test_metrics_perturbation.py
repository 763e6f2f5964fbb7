"""Sensitivity-n, MuFidelity and infidelity: linear models where the best map is known, and captum's infidelity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models

from fgcam_onnx import Explainer, models
from fgcam_onnx.errors import InputError, OptionError, TargetError
from fgcam_onnx.metrics import (
    Infidelity,
    MuFidelity,
    Scorer,
    SensitivityN,
    infidelity,
    mu_fidelity,
    pearson,
    sensitivity_n,
    spearman,
)
from fgcam_onnx.metrics.infidelity import shares, unfaithful
from fgcam_onnx.metrics.mu_fidelity import cell_sets
from fgcam_onnx.metrics.sensitivity_n import pixel_sets

RNG = np.random.default_rng(5)
X = RNG.normal(size=(3, 2, 12, 10))
W = RNG.normal(size=(4, 2, 12, 10))
CLASSES = np.array([2, 0, 3])
# y = w.x + b in float64; and what each pixel gives its own class, both channels together
BIAS = np.arange(4.0)
SHARES = (W[CLASSES] * X).sum(axis=1)


def linear(x: np.ndarray) -> np.ndarray:
    return np.einsum("nchw,kchw->nk", x, W) + BIAS


def last(x: np.ndarray) -> np.ndarray:
    """The same for pictures [n, h, w, c]."""
    return linear(np.moveaxis(x, -1, 1))


def one_pixel(x: np.ndarray) -> np.ndarray:
    """Class 0 reads the pixel (4, 7), class 1 nothing."""
    return np.stack([x[:, :, 4, 7].sum(axis=1), np.zeros(len(x))], axis=1)


# --- linear models (methods 9.3) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 119, 0.25])
@pytest.mark.parametrize("scale", [1, 1e-6, -3])
def test_sensitivity_n_of_a_linear_model(size: float, scale: float) -> None:
    """w x is right about every set of pixels, whatever its scale, and -w x as wrong as can be."""
    found = sensitivity_n(linear, X, scale * SHARES, CLASSES, size=size, samples=20)
    assert found == pytest.approx(np.sign(scale) * np.ones(3), abs=1e-12)


@pytest.mark.parametrize("scale", [1, -3])
def test_mu_fidelity_of_a_linear_model(scale: float) -> None:
    found = mu_fidelity(linear, X, scale * SHARES, CLASSES, samples=30)
    assert found == pytest.approx(np.sign(scale) * np.ones(3), abs=1e-12)


def test_the_baseline_is_part_of_what_a_map_claims() -> None:
    """Against another baseline than 0, w (x - baseline) is right, and w x is not."""
    b = RNG.normal(size=X.shape)
    right = (W[CLASSES] * (X - b)).sum(axis=1)
    for metric in (sensitivity_n, mu_fidelity):
        assert metric(linear, X, right, CLASSES, baseline=b, samples=30) == pytest.approx(np.ones(3), abs=1e-12)
        assert metric(linear, X, SHARES, CLASSES, baseline=b, samples=30).max() < 0.95
    assert infidelity(linear, X, right, CLASSES, baseline=b)["infidelity"] == pytest.approx(np.zeros(3), abs=1e-20)
    assert infidelity(linear, X, SHARES, CLASSES, baseline=b)["infidelity"].min() > 0.1


@pytest.mark.parametrize("change", ["square", "fade", "noise"])
def test_infidelity_of_the_weights_is_nothing(change: str) -> None:
    """A map of the input's shape is a gradient: of a linear model w is right under every change, w x is not."""
    found = infidelity(linear, X, W[CLASSES], CLASSES, change=change)
    assert found["infidelity"] == pytest.approx(np.zeros(3), abs=1e-20)
    assert found["normalised"] == pytest.approx(np.zeros(3), abs=1e-20)
    assert infidelity(linear, X, W[CLASSES] * X, CLASSES, change=change)["infidelity"].min() > 1e-2


@pytest.mark.parametrize("change", ["square", "fade"])
def test_infidelity_of_the_shares_is_nothing(change: str) -> None:
    """A map of pixels is what each gives: sum_c w x is right, a multiple of it right but for its scale."""
    found = infidelity(linear, X, SHARES, CLASSES, change=change)
    assert found["infidelity"] == pytest.approx(np.zeros(3), abs=1e-20)
    found = infidelity(linear, X, -5 * SHARES, CLASSES, change=change)
    assert found["infidelity"].min() > 0.1
    assert found["normalised"] == pytest.approx(np.zeros(3), abs=1e-20)


def test_a_model_that_reads_one_pixel() -> None:
    e = np.zeros((3, 12, 10))
    e[:, 4, 7] = 1
    elsewhere = np.roll(e, 5, axis=2)
    right = X[:, :, 4, 7].sum(axis=1)
    sign = np.sign(right)
    assert sensitivity_n(one_pixel, X, e, 0, size=0.3) == pytest.approx(sign)
    assert mu_fidelity(one_pixel, X, e, 0) == pytest.approx(sign)
    assert np.abs(sensitivity_n(one_pixel, X, elsewhere, 0, size=0.3)).max() < 0.4
    # squares of 3 x 3 that hold the pixel: predicted 1, fallen by what it reads; all others 0 and 0
    found = infidelity(one_pixel, X, e, 0, side=3, samples=400)
    share = found["infidelity"] / (1 - right) ** 2
    assert share == pytest.approx(np.full(3, share[0]))
    assert share[0] == pytest.approx(9 / 80, abs=0.05)
    assert found["normalised"] == pytest.approx(np.zeros(3), abs=1e-20)
    # and squares that do not see the other pixel: nothing predicted right
    assert infidelity(one_pixel, X, 0 * e, 0, side=3, samples=400)["infidelity"] == pytest.approx(share * right**2)


def test_undefined_where_one_side_is_constant() -> None:
    for metric in (sensitivity_n, mu_fidelity):
        assert np.isnan(metric(one_pixel, X, SHARES, 1, samples=10)).all()  # class 1 reads nothing
        assert np.isnan(metric(linear, X, np.zeros_like(SHARES), CLASSES, samples=10)).all()
    assert np.isnan(sensitivity_n(linear, X, np.full_like(SHARES, 0.1), CLASSES, samples=10)).all()


def test_a_map_of_zeros_explains_nothing() -> None:
    """a = 0: both figures are mean(b^2)."""
    found = infidelity(linear, X, np.zeros_like(SHARES), CLASSES)
    assert found["infidelity"] == pytest.approx(found["normalised"])
    assert found["infidelity"].min() > 0


# --- the sets ---------------------------------------------------------------------------------------------------------


def test_sets_of_pixels() -> None:
    sets = pixel_sets(50, size=0.3, samples=40)
    assert sets.shape == (40, 15)
    assert all(len(set(each)) == 15 for each in sets.tolist())
    assert set(sets.ravel().tolist()) == set(range(50))
    assert (pixel_sets(50, size=0.3, samples=40) == sets).all()
    assert (pixel_sets(50, size=0.3, samples=40, seed=1) != sets).any()
    assert pixel_sets(50, size=0.001).shape == (100, 1)


def test_sets_of_cells() -> None:
    """16 of 81 cells, each whole: of 224 pixels a side 9 cells have 24 or 25."""
    sets = cell_sets((224, 224), samples=50).reshape(50, 224, 224)
    edges = [-(-224 * i // 9) for i in range(10)]
    cells = np.array([[each[a, b] for b in edges[:-1]] for a in edges[:-1] for each in [sets.transpose(1, 2, 0)]])
    assert (cells.sum(axis=(0, 1)) == 16).all()
    for i in range(9):
        for j in range(9):
            block = sets[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            assert (block == block[:, :1, :1]).all()
    assert (sets.any(axis=0)).all()
    assert len({each.tobytes() for each in sets}) == 50
    assert cell_sets((4, 4), grid=2, share=0.25, samples=9).sum(axis=1).tolist() == [4] * 9
    assert cell_sets((6, 4, 9), grid=3, share=0.5, samples=2).shape == (2, 216)


def test_squares_lie_anywhere_inside() -> None:
    random = np.random.default_rng(0)
    drawn = {shares(random, (3, 4), change="square", side=2, noise=0).tobytes() for _ in range(200)}
    squares = np.zeros((2, 3, 3, 4))
    for i, j in np.ndindex(2, 3):
        squares[i, j, i : i + 2, j : j + 2] = 1
    assert drawn == {each.tobytes() for each in squares.reshape(6, 3, 4)}


def test_shares_of_a_fade_are_normal() -> None:
    t = shares(np.random.default_rng(0), (100, 100), change="fade", side=1, noise=0.3)
    assert t.mean() == pytest.approx(0, abs=0.01)
    assert t.std() == pytest.approx(0.3, rel=0.03)


# --- against another's computation ------------------------------------------------------------------------------------


def test_by_hand_on_a_real_network() -> None:
    """The definition written out, one picture and one set at a time, on a network from a file."""
    explainer = Explainer(models.path("demo_honest.onnx"))
    x = tiny_models.pictures(tiny_models.vgg(), 2)
    x = np.repeat(np.repeat(x, 8, axis=2), 11, axis=3)[:, :, :128, :128].astype(np.float32)
    e = explainer.explain(x, target=3).relevance
    sets = [pixel_sets(128 * 128, size=2000, samples=6), cell_sets((128, 128), samples=6)]
    want: dict[str, list[float]] = {"n": [], "mu": []}
    for picture, each in zip(x, e, strict=True):
        y = explainer.scores(picture[None])[0, 3]
        for name, which, correlate in (("n", sets[0], pearson), ("mu", sets[1], spearman)):
            a, b = [], []
            for pixels in which:
                gone = picture.reshape(3, -1).copy()
                gone[:, pixels] = 0
                a.append(each.ravel()[pixels].sum(dtype=np.float64))
                b.append(float(y) - float(explainer.scores(gone.reshape(1, 3, 128, 128))[0, 3]))
            want[name].append(float(correlate([a], [b])[0]))
    assert sensitivity_n(explainer, x, e, 3, size=2000, samples=6) == pytest.approx(want["n"], abs=1e-4)
    assert mu_fidelity(explainer, x, e, 3, samples=6) == pytest.approx(want["mu"], abs=1e-4)


def test_against_captum_infidelity() -> None:
    """The same changes handed to captum: its infidelity and its normalised one, of gradients and of shares."""
    torch = pytest.importorskip("torch")
    from captum.metrics import infidelity as captum_infidelity

    def curved(x: Any) -> Any:
        return np.tanh(linear(x) / 20)

    def curved_torch(x: Any) -> Any:
        return torch.tanh((torch.einsum("nchw,kchw->nk", x, torch.tensor(W)) + torch.tensor(BIAS)) / 20)

    e = RNG.normal(size=X.shape)
    for change, side, noise in (("noise", 1, 0.3), ("square", 4, 1.0)):
        random = np.random.default_rng(9)
        p = np.zeros((7, *X.shape[1:]))
        for each in p:
            if change == "noise":
                each[:] = random.normal(0, noise, each.shape)
            else:
                top, left = random.integers(12 - side + 1), random.integers(10 - side + 1)
                each[:, top : top + side, left : left + side] = 1
        for i in range(3):
            moves = p if change == "noise" else p * X[i]

            def change_of(inputs: Any, moves: np.ndarray = moves) -> Any:
                moved = torch.tensor(moves)
                return moved, inputs - moved

            mine = infidelity(curved, X[i : i + 1], e[i : i + 1], CLASSES[i : i + 1], change=change, side=side,
                              noise=noise, samples=7, seed=9)  # fmt: skip
            for name, normalise in (("infidelity", False), ("normalised", True)):
                theirs = captum_infidelity(
                    curved_torch, change_of, torch.tensor(X[i : i + 1]), torch.tensor(e[i : i + 1]),
                    target=int(CLASSES[i]), n_perturb_samples=7, normalize=normalise,
                )  # fmt: skip
                assert mine[name] == pytest.approx(theirs.numpy(), rel=1e-10)


def test_figures_from_both_sides() -> None:
    """a = (1, 1), b = (2, 0): ((1)^2 + (1)^2) / 2 = 1; the best factor is 2 / 2 = 1."""
    found = unfaithful(np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert found["infidelity"] == pytest.approx([1, 1])
    assert found["normalised"] == pytest.approx([1, 0.5])


# --- networks, layouts, batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SensitivityN, MuFidelity, Infidelity])
def test_batches_equal_one_by_one(kind: Any) -> None:
    model = tiny_models.vgg()
    explainer, x = Explainer(model), tiny_models.pictures(model, 3)
    e = explainer.explain(x).relevance
    together, alone = kind(explainer, samples=12), kind(explainer, samples=12)
    together.update(x, e)
    for i in range(3):
        found = alone.update(x[i : i + 1], e[i : i + 1])
        assert set(found) == set(kind.figures)
    for name in kind.figures:
        assert alone.values[name] == pytest.approx(together.values[name], abs=1e-4)
        assert together.summary()[name].n == 3


@pytest.mark.parametrize("metric", [sensitivity_n, mu_fidelity, infidelity])
def test_seeds(metric: Any) -> None:
    e = SHARES + RNG.normal(size=SHARES.shape)
    first, again, other = (metric(linear, X, e, CLASSES, samples=20, seed=seed) for seed in (4, 4, 5))
    if metric is infidelity:
        first, again, other = (each["infidelity"] for each in (first, again, other))
    assert (first == again).all()
    assert (first != other).all()


@pytest.mark.parametrize("metric", [sensitivity_n, mu_fidelity, infidelity])
def test_channels_may_come_last(metric: Any) -> None:
    e = SHARES + RNG.normal(size=SHARES.shape)
    want = metric(linear, X, e, CLASSES, samples=9)
    found = metric(Scorer(last, layout="NHWC"), np.moveaxis(X, 1, -1), e, CLASSES, samples=9)
    if metric is infidelity:
        want, found = want["infidelity"], found["infidelity"]
    assert found == pytest.approx(want, rel=1e-9)


def test_a_gradient_with_channels_last() -> None:
    """The map has the picture's own shape, in its own order of axes."""
    e = np.moveaxis(W[CLASSES], 1, -1)
    for change in ("square", "fade", "noise"):
        found = infidelity(Scorer(last, layout="NHWC"), np.moveaxis(X, 1, -1), e, CLASSES, change=change)
        assert found["infidelity"] == pytest.approx(np.zeros(3), abs=1e-20)


@pytest.mark.parametrize("make", [tiny_models.nhwc, tiny_models.one_d, tiny_models.three_d, tiny_models.fixed_batch])
def test_networks_of_other_shapes(make: Any) -> None:
    model = make()
    explainer, x = Explainer(model), tiny_models.pictures(model)
    e = explainer.explain(x).relevance
    assert np.isfinite(sensitivity_n(explainer, x, e, samples=8)).all()
    assert np.isfinite(mu_fidelity(explainer, x, e, samples=8, grid=3)).all()
    assert np.isfinite(infidelity(explainer, x, e, samples=8)["normalised"]).all()


def test_logits_and_not_probabilities() -> None:
    """A network that ends in a Softmax is asked for what goes into it."""
    model = tiny_models.softmax_end()
    explainer, x = Explainer(model), tiny_models.pictures(model)
    e = explainer.explain(x).relevance
    want = sensitivity_n(lambda batch: explainer.scores(batch), x, e, 1, samples=8)
    assert sensitivity_n(explainer, x, e, 1, samples=8) == pytest.approx(want)
    assert np.abs(explainer.scores(x).sum(axis=1) - 1).min() > 0.01


def test_all_copies_go_in_batches() -> None:
    """One picture and its copies after the other, in one stream: 3 (1 + 9) pictures in batches of 8."""
    sizes: list[int] = []

    def counted(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return linear(x)

    for metric in (sensitivity_n, mu_fidelity, infidelity):
        sizes.clear()
        metric(Scorer(counted, batch_size=8), X, SHARES, CLASSES, samples=9)
        assert sizes == [8, 8, 8, 6]


def test_coarse_maps_are_shown_as_they_are_ranked() -> None:
    """A map of a lower resolution is ReLU'd and stretched; ``signed`` keeps its signs."""
    coarse = RNG.normal(size=(3, 6, 5))
    positive = np.maximum(coarse, 0)
    for metric in (sensitivity_n, mu_fidelity):
        assert metric(linear, X, coarse, CLASSES) == pytest.approx(metric(linear, X, positive, CLASSES))
        assert (metric(linear, X, coarse, CLASSES, signed=True) != metric(linear, X, coarse, CLASSES)).all()
    same = (infidelity(linear, X, e, CLASSES)["infidelity"] for e in (coarse, positive))
    assert next(same) == pytest.approx(next(same))


def test_whole_numbers_can_be_put_to_a_baseline() -> None:
    x = RNG.integers(0, 255, X.shape).astype(np.uint8)
    shares = (W[CLASSES] * x).sum(axis=1)
    assert infidelity(linear, x, shares, CLASSES)["infidelity"] == pytest.approx(np.zeros(3), abs=1e-15)
    with pytest.raises(InputError) as caught:
        infidelity(linear, x, shares, CLASSES, change="fade")
    assert str(caught.value) == (
        "change 'fade' moves a picture by fractions of a number\n  known   the pictures are uint8"
    )


SIZES = "  known   pixels of a set, 1 to 119, or a share of all between 0 and 1"


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "options", "said"),
    [
        (sensitivity_n, {"size": 0}, f"option size cannot be 0\n{SIZES}"),
        (sensitivity_n, {"size": 120}, f"option size cannot be 120\n{SIZES}"),
        (sensitivity_n, {"size": 1.5}, f"option size cannot be 1.5\n{SIZES}"),
        (sensitivity_n, {"size": True}, f"option size cannot be True\n{SIZES}"),
        (sensitivity_n, {"samples": 1}, "option samples cannot be 1\n  known   sets of pixels, from 2 on"),
        (mu_fidelity, {"samples": 2.5}, "option samples cannot be 2.5\n  known   sets of cells, from 2 on"),
        (mu_fidelity, {"grid": 1}, "option grid cannot be 1\n  known   cells along a side, from 2 on"),
        (mu_fidelity, {"grid": 11}, "option grid cannot be 11\n  known   the picture has [12, 10] pixels"),
        (mu_fidelity, {"share": 1.0}, "option share cannot be 1.0\n  known   of 81 cells at least one and not all"),
        (mu_fidelity, {"share": 0.001}, "option share cannot be 0.001\n  known   of 81 cells at least one and not all"),
        (infidelity, {"change": "blur"}, "option change cannot be 'blur'\n  known   square, fade, noise"),
        (infidelity, {"noise": 0}, "option noise cannot be 0\n  known   the deviation of the change, above 0"),
        (infidelity, {"side": 11}, "option side cannot be 11\n  known   the picture has [12, 10] pixels"),
        (infidelity, {"side": 0}, "option side cannot be 0\n  known   of a square in pixels, from 1 on"),
        (infidelity, {"samples": 0}, "option samples cannot be 0\n  known   changes of a picture, from 1 on"),
    ],
)  # fmt: skip
def test_options_that_do_not_exist(metric: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        metric(linear, X, SHARES, CLASSES, **options)
    assert str(caught.value) == said


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(InputError) as caught:
        infidelity(linear, X, SHARES, CLASSES, change="noise")
    assert str(caught.value) == (
        "a map of pixels does not say what noise in one channel does\n"
        "  known   the map is [3, 12, 10], the pictures are [3, 2, 12, 10]\n"
        "  next    change='fade' moves a pixel as a whole, change='square' hides it"
    )
    with pytest.raises(InputError) as caught:
        infidelity(linear, X, W[CLASSES][:, :1], CLASSES)
    assert str(caught.value) == (
        "a map of single numbers has to be finite and of the picture's shape\n"
        "  known   it is [1, 12, 10], the picture is [2, 12, 10]"
    )
    for metric in (sensitivity_n, mu_fidelity, infidelity):
        with pytest.raises(InputError, match="2 maps for 3 pictures"):
            metric(linear, X, SHARES[:2], CLASSES)
        with pytest.raises(TargetError):
            metric(linear, X, SHARES, 4)
        with pytest.raises(TargetError):
            metric(linear, X, SHARES, -1)
