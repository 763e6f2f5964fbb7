"""Max-sensitivity and random logit: how a map moves with its picture and with its class. Against captum."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny_models

from fgcam_onnx import Explainer
from fgcam_onnx.errors import InputError, OptionError, TargetError
from fgcam_onnx.metrics import MaxSensitivity, RandomLogit, max_sensitivity, random_logit, ssim
from fgcam_onnx.metrics.random_logit import other_classes

RNG = np.random.default_rng(11)
X = RNG.normal(size=(4, 3, 9, 8))
MODEL = tiny_models.vgg(2)
PICTURES = tiny_models.pictures(MODEL, 3)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODEL)


def sums(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=1)


# --- max-sensitivity --------------------------------------------------------------------------------------------------


def test_a_map_that_does_not_move() -> None:
    assert max_sensitivity(lambda x: np.ones((len(x), 5)), X) == pytest.approx(np.zeros(4), abs=0)


def test_a_map_that_moves_with_its_picture() -> None:
    """E = the picture: ||d|| / ||x|| of the largest draw; the scale of the map does not matter."""
    draws = np.random.default_rng(2).uniform(-0.5, 0.5, (6, *X.shape[1:]))
    want = np.linalg.norm(draws.sum(axis=1).reshape(6, -1), axis=1).max()
    size = np.linalg.norm(X.sum(axis=1).reshape(4, -1), axis=1)
    found = max_sensitivity(sums, X, radius=0.5, samples=6, seed=2)
    assert found == pytest.approx(want / size, rel=1e-12)
    assert max_sensitivity(lambda x: -7 * sums(x), X, radius=0.5, samples=6, seed=2) == pytest.approx(found)
    assert max_sensitivity(sums, X, radius=0.25, samples=6, seed=2) == pytest.approx(found / 2)
    assert (max_sensitivity(sums, X, radius=0.5, samples=12, seed=2) >= found).all()
    assert (max_sensitivity(sums, X, radius=0.5, samples=6, seed=3) != found).any()


def test_a_map_of_zeros_is_undefined() -> None:
    metric = MaxSensitivity(lambda x: np.where(x[:, 0] > 50, x[:, 0], 0))
    assert np.isnan(metric.update(X)["max_sensitivity"]).all()
    assert metric.summary()["max_sensitivity"].undefined == 4


def test_against_captum() -> None:
    torch = pytest.importorskip("torch")
    from captum.metrics import sensitivity_max

    w = RNG.normal(size=X.shape[1:])
    draws = np.random.default_rng(0).uniform(-0.02, 0.02, (10, *X.shape[1:]))

    def curved(x: Any) -> Any:
        return (x * w).sum(axis=1) ** 3

    def alone(x: Any) -> Any:  # captum wraps what it is given, here and there
        return x[0] if isinstance(x, tuple) else x

    theirs = sensitivity_max(
        lambda x: ((alone(x) * torch.tensor(w)).sum(dim=1) ** 3,),
        torch.tensor(X),
        perturb_func=lambda x: alone(x) + torch.tensor(draws).repeat(4, 1, 1, 1),
        n_perturb_samples=10,
    )
    assert max_sensitivity(curved, X) == pytest.approx(theirs.numpy(), rel=1e-10)


def test_rows_come_in_batches_and_keep_their_class() -> None:
    asked: list[tuple[int, list[int]]] = []

    def explain(x: np.ndarray, target: list[int]) -> np.ndarray:
        asked.append((len(x), target))
        return x.sum(axis=1) * (1 + np.array(target))[:, None, None]

    found = max_sensitivity(explain, X, [3, 1, 4, 1], samples=4, batch_size=8)
    assert [n for n, _ in asked] == [8, 8, 4]
    assert [c for _, each in asked for c in each] == [3] * 5 + [1] * 5 + [4] * 5 + [1] * 5
    assert found == pytest.approx(max_sensitivity(sums, X, samples=4))


def test_of_an_explainer(explainer: Explainer) -> None:
    """Written out one by one, with the class of the picture itself, for a method and its options."""
    options: dict[str, Any] = {"method": "grad-cam", "layer": "relu1.y"}
    draws = np.random.default_rng(0).uniform(-2, 2, (3, 3, 16, 12))
    want, moved = [], 0
    for picture in PICTURES:
        c = int(explainer.scores(picture[None]).argmax())
        own = explainer.explain(picture[None], target=c, **options).relevance
        copies = [(picture + d).astype(np.float32)[None] for d in draws]
        moved += sum(int(explainer.scores(each).argmax()) != c for each in copies)
        others = [explainer.explain(each, target=c, **options).relevance for each in copies]
        want.append(max(np.linalg.norm(e - own) for e in others) / np.linalg.norm(own))
    assert moved > 0, "with its own class each copy would have had another map"
    for batch_size in (1, 3, 8):
        found = max_sensitivity(explainer, PICTURES, radius=2, samples=3, batch_size=batch_size, **options)
        assert found == pytest.approx(np.array(want), rel=1e-4)
    function = partial(explainer.explain, **options)
    classes = explainer.scores(PICTURES).argmax(axis=1)
    assert max_sensitivity(function, PICTURES, classes, radius=2, samples=3) == pytest.approx(np.array(want), rel=1e-4)


def test_batches_equal_one_by_one(explainer: Explainer) -> None:
    for kind in (partial(MaxSensitivity, explainer, samples=3), partial(RandomLogit, explainer, seed=5)):
        whole, alone = kind(), kind()
        (name,) = whole.figures
        whole.update(PICTURES)
        for i in range(3):
            alone.update(PICTURES[i : i + 1])
        assert alone.values[name] == pytest.approx(whole.values[name], rel=1e-4)
        assert whole.summary()[name].n == 3


def test_channels_last() -> None:
    model = tiny_models.nhwc()
    explainer, x = Explainer(model), tiny_models.pictures(model)
    assert (max_sensitivity(explainer, x, samples=2) > 0).all()
    assert (np.abs(random_logit(explainer, x)) <= 1).all()


# --- random logit -----------------------------------------------------------------------------------------------------


def test_methods_that_do_and_do_not_see_the_class() -> None:
    assert random_logit(lambda x, target: sums(x), X, 0, classes=5) == pytest.approx(np.ones(4))
    patterns = RNG.normal(size=(5, 9, 8))
    found = random_logit(lambda x, target: patterns[target], X, [0, 1, 2, 3], classes=5)
    others = other_classes(X, np.arange(4), 5)
    assert found == pytest.approx(ssim(patterns[:4], patterns[others]))
    assert np.abs(found).max() < 0.5


def test_of_an_explainer_by_hand(explainer: Explainer) -> None:
    own = explainer.scores(PICTURES).argmax(axis=1)
    others = other_classes(PICTURES, own, 5, seed=1)
    maps = [explainer.explain(PICTURES, target=[int(c) for c in each]).relevance for each in (own, others)]
    assert random_logit(explainer, PICTURES, seed=1) == pytest.approx(ssim(*maps), abs=1e-6)
    assert random_logit(explainer, PICTURES, seed=1, window=3) == pytest.approx(ssim(*maps, window=3), abs=1e-6)
    cam = random_logit(explainer, PICTURES, seed=1, method="grad-cam")
    assert np.isfinite(cam).all()  # 4 x 3 cells: a window of 3


def test_the_other_class() -> None:
    """Never its own, every other one with the same probability, and of the picture alone."""
    x = RNG.normal(size=(3000, 1, 2, 2))
    own = np.arange(3000) % 4
    found = other_classes(x, own, 4)
    assert (found != own).all()
    counts = np.bincount((found - own) % 4, minlength=4)
    assert counts[0] == 0
    assert counts[1:].min() > 900
    assert (other_classes(x[::-1], own[::-1], 4) == found[::-1]).all()
    assert (other_classes(x, own, 4, seed=1) != found).any()
    assert other_classes(x[:2], np.array([0, 1]), 2).tolist() == [1, 0]


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"radius": 0}, "option radius cannot be 0\n  known   how far a number may move, above 0"),
        ({"samples": 0}, "option samples cannot be 0\n  known   draws around a picture, from 1 on"),
        ({"batch_size": 0}, "option batch_size cannot be 0\n  known   pictures at a time, from 1 on"),
        (
            {"method": "fg-cam"},
            "a function that explains takes no option 'method' here\n"
            "  next    put it in with functools.partial, or give an Explainer",
        ),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        max_sensitivity(sums, X, **options)
    assert str(caught.value) == said


def test_what_does_not_fit(explainer: Explainer) -> None:
    with pytest.raises(InputError) as caught:
        max_sensitivity(sums, X.astype(np.uint8))
    assert str(caught.value) == (
        "max-sensitivity moves pictures [n, ...] by fractions of a number\n  known   they are uint8 [4, 3, 9, 8]"
    )
    with pytest.raises(InputError) as caught:
        max_sensitivity("grad-cam", X)
    assert str(caught.value) == (
        "explain has to be an Explainer, or a function from inputs to maps\n  known   it is str"
    )
    for wrong in (lambda x: x.sum(axis=1)[:1], lambda x: sums(x) * np.nan, lambda x: "map"):
        with pytest.raises(InputError, match="explain has to give a finite map for each of 8 pictures"):
            max_sensitivity(wrong, X)
    with pytest.raises(TargetError, match="one for all or one for each of 4 pictures"):
        max_sensitivity(sums, X, [1, 2])
    with pytest.raises(InputError, match="pictures have to be"):
        random_logit(explainer, np.zeros(3))
    with pytest.raises(OptionError) as option:
        random_logit(lambda x, target: sums(x), X, 0)
    assert str(option.value) == (
        "option classes cannot be None\n  known   how many classes there are, at least 2: another is drawn"
    )
    with pytest.raises(TargetError) as target:
        random_logit(lambda x, target: sums(x), X, classes=3)
    assert str(target.value) == "a function that explains does not say which class it takes\n  next    give target="
    for wrong_class in (3, -1):
        with pytest.raises(TargetError) as target:
            random_logit(lambda x, target: sums(x), X, wrong_class, classes=3)
        assert str(target.value) == f"there is no class {wrong_class}\n  known   there are 3, 0 to 2"
