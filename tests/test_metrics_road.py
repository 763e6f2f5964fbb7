"""ROAD: what the removed pixels become, against pytorch-grad-cam's imputer, and what the scores make of it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import tiny_models

from fgcam_onnx import Explainer
from fgcam_onnx.errors import InputError, MissingPackageError, OptionError, TargetError
from fgcam_onnx.metrics import Road, Scorer, imputed, road

RNG = np.random.default_rng(7)
X = RNG.normal(size=(3, 2, 14, 11))
MAPS = RNG.normal(size=(3, 14, 11))


def bright(x: np.ndarray) -> np.ndarray:
    """Class 0: the mean of the picture; class 1: nothing."""
    return np.stack([x.mean(axis=(1, 2, 3)), np.zeros(len(x))], axis=1)


def affine(high: int, wide: int) -> np.ndarray:
    y, x = np.mgrid[:high, :wide].astype(np.float64)
    return np.stack([2 + 0.5 * y - 0.25 * x, -1 - y + 3 * x])


# --- the imputation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 1.0])
def test_an_affine_picture_is_restored(share: float) -> None:
    """methods 9.3: without noise, and as long as no pixel of the border is removed."""
    picture = affine(20, 17)
    removed = np.zeros((20, 17), bool)
    removed[1:-1, 1:-1] = RNG.random((18, 15)) < share
    broken = np.where(removed, 1e6, picture)
    assert imputed(broken, removed, noise=0) == pytest.approx(picture, abs=1e-10)


def test_the_border_is_not() -> None:
    removed = np.zeros((20, 17), bool)
    removed[0, 4] = True
    found = imputed(affine(20, 17), removed, noise=0)
    # 1/6 left, right and below, 1/12 for both corners: half of the weight lies a row below
    assert found[:, 0, 4] == pytest.approx(affine(20, 17)[:, 0, 4] + np.array([0.25, -0.5]))


def test_one_pixel_by_hand() -> None:
    """4 (1/6) + 4 (1/12) = 1: edges count twice the corners; a corner of the picture has 2/6 + 1/12 = 5/12."""
    picture = np.array([[[1.0, 2, 3], [4, 99, 6], [7, 8, 9]]])
    middle, corner = np.zeros((2, 3, 3), bool)
    middle[1, 1] = corner[0, 0] = True
    assert imputed(picture, middle, noise=0)[0, 1, 1] == pytest.approx((2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 9) / 12)
    assert imputed(picture, corner, noise=0)[0, 0, 0] == pytest.approx((2 / 6 + 4 / 6 + 99 / 12) / (5 / 12))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_removed_pixels_are_the_mean_of_their_neighbours(share: float) -> None:
    """The system written out: at every removed pixel, border and all, with the values of the solution itself."""
    picture = RNG.normal(size=(3, 9, 12))
    removed = RNG.random((9, 12)) < share
    found = imputed(picture, removed, noise=0)
    assert (found[:, ~removed] == picture[:, ~removed]).all()
    weights = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    padded, there = np.pad(found, ((0, 0), (1, 1), (1, 1))), np.pad(np.ones((9, 12)), 1)
    for i, j in np.argwhere(removed):
        inside = weights * there[i : i + 3, j : j + 3]
        mean = (inside * padded[:, i : i + 3, j : j + 3]).sum(axis=(1, 2)) / inside.sum()
        assert found[:, i, j] == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # its own
def test_against_pytorch_grad_cam(share: float) -> None:
    torch = pytest.importorskip("torch")
    from torch_reference.torchvision_import import import_torchvision

    import_torchvision()
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    picture = RNG.normal(size=(3, 30, 26))
    removed = RNG.random((30, 26)) < share
    theirs = NoisyLinearImputer(noise=0)(torch.tensor(picture).float(), torch.tensor(~removed).float())
    assert imputed(picture, removed, noise=0) == pytest.approx(theirs.numpy(), abs=2e-6)  # theirs is float32


def test_the_noise() -> None:
    """N(0, noise^2) on the removed pixels alone, the same for a pixel whatever else is removed."""
    picture = np.zeros((3, 60, 60))
    removed = RNG.random((60, 60)) < 0.8
    found = imputed(picture, removed, noise=0.01)
    assert (found[:, ~removed] == 0).all()
    drawn = found[:, removed]
    assert drawn.std() == pytest.approx(0.01, rel=0.03)
    assert abs(drawn.mean()) < 4e-4
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.08
    assert (imputed(picture, removed, noise=0.01) == found).all()
    assert imputed(picture, removed, noise=0.1) == pytest.approx(10 * found)
    assert (imputed(picture, removed, noise=0.01, seed=1)[:, removed] != drawn).all()
    fewer = removed & (RNG.random((60, 60)) < 0.5)
    assert imputed(picture, fewer, noise=0.01)[:, fewer] == pytest.approx(found[:, fewer])


def test_layouts_types_and_nothing_to_do() -> None:
    removed = MAPS[0] > 0
    want = imputed(X[0], removed)
    assert imputed(np.moveaxis(X[0], 0, -1), removed, "NHWC") == pytest.approx(np.moveaxis(want, 0, -1))
    assert (imputed(X[0], np.zeros_like(removed)) == X[0]).all()
    single = imputed(X[0].astype(np.float32), removed)
    assert single.dtype == np.float32
    assert single == pytest.approx(want, abs=1e-6)
    whole = imputed(np.full((1, 14, 11), 7, np.uint8), removed)
    assert whole.dtype == np.uint8
    assert (whole == 7).all()


def test_the_picture_itself_stays() -> None:
    picture = X[0].copy()
    imputed(picture, MAPS[0] > 0)
    road(bright, X, MAPS, 0)
    assert (picture == X[0]).all()


# --- the scores -------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Ranking, counting, imputing and scoring written out for every percentage."""
    found = road(bright, X, MAPS, 0, percent=(10, 35, 90), seed=3)
    assert found.percent == (10, 35, 90)
    for i in range(3):
        order = np.argsort(-MAPS[i].ravel(), kind="stable")
        for column, count in enumerate((15, 54, 139)):  # of 154 pixels
            for gone, scores in ((order[:count], found.morf), (order[-count:], found.lerf)):
                mask = np.zeros(154, bool)
                mask[gone] = True
                shown = imputed(X[i], mask.reshape(14, 11), seed=3)
                assert scores[i, column] == pytest.approx(1 / (1 + np.exp(-shown.mean())), rel=1e-12)
    assert found.combined == pytest.approx(((found.lerf - found.morf) / 2).mean(axis=1))


def test_a_map_and_its_opposite() -> None:
    """Without ties the top of E is the bottom of -E: the figures swap, and combined changes its sign."""
    one, other = road(bright, X, MAPS, 0), road(bright, X, -MAPS, 0)
    assert one.percent == (10, 20, 30, 40, 50, 60, 70, 80, 90)
    assert one.morf == pytest.approx(other.lerf, abs=1e-15)
    assert one.combined == pytest.approx(-other.combined, abs=1e-15)
    assert road(bright, X, np.tanh(MAPS) + 3, 0).combined == pytest.approx(one.combined, abs=1e-15)


def test_the_right_map_is_best() -> None:
    """A bright spot on a dark picture: the map of the spot, its opposite, and a random one."""
    x = np.full((1, 1, 24, 24), -1.0)
    x[:, :, 8:16, 8:16] = 9
    spot = x[:, 0] + 0.01 * RNG.random((1, 24, 24))
    best, worst, random = (road(bright, x, e, 0).combined[0] for e in (spot, -spot, RNG.random((1, 24, 24))))
    assert best == pytest.approx(-worst, abs=0.01)
    assert best > abs(random) + 0.1


def test_a_tiny_share_is_one_pixel_and_one_stays() -> None:
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    e = np.array([[[4.0, 3], [2, 1]]])
    found = road(bright, x, e, 0, percent=(1, 99), noise=0)
    first = (2 * 1 + 2 * 2 + 1 * 3) / 5  # neighbours of the corner
    assert found.morf[0] == pytest.approx(1 / (1 + np.exp(-np.array([(first + 6) / 4, 3]))))
    assert found.lerf[0, 1] == pytest.approx(0.5)  # all that is left is the pixel 0


def test_batches_layouts_and_networks() -> None:
    for make in (tiny_models.vgg, tiny_models.nhwc, tiny_models.fixed_batch):
        model = make()
        explainer, x = Explainer(model), tiny_models.pictures(model)
        e = explainer.explain(x).relevance
        whole = Road(explainer, percent=(20, 70))
        whole.update(x, e)
        alone = Road(explainer, percent=(20, 70))
        for i in range(len(x)):
            alone.update(x[i : i + 1], e[i : i + 1])
        for name in whole.figures:
            assert alone.values[name] == pytest.approx(whole.values[name], abs=1e-5)
            assert whole.summary()[name].n == len(x)
        found = road(explainer, x, e, percent=(20, 70))
        assert whole.values["combined"] == pytest.approx(found.combined, abs=1e-6)
        assert whole.values["morf"] == pytest.approx(found.morf.mean(axis=1), abs=1e-6)
        assert whole.values["lerf"] == pytest.approx(found.lerf.mean(axis=1), abs=1e-6)


def test_all_copies_go_in_batches() -> None:
    sizes: list[int] = []

    def counted(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return bright(x)

    road(Scorer(counted, batch_size=8), X, MAPS, 0, percent=(10, 20, 30))
    assert sizes == [8, 8, 2]


def test_coarse_maps_and_their_signs() -> None:
    coarse = RNG.normal(size=(3, 7, 5))
    assert road(bright, X, coarse, 0).morf == pytest.approx(road(bright, X, np.maximum(coarse, 0), 0).morf)
    assert (road(bright, X, coarse, 0, signed=True).lerf != road(bright, X, coarse, 0).lerf).any()


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"percent": (0, 50)}, "option percent cannot be (0, 50)\n  known   percentages between 0 and 100"),
        ({"percent": 100}, "option percent cannot be 100\n  known   percentages between 0 and 100"),
        ({"percent": ()}, "option percent cannot be ()\n  known   percentages between 0 and 100"),
        ({"noise": -0.1}, "option noise cannot be -0.1\n  known   the deviation of the noise, 0 or more"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        road(bright, X, MAPS, 0, **options)
    assert str(caught.value) == said


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError) as caught:
        imputed(X[0], np.ones((14, 11), bool))
    assert str(caught.value) == (
        "removed has to be bool [14, 11] and leave a pixel\n  known   it is bool [14, 11], with 154 removed"
    )
    with pytest.raises(InputError, match=r"it is int64 \[2, 11\], with 0 removed"):
        imputed(X[0], np.zeros((2, 11), np.int64))
    with pytest.raises(InputError) as caught:
        road(lambda x: x.mean(axis=2), RNG.normal(size=(1, 2, 9)), np.ones((1, 9)), 0)
    assert str(caught.value) == "ROAD fills holes in pictures of two axes\n  known   the input has [9] pixels"
    with pytest.raises(InputError, match="2 maps for 3 pictures"):
        road(bright, X, MAPS[:2], 0)
    with pytest.raises(TargetError):
        road(bright, X, MAPS, 2)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Refusing(), *sys.meta_path])
    with pytest.raises(MissingPackageError) as caught:
        road(bright, X, MAPS, 0)
    assert str(caught.value) == (
        'scipy is not installed: ROAD solves a sparse system with it\n  next    pip install "fgcam_onnx[evaluate]"'
    )


class _Refusing:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "scipy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
