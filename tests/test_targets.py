"""Targets of dense outputs: what places, sums and functions mean; against torch and against a score in the graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_models
import numpy as np
import onnx
import pytest
import tiny_models
from onnx import numpy_helper
from tiny_models import Net

from fgcam_onnx import Explainer, Explanation
from fgcam_onnx.backends.base import Backend
from fgcam_onnx.backends.numpy import NumpyBackend
from fgcam_onnx.backends.ort import OrtBackend
from fgcam_onnx.errors import InputError, MethodError, ModelError, TargetError
from fgcam_onnx.targets import aim_at

BACKENDS: dict[str, Callable[[], Backend]] = {
    "ort": lambda: OrtBackend(threads=1),
    "float64": lambda: NumpyBackend(np.dtype(np.float64)),
}
Weights = np.ndarray


def word(value: Any) -> str:
    """A test's id that is the same in every process."""
    return (
        "function" if callable(value) else "array" if isinstance(value, np.ndarray) else str(value).split("\n")[0][:60]
    )


def close(have: np.ndarray, want: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * np.abs(want).max())


# --- the meaning of a target, without a network -------------------------------------------------------------

LOGITS = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)
LABELS = ["sky", "road", "car", "tree"]


@pytest.mark.parametrize(
    ("target", "selected", "said"),
    [
        ((1, 2, 3), np.s_[1, 2, 3], (1, 2, 3)),
        ((-1, -3, -5), np.s_[3, 0, 0], (3, 0, 0)),
        ((1, None, None), np.s_[1], (1, ":", ":")),
        ((1, ":", ":"), np.s_[1], (1, ":", ":")),
        ((1, ...), np.s_[1], (1, ":", ":")),
        ((..., 4), np.s_[:, :, 4], (":", ":", 4)),
        ((1, slice(1, None), slice(0, 4, 2)), np.s_[1, 1:, 0:4:2], (1, "1:3", "0:3:2")),
        ((1, slice(None, None, -1), 0), np.s_[1, :, 0], (1, ":", 0)),
        ((1, slice(-2, None), "1:3"), np.s_[1, 1:, 1:3], (1, "1:3", "1:3")),
        (("1", "-1", ":2"), np.s_[1, 2, :2], (1, 2, "0:2")),
        (("car", 0, 1), np.s_[2, 0, 1], (2, 0, 1)),
        ((np.int64(1), np.array(2), 3), np.s_[1, 2, 3], (1, 2, 3)),
    ],
    ids=repr,
)
def test_a_place_is_indexing(target: Any, selected: Any, said: Any) -> None:
    """The weights are 1 where NumPy's indexing selects, 0 elsewhere, and the score is the sum of what it selects."""
    aim = aim_at(target, LOGITS, LABELS, "NCHW")
    expected = np.zeros(LOGITS.shape[1:], np.float32)
    expected[selected] = 1
    for weights in aim.weights:
        np.testing.assert_array_equal(weights, expected)
    assert aim.said == (said, said)
    assert aim.classes is None
    assert aim.hashes() == ()
    np.testing.assert_allclose(aim.score(LOGITS), [np.sum(z[selected]) for z in LOGITS], rtol=1e-5)


def test_axes_are_the_output_s_own() -> None:
    """(y, x, class) where the output is [n, y, x, class]."""
    channels_last = np.ascontiguousarray(LOGITS.transpose(0, 2, 3, 1))
    for target, same in (((2, 3, 1), (1, 2, 3)), ((2, 3, "road"), ("road", 2, 3)), ((0, ..., -1), (-1, 0, None))):
        last, first = aim_at(target, channels_last, LABELS, "NHWC"), aim_at(same, LOGITS, LABELS, "NCHW")
        np.testing.assert_array_equal(last.weights.transpose(0, 3, 1, 2), first.weights)


def test_one_place_for_each_image() -> None:
    aim = aim_at([(0, 1, 2), (3, None, -1)], LOGITS, None, "NCHW")
    np.testing.assert_array_equal(np.argwhere(aim.weights), [[0, 0, 1, 2], [1, 3, 0, 4], [1, 3, 1, 4], [1, 3, 2, 4]])
    assert aim.said == ((0, 1, 2), (3, ":", 4))


def test_a_piece_of_a_call_takes_its_own_targets() -> None:
    """Targets are written for all images of a call; a piece of it takes those of its images."""
    places = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 0, 3)]
    assert aim_at(places, LOGITS, None, "NCHW", first=2, images=4).said == ((2, 2, 2), (3, 0, 3))
    weights = np.random.default_rng(1).normal(size=(4, 4, 3, 5))
    aim = aim_at(weights, LOGITS, None, "NCHW", first=2, images=4)
    np.testing.assert_array_equal(aim.weights, weights[2:].astype(np.float32))
    scores = LOGITS.reshape(2, -1)
    assert aim_at([5, 6, 7, 8], scores, first=2, images=4).said == (7, 8)
    for wrong in (places[:2], places[:3], [5, 6]):
        with pytest.raises(TargetError, match=f"{len(wrong)} targets for 4 images"):
            aim_at(wrong, LOGITS if isinstance(wrong[0], tuple) else scores, None, None, first=2, images=4)


def test_a_function_returns_how_much_each_logit_counts() -> None:
    """Called with each image's logits alone, read-only; what it returns are the weights."""
    seen: list[np.ndarray] = []

    def mask(logits: np.ndarray) -> np.ndarray:
        seen.append(logits)
        cells = logits.argmax(axis=1) == 1
        weights = np.zeros(logits.shape)
        weights[:, 1] = cells / cells.sum()
        return weights

    aim = aim_at(mask, LOGITS, None, "NCHW")
    assert [logits.shape for logits in seen] == [(1, 4, 3, 5)] * 2
    for i, logits in enumerate(seen):
        np.testing.assert_array_equal(logits[0], LOGITS[i])
        with pytest.raises(ValueError, match="read-only"):
            logits[:] = 0
    means = [z[1][z.argmax(0) == 1].mean() for z in LOGITS]
    np.testing.assert_allclose(aim.score(LOGITS), means, rtol=1e-5)
    assert aim.said == ("function", "function")
    assert aim.hashes() == tuple(hashlib.sha256(w.tobytes()).hexdigest() for w in aim.weights)
    by_array = aim_at(aim.weights, LOGITS, None, "NCHW")
    np.testing.assert_array_equal(by_array.weights, aim.weights)
    assert by_array.hashes() == aim.hashes()


def test_bools_and_integers_are_weights_too() -> None:
    np.testing.assert_array_equal(aim_at(lambda z: z > 0, LOGITS).weights, (LOGITS > 0).astype(np.float32))
    np.testing.assert_array_equal(aim_at(np.full(LOGITS.shape, 2), LOGITS).weights, np.full(LOGITS.shape, 2.0))


def test_a_function_of_class_scores() -> None:
    """The contrast of two classes: no class, but a weighted sum of scores."""
    scores = LOGITS.reshape(2, -1)[:, :6]
    aim = aim_at(lambda z: np.array([[0, 1, 0, -1, 0, 0]]), scores)
    np.testing.assert_allclose(aim.score(scores), scores[:, 1] - scores[:, 3], rtol=1e-6)
    assert aim.classes is None


def test_one_score_a_class_is_as_before() -> None:
    """[n, classes]; [n, classes, 1, 1] where the head keeps its axes: there a tuple is a place."""
    flat = LOGITS[:, :, 0, 0]
    for logits, layout in ((flat, None), (flat[:, :, None, None], "NCHW")):
        for target, classes in ((None, flat.argmax(1)), (2, [2, 2]), ("car", [2, 2]), ([0, "tree"], [0, 3])):
            aim = aim_at(target, logits, LABELS, layout)
            assert aim.classes is not None
            assert aim.classes.tolist() == list(classes)
            np.testing.assert_array_equal(aim.weights.reshape(2, 4), np.eye(4, dtype=np.float32)[aim.classes])
    assert aim_at((1, 3), flat, LABELS).said == (1, 3)
    assert aim_at((3, 0, 0), flat[:, :, None, None], LABELS, "NCHW").said == ((3, 0, 0), (3, 0, 0))


DENSE = "its axes after the batch are [class, y, x] = [4, 3, 5]"
WANTED = "a target function returns how much each logit counts: numbers of the logits' own shape"
MEAN = "for the mean of class 3 over the picture: w = 0 * logits; w[:, 3] = 1 / w[0, 3].size; return w"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ((1, 2), f"target (1, 2) has 2 entries, and the output 3 axes after the batch\n  known   {DENSE}\n"
                 "  next    target=(class, y, x), with None to sum over an axis"),
        ((4, 0, 0), f"target (4, 0, 0) is outside the output: 4 on the axis class, of size 4\n  known   {DENSE}"),
        ((0, -4, None), f"target (0, -4, :) is outside the output: -4 on the axis y, of size 3\n  known   {DENSE}"),
        ((0, slice(3, 9), 0), f"target (0, 3:9, 0) selects nothing on the axis y, of size 3\n  known   {DENSE}"),
        ((True, 0, 0), "target (True, 0, 0) has the entry True, a bool\n"
                       "  known   an index, None or a slice for a sum, a label on the class axis"),
        ((0.0, 0, 0), "target (0.0, 0, 0) has the entry 0.0, a float\n"
                      "  known   an index, None or a slice for a sum, a label on the class axis"),
        ((0, "car", 0), "target (0, car, 0) has the word 'car' on the axis y\n"
                        "  known   an index, or ':' or '2:5' for a sum; a label on the class axis, where the model has "
                        "labels"),
        (("cat", 0, 0), "no class is called 'cat'\n  known   4 classes, 0 to 3\n  next    did you mean 'car'?"),
        ([(1, 0, 0)], "1 target for 2 images\n  next    give one target for all, or one for each image"),
        (lambda z: z[:, 1], f"the target function returned an array of shape [1, 3, 5], and the logits are "
                            f"[n, class, y, x] = [1, 4, 3, 5]\n  known   {WANTED}\n  next    {MEAN}"),
        (lambda z: z[:, 1].mean(), "the target function returned an array of shape [], and the logits are "
                                   f"[n, class, y, x] = [1, 4, 3, 5]\n  known   {WANTED}\n  next    {MEAN}"),
        (lambda z: z * np.nan, "the target function returned weights that are NaN or Inf\n  at      image 0"),
        (lambda z: z.astype(complex), f"the target function returned complex128 values\n  at      image 0\n"
                                      f"  known   {WANTED}"),
        (lambda z: (z == 9) * 1.0, "the target function returned weights that are all 0: no logit counts, there is "
                                   "nothing to explain\n  at      image 0\n"
                                   "  next    if it selects the cells of a class, the network gave none of them that "
                                   "class"),
        (np.ones((1, 4, 3, 5)), "target is an array of shape [1, 4, 3, 5], and the logits are [n, class, y, x] = "
                                f"[2, 4, 3, 5]\n  known   {WANTED}\n  next    {MEAN}"),
    ],
    ids=word,
)  # fmt: skip
def test_what_a_dense_target_may_not_be(target: Any, text: str) -> None:
    with pytest.raises(TargetError) as error:
        aim_at(target, LOGITS, LABELS, "NCHW")
    assert str(error.value) == text


def test_a_label_is_for_the_class_axis_alone() -> None:
    """Three labels, three rows: the label of a class is still no row."""
    with pytest.raises(TargetError, match="has the word 'road' on the axis y"):
        aim_at((0, "road", 0), LOGITS, LABELS[:3], "NCHW")
    with pytest.raises(TargetError, match="has the word 'road' on the axis class"):
        aim_at(("road", 0, 0), LOGITS, LABELS[:3], "NCHW")
    with pytest.raises(TargetError, match="has the word 'road' on axis 1"):
        aim_at(("road", 0, 0), LOGITS, LABELS, None)


@pytest.mark.parametrize("target", [None, 3, "car", [1, 2], np.array([0, 1]), -1], ids=word)
def test_a_class_does_not_say_which_place(target: Any) -> None:
    """Never a silent choice among the places of a dense output."""
    with pytest.raises(TargetError, match=r"the output is dense, and .* does not say which of its scores to explain"):
        aim_at(target, LOGITS, LABELS, "NCHW")


def test_a_dense_signal_is_no_row_of_classes() -> None:
    """[n, 1, 40] with its axes known is a score for each of 40 moments."""
    with pytest.raises(TargetError, match=r"its axes after the batch are \[class, x\] = \[1, 40\]"):
        aim_at(7, np.ones((1, 1, 40), np.float32), None, "NCW")
    with pytest.raises(TargetError, match=r"its axes after the batch are \[class, y, x\] = \[1, 1, 40\]"):
        aim_at(7, np.ones((1, 1, 1, 40), np.float32), None, "NCHW")
    assert aim_at((0, 7), np.ones((1, 1, 40), np.float32), None, "NCW").weights.sum() == 1


# --- the same score inside the graph ------------------------------------------------------------------------


def mask_of_class_two(logits: np.ndarray) -> np.ndarray:
    """The mean logit of class 2 over the cells where it is above its own mean."""
    weights = np.zeros_like(logits)
    weights[:, 2] = logits[:, 2] > logits[:, 2].mean()
    return weights / weights.sum()


PLACES: dict[str, tuple[Callable[[], onnx.ModelProto], Any, Callable[[np.ndarray], Weights]]] = {
    "a place": (dense_models.segmenter, (3, 10, 5), lambda z: onehot(z, np.s_[:, 3, 10, 5])),
    "a sum": (dense_models.segmenter, (1, None, None), lambda z: onehot(z, np.s_[:, 1])),
    "a box": (dense_models.segmenter, (1, slice(2, 9), slice(3, None)), lambda z: onehot(z, np.s_[:, 1, 2:9, 3:])),
    "a mask": (dense_models.segmenter, mask_of_class_two, mask_of_class_two),
    "channels last": (lambda: dense_models.segmenter(nhwc=True), (10, 5, 3), lambda z: onehot(z, np.s_[:, 10, 5, 3])),
    "u-net": (dense_models.unet, (0, 3, 4), lambda z: onehot(z, np.s_[:, 0, 3, 4])),
    "an anchor": (dense_models.detector, (70, 6), lambda z: onehot(z, np.s_[:, 70, 6])),
    "a signal": (dense_models.signals, (0, slice(10, 20)), lambda z: onehot(z, np.s_[:, 0, 10:20])),
    "a volume": (dense_models.volumes, (4, 2, None, 1), lambda z: onehot(z, np.s_[:, 4, 2, :, 1])),
}


def onehot(logits: np.ndarray, where: Any) -> Weights:
    weights = np.zeros_like(logits)
    weights[where] = 1
    return weights


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("method", ["fg-grad-cam", "fg-layer-cam", "grad-cam", "layer-cam"])
@pytest.mark.parametrize("name", sorted(PLACES))
def test_the_target_is_the_score_in_the_graph(name: str, method: str, backend: str) -> None:
    """The head cut down to that one number by nodes of its own, explained the ordinary way: the same map and books."""
    make, target, weigh = PLACES[name]
    model = make()
    x = tiny_models.pictures(model, 2, seed=3)
    dense = Explainer(model, backend=BACKENDS[backend]())
    e = dense.explain(x, target=target, method=method)
    for i in range(2):
        (logits,) = tiny_models.run(model, x[i : i + 1], model.graph.output[0].name)
        weights = weigh(logits)
        ordinary = Explainer(dense_models.cut_down(model, weights), backend=BACKENDS[backend]())
        one = ordinary.explain(x[i : i + 1], target=0, method=method, start=e.start)
        close(e.relevance[i], one.relevance[0])
        assert e.relevance[i].any()
        np.testing.assert_allclose(e.score[i], one.logits[0, 0], rtol=1e-4)
        np.testing.assert_allclose(e.score[i], (weights * logits).sum(), rtol=1e-4)
        np.testing.assert_allclose(e.ledger.start[i], one.ledger.start[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(e.logits, tiny_models.run(model, x)[0], rtol=1e-4, atol=1e-5)
    assert e.ledger.residual < 1e-5


def test_that_comparison_notices_a_neighbour() -> None:
    """One cell further the map is another, by far more than the tolerance: the comparison is awake."""
    model = dense_models.segmenter()
    x = tiny_models.pictures(model, 1, seed=3)
    here, there = (
        Explainer(model, threads=1).explain(x, target=(3, 10, k), method="fg-layer-cam").relevance for k in (4, 6)
    )
    with pytest.raises(AssertionError):
        close(here, there, 1e-2)


def test_maps_add_up_as_their_scores_do() -> None:
    """FG-Grad-CAM is linear in the weights: the map of a sum is the sum of the maps."""
    model = dense_models.segmenter()
    x = tiny_models.pictures(model, 2, seed=1)
    explainer = Explainer(model, backend="numpy", precision="float64")
    whole = explainer.explain(x, target=(2, slice(4, 6), slice(7, 9)))
    parts = [explainer.explain(x, target=(2, y, k)) for y in (4, 5) for k in (7, 8)]
    close(np.sum([p.relevance for p in parts], axis=0), whole.relevance, 1e-6)
    close(np.sum([p.score for p in parts], axis=0), whole.score, 1e-5)


# --- torch's autograd ---------------------------------------------------------------------------------------


def torch_cams(model: onnx.ModelProto, x: np.ndarray, weights: Weights) -> dict[str, np.ndarray]:
    """Grad-CAM and Layer-CAM at relu3 of the segmenter, [n, h, w], written with torch alone in float64."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F  # noqa: N812

    w = {t.name: torch.from_numpy(numpy_helper.to_array(t).astype(np.float64)) for t in model.graph.initializer}

    def conv(name: str, z: Any, pad: int = 1) -> Any:
        return F.conv2d(z, w[f"{name}.1"], w[f"{name}.2"], padding=pad)

    z = F.max_pool2d(F.relu(conv("conv1", torch.from_numpy(x.astype(np.float64)))), 2)
    a = F.relu(conv("conv3", F.relu(conv("conv2", z)))).detach().requires_grad_()
    logits = F.interpolate(conv("classes", a, 0), scale_factor=2, mode="bilinear", align_corners=False)
    (logits * torch.from_numpy(weights.astype(np.float64))).sum().backward()
    g = a.grad
    cams = {"grad-cam": g.mean((2, 3), keepdim=True) * a, "layer-cam": g.clamp(min=0) * a}
    return {name: components.sum(1).detach().numpy() for name, components in cams.items()}


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("target", [(3, 10, 5), (0, None, None), mask_of_class_two], ids=["place", "sum", "mask"])
def test_torch_s_autograd_gives_the_same_cam(target: Any, backend: str) -> None:
    model = dense_models.segmenter(seed=4)
    x = tiny_models.pictures(model, 3, seed=2)
    explainer = Explainer(model, backend=BACKENDS[backend]())
    (logits,) = tiny_models.run(model, x)
    weights = (
        np.concatenate([target(z[None]) for z in logits])
        if callable(target)
        else onehot(logits, (slice(None), *(slice(None) if t is None else t for t in target)))
    )
    for method, expected in torch_cams(model, x, weights).items():
        e = explainer.explain(x, target=target, method=method)
        assert e.start == "relu3.y"
        close(e.relevance, expected)


@pytest.fixture(scope="module")
def lraspp() -> tuple[Any, bytes]:
    """torchvision's LR-ASPP on a MobileNetV3: two tensors of the backbone meet in the head. Random live weights."""
    torch = pytest.importorskip("torch")
    from torch_reference.export import export, live
    from torch_reference.torchvision_import import import_torchvision

    class Out(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return self.net(x)["out"]

    make = import_torchvision().models.segmentation.lraspp_mobilenet_v3_large
    torch.manual_seed(0)
    model = live(Out(make(weights=None, weights_backbone=None, num_classes=6)), 0, (64, 96), images=2)
    return model.net, export(model, torch.zeros(1, 3, 64, 96), exporter="legacy")


def test_a_segmentation_network_of_torchvision(lraspp: tuple[Any, bytes]) -> None:
    """The deep tensor of its backbone as a start: the CAM there by torch's autograd of that tensor alone."""
    from torch.nn import functional as F  # noqa: N812
    from torch_reference.export import smooth_images

    net, file = lraspp
    x = smooth_images(2, (64, 96), 3)
    target = (3, 20, 30)
    features = net.backbone(x)
    high = features["high"].detach().requires_grad_()
    logits = net.classifier({"low": features["low"].detach(), "high": high})
    logits = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
    logits[:, *target].sum().backward()
    g, a = high.grad, high.detach()
    assert g is not None
    expected = {"grad-cam": (g.mean((2, 3), keepdim=True) * a).sum(1), "layer-cam": (g.clamp(min=0) * a).sum(1)}

    explainer = Explainer(file, backend="ort", threads=1)
    assert (explainer.output_axes, explainer.num_classes) == (("class", "y", "x"), 6)
    shape = tuple(high.shape[1:])
    names = [o for layer in explainer.graph.layers for o in layer.outputs]
    start = [n for n in names if (explainer.graph.tensor(n).shape or ())[1:] == shape][-1]
    for method, cam in expected.items():
        e = explainer.explain(x.numpy(), target=target, method=method, start=start)
        close(e.relevance, cam.numpy(), 1e-4)
        np.testing.assert_allclose(e.logits, logits.detach().numpy(), atol=1e-4 * float(logits.detach().abs().max()))
        assert any(note.startswith("not all evidence passes") for note in e.provenance["notes"])
    assert explainer.coverage().complete
    e = explainer.explain(x.numpy(), target=target, method="fg-layer-cam")
    assert e.relevance.shape == (2, 64, 96)
    leaked = np.sum([row.leaked for row in e.ledger.rows], axis=0)
    np.testing.assert_allclose(e.ledger.arrived + leaked, e.ledger.start, atol=1e-5 * e.ledger.start_absolute.max())


# --- heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize(
    ("end", "note", "head"),
    [
        ("Softmax", "Softmax: explaining the tensor before it", "Softmax"),
        ("Sigmoid", "Sigmoid: explaining the tensor before it", "Sigmoid"),
        ("ArgMax", "ArgMax: explaining the tensor before it", None),
        ("Softmax ArgMax", "Softmax and ArgMax: explaining the tensor before them", "Softmax"),
    ],
)
def test_what_stands_behind_the_logits_is_left_out(end: str, note: str, head: str | None, nhwc: bool) -> None:
    """Probabilities and indices of classes: the logits are explained, and a note names them and their axes."""
    model, plain = dense_models.segmenter(end=end, nhwc=nhwc), dense_models.segmenter(nhwc=nhwc)
    x = tiny_models.pictures(plain, 2)
    target = (10, 5, 3) if nhwc else (3, 10, 5)
    e = Explainer(model, backend="ort", threads=1).explain(x, target=target)
    expected = Explainer(plain, backend="ort", threads=1).explain(x, target=target)
    close(e.relevance, expected.relevance)
    np.testing.assert_allclose(e.logits, expected.logits, rtol=1e-5, atol=1e-6)
    name, axes = ("to_nhwc.y", "16, 12, 5") if nhwc else ("grow.y", "5, 16, 12")
    batch = Explainer(model, threads=1).output_shape[0]
    assert f"the model ends in {note}, '{name}' [{batch}, {axes}]" in e.provenance["notes"]
    assert e.provenance["head"] == head


def test_axes_that_move_behind_the_softmax() -> None:
    """Softmax, then Transpose: the target has the axes of the tensor that is explained, and the note says which."""
    net = Net()
    x = net.node("Softmax", "softmax", net.conv("classes", dense_models.backbone(net), 8, 5, 1), axis=1)
    model = net.model(net.node("Transpose", "last", x, perm=[0, 2, 3, 1]))
    explainer = Explainer(model, backend="ort", threads=1)
    assert explainer.output_axes == ("class", "y", "x")
    assert explainer.notes == ["the model ends in Softmax: explaining the tensor before it, 'classes.y' [n, 5, 8, 6]"]
    e = explainer.explain(tiny_models.pictures(model, 1), target=(4, 7, 5))
    assert e.logits.shape == (1, 5, 8, 6)


def test_an_argmax_of_class_scores() -> None:
    """A classifier that only tells the index of its class."""
    net = Net()
    scores = net.head(net.relu("relu", net.conv("conv", "image", 3, 4)), 4)
    model = net.model(net.node("Squeeze", "index", net.node("ArgMax", "argmax", scores, axis=1), np.array([1])))
    x = tiny_models.pictures(model, 2)
    explainer = Explainer(model, backend="ort", threads=1)
    e = explainer.explain(x)
    assert explainer.num_classes == 5
    np.testing.assert_array_equal(e.target, tiny_models.run(model, x)[0])


def test_outputs_of_a_detector_by_name() -> None:
    """Three outputs: the first by default, which a note lists, or one by name."""
    model = dense_models.detector()
    explainer = Explainer(model, threads=1, backend="ort")
    assert explainer.outputs == {"found.y": ("n", 120, 9), "boxes.y": ("n", 120, 4), "scores.y": ("n", 120, 5)}
    assert explainer.notes == [
        "the model has outputs found.y [n, 120, 9], boxes.y [n, 120, 4], scores.y [n, 120, 5]: explaining 'found.y'"
    ]
    x = tiny_models.pictures(model, 2)
    joined = explainer.explain(x, target=(100, 4 + 2))
    scores = Explainer(model, output="scores.y", threads=1, backend="ort")
    assert (scores.notes, scores.output_axes, scores.num_classes) == ([], ("axis 1", "axis 2"), 0)
    close(scores.explain(x, target=(100, 2)).relevance, joined.relevance)


# --- L --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (dense_models.segmenter, "relu3.y"),
        (lambda: dense_models.segmenter(nhwc=True, end="Softmax"), "relu3.y"),
        (lambda: dense_models.segmenter(shape=("n", 3, "h", "w")), "relu3.y"),
        (dense_models.unet, "up1.relu.y"),
        (dense_models.fcn, "relu2.y"),
        (dense_models.detector, "relu2.y"),
        (dense_models.signals, "relu2.y"),
        (dense_models.volumes, "relu2.y"),
    ],
)
def test_l_of_dense_outputs(make: Callable[[], onnx.ModelProto], start: str) -> None:
    """The smallest tensor that all evidence passes; of several the last activation, not classes before they grow."""
    explainer = Explainer(make(), backend="ort", threads=1)
    assert explainer.dense
    assert explainer.default_layer == start
    assert explainer.layers()[-1].name == start
    assert explainer.coverage().complete


def test_no_tensor_that_all_evidence_passes() -> None:
    """Two paths from the pixels: the error lists tensors, and one of them shows its own part, which a note says."""
    model = dense_models.two_paths()
    explainer = Explainer(model, backend="ort", threads=1)
    x = tiny_models.pictures(model, 1)
    with pytest.raises(ModelError) as caught:
        explainer.explain(x, target=(1, 2, 3))
    assert str(caught.value) == (
        "no layer to start from: no spatial tensor that all evidence passes has learned weights behind it\n"
        "  at      logits 'add.y'\n"
        "  known   part of the evidence passes context.relu.y [n, 6, 8, 6], context.y [n, 6, 8, 6], "
        f"grow.y [{explainer.graph.tensor('grow.y').shape[0]}, 6, 16, 12], detail.relu.y [n, 6, 16, 12]\n"  # type: ignore[index]
        "  next    name one yourself: explain(x, start='tensor name'); the map then shows the evidence through it alone"
    )
    note = "not all evidence passes 'context.relu.y': the map shows what went through it, and nothing else"
    e = explainer.explain(x, target=(1, 2, 3), start="context.relu.y")
    assert note in e.provenance["notes"]
    assert note not in explainer.notes
    assert "detail" not in {row.node for row in e.ledger.rows}


@pytest.mark.parametrize("start", ["b1.conv2.y", "b2.down"])
def test_a_start_beside_a_shortcut_is_noted(start: str) -> None:
    """For one score a class as well; a start that all evidence passes has no such note."""
    model = tiny_models.residual()
    explainer = Explainer(model, backend="ort", threads=1)
    x = tiny_models.pictures(model, 1)
    assert any(n.startswith("not all evidence passes") for n in explainer.explain(x, start=start).provenance["notes"])
    assert explainer.explain(x, start="b1.relu2").provenance["notes"] == []
    assert explainer.explain(x).provenance["notes"] == []


# --- the record ---------------------------------------------------------------------------------------------


def explained(target: Any, **options: Any) -> Explanation:
    model = dense_models.segmenter()
    return Explainer(model, backend="ort", threads=1).explain(tiny_models.pictures(model, 2), target=target, **options)


def test_what_is_recorded(tmp_path: Path) -> None:
    """The place with its sums, or the hash of a function's weights; the score; and no probability."""
    e = explained([(3, 10, -1), (1, slice(2, 4), None)])
    assert e.target == ((3, 10, 11), (1, "2:4", ":"))
    assert (e.score.dtype.name, e.score.shape, e.logits.shape) == ("float32", (2,), (2, 5, 16, 12))
    np.testing.assert_allclose(e.score, [e.logits[0, 3, 10, 11], e.logits[1, 1, 2:4].sum()], rtol=1e-5)
    with pytest.raises(InputError, match="a dense output has no probability of a class"):
        _ = e.probabilities
    record = json.loads((e.save(tmp_path / "place") / "manifest.json").read_text())
    assert [image["target"] for image in record["images"]] == [[3, 10, 11], [1, "2:4", ":"]]
    assert [image["score"] for image in record["images"]] == pytest.approx(e.score.tolist())
    assert "probability" not in record["images"][0]

    e = explained(mask_of_class_two)
    assert e.target == ("function", "function")
    record = json.loads((e.save(tmp_path / "mask") / "manifest.json").read_text())
    weights = [mask_of_class_two(z[None])[0] for z in e.logits]
    for image, w in zip(record["images"], weights, strict=True):
        assert image["target"] == "function"
        assert image["weights_sha256"] == hashlib.sha256(w.astype(np.float32).tobytes()).hexdigest()


def test_the_score_of_a_class_is_its_logit() -> None:
    model = tiny_models.vgg()
    e = Explainer(model, backend="ort", threads=1).explain(tiny_models.pictures(model, 3), target=[0, 4, 2])
    np.testing.assert_array_equal(e.score, e.logits[np.arange(3), [0, 4, 2]])
    assert e.classes is e.target


def test_grad_cam_of_one_place_says_that_it_looks_at_all() -> None:
    note = "grad-cam weighs a channel by its mean gradient over the whole picture"
    for target, method, said in (
        ((3, 10, 5), "fg-grad-cam", True),
        ((3, None, 5), "grad-cam", True),
        ((3, None, None), "fg-grad-cam", False),
        ((3, 10, 5), "fg-layer-cam", False),
    ):
        notes = explained(target, method=method).provenance["notes"]
        assert any(n.startswith(note) for n in notes) == said


@pytest.mark.parametrize("method", ["score-cam", "fg-score-cam"])
def test_score_cam_needs_a_class(method: str) -> None:
    with pytest.raises(MethodError) as caught:
        explained((3, 10, 5), method=method)
    assert str(caught.value) == (
        f"{method} weighs channels by scores of one class, and this target is none\n"
        "  known   the output 'grow.y' has the shape [2, 5, 16, 12]\n"
        "  next    take fg-grad-cam or fg-layer-cam, which explain any weighted sum of logits"
    )


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [(3, 10, 5), [(i % 5, i, None) for i in range(5)], mask_of_class_two], ids=word)
@pytest.mark.parametrize("shape", [("n", 3, 16, 12), (4, 3, 16, 12), (1, 3, 16, 12)], ids=str)
def test_pieces_and_fixed_batches_change_nothing(shape: Any, target: Any) -> None:
    """Five images at once, in pieces, and in a model that takes four or one: each as alone."""
    model, free = dense_models.segmenter(shape=shape), dense_models.segmenter()
    x = tiny_models.pictures(free, 5, seed=6)
    explainer, alone = Explainer(model, backend="ort", threads=1), Explainer(free, backend="ort", threads=1)
    sizes = (None, 2) if shape[0] == "n" else (None,)
    for size in sizes:
        e = explainer.explain(x, target=target, batch_size=size)
        for i in range(5):
            one = alone.explain(x[i : i + 1], target=[target[i]] if isinstance(target, list) else target)
            close(e.relevance[i], one.relevance[0])
            assert (e.target[i], e.weights_sha256[i : i + 1]) == (one.target[0], one.weights_sha256[:1])


def test_a_list_of_targets_as_long_as_a_piece_is_refused() -> None:
    """Four images in pieces of two, two targets: each piece would fit them."""
    model = tiny_models.vgg()
    x = tiny_models.pictures(model, 4)
    with pytest.raises(TargetError, match="2 targets for 4 images"):
        Explainer(model, backend="ort", threads=1).explain(x, target=[0, 1], batch_size=2)


def test_labels_of_the_class_axis() -> None:
    """Found by their number, which is the size of the class axis; a label is an entry of a place."""
    model = dense_models.segmenter(nhwc=True, labels='["sky", "road", "car", "tree", "dog"]')
    explainer = Explainer(model, backend="ort", threads=1)
    assert (explainer.num_classes, explainer.labels) == (5, ["sky", "road", "car", "tree", "dog"])
    x = tiny_models.pictures(model, 1)
    assert explainer.explain(x, target=(1, 2, "car")).target == ((1, 2, 2),)
    with pytest.raises(TargetError, match="has the word 'car' on the axis y"):
        explainer.explain(x, target=("car", 1, 2))


def test_an_output_whose_first_axis_is_no_batch() -> None:
    """Rows of all images in one list: several images cannot be told apart, a single one can."""
    net = Net()
    cells = net.node("Transpose", "last", net.conv("classes", dense_models.backbone(net), 8, 5, 1), perm=[0, 2, 3, 1])
    model = net.model(net.node("Reshape", "rows", cells, np.array([-1, 5])))
    explainer = Explainer(model, backend="ort", threads=1)
    x = tiny_models.pictures(model, 2)
    with pytest.raises(ModelError) as caught:
        explainer.explain(x, target=(1, 2))
    assert str(caught.value) == (
        "the first axis of the output is not the batch: its shape is [96, 5] for 2 images\n"
        "  at      tensor 'rows.y'\n"
        "  next    explain one image at a time: batch_size=1"
    )
    e = explainer.explain(x, target=(7, 3), batch_size=1)
    assert e.logits.shape == (2, 48, 5)
    expected = Explainer(model, output="classes.y", backend="ort", threads=1).explain(x, target=(3, 1, 1))
    close(e.relevance, expected.relevance)
