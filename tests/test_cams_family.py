"""Every base CAM by itself, float64: against pytorch-grad-cam, against plain torch replicas, and in exact relations.

Contexts are made from torch networks here, without an ONNX file and without the Explainer.
"""

from __future__ import annotations

import importlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from torch_reference import import_torchvision

from fgcam_onnx.backends.numpy import NumpyVerbs
from fgcam_onnx.cams import (
    ablation_cam,
    blur,
    cam,
    class_blind,
    eigen_cam,
    fd_cam,
    grad_cam,
    grad_cam_plus_plus,
    group_cam,
    hires_cam,
    layer_cam,
    lift_cam,
    probability,
    relevance_cam,
    score_cam,
    xgrad_cam,
)
from fgcam_onnx.cams.base import Context
from fgcam_onnx.errors import OptionError
from fgcam_onnx.graph.load import load
from fgcam_onnx.graph.view import build_view
from fgcam_onnx.imaging import resize

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

Array = np.ndarray
VERBS = (cam, grad_cam, grad_cam_plus_plus, xgrad_cam, layer_cam, hires_cam, class_blind)
BASES = (*VERBS, score_cam, ablation_cam, lift_cam, relevance_cam, eigen_cam, group_cam, fd_cam)
CLASSES = 5
TIGHT = 1e-10  # relative to the largest magnitude
ROUNDED = 1e-6  # where the other side computes in float32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these only wait for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def base_name(module: Any) -> str:
    return str(module.__name__).rsplit(".", 1)[-1]


bases = pytest.mark.parametrize("base", BASES, ids=base_name)


def agree(found: Any, expected: Any, relative: float = TIGHT) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    error = np.abs(found - expected).max()
    assert error <= relative * np.abs(expected).max(), f"off by {error:.2g}"


def test_a_permille_is_noticed() -> None:
    """A check of the check."""
    expected = np.random.default_rng(0).normal(size=(2, 3, 4))
    agree(expected.copy(), expected)
    for wrong in (1.001 * expected, expected + 1e-3, expected[:1], expected.swapaxes(0, 1)):
        with pytest.raises(AssertionError):
            agree(wrong, expected)


# --- networks and their contexts --------------------------------------------------------------------------------


class Network(nn.Module):  # type: ignore[misc]
    """A trunk that gives A [n, 12, 8, 6] of pictures 15 x 11, and a head of layers in a row."""

    def __init__(self, head: str, activation: Any = None, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.layer = activation or nn.ReLU()
        deep = [nn.Conv2d(12, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 7), nn.ReLU(), nn.Linear(7, CLASSES)]
        gap = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)]
        self.head = nn.Sequential(*({"gap": gap, "deep": deep}[head]))
        self.double().eval()

    def trunk(self, x: Any) -> Any:
        return self.layer(self.conv(x))

    def forward(self, x: Any) -> Any:
        return self.head(self.trunk(x))


def z_plus(head: Any, a: Any, start: Any) -> Any:
    """R of the logits -> R of a by z+, layer by layer; every layer by itself through torch's own backward pass."""
    values = [a]
    for layer in head:
        values.append(layer(values[-1]))
    r = start
    for layer, x in reversed(list(zip(head, values[:-1], strict=True))):
        if isinstance(layer, nn.ReLU):
            continue
        if isinstance(layer, nn.Flatten):
            r = r.reshape(len(r), *x.shape[1:])
            continue
        halves = [x.clamp(min=0).expand(len(r), *x.shape[1:]), x.clamp(max=0).expand(len(r), *x.shape[1:])]
        halves = [half.detach().clone().requires_grad_() for half in halves]
        signed = [(half, sign) for half, sign in zip(halves, (1, -1), strict=True)]
        z = sum(_positive_part(layer, half, sign) for half, sign in signed)
        s = torch.where(z != 0, r / torch.where(z != 0, z, 1.0), 0.0).detach()
        grads = torch.autograd.grad((z * s).sum(), halves, allow_unused=True)
        r = sum(half * g for half, g in zip(halves, grads, strict=True) if g is not None).detach()
    return r


def _positive_part(layer: Any, x: Any, sign: int) -> Any:
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return layer(x) if sign > 0 else 0 * layer(x)
    weight = (sign * layer.weight).clamp(min=0) * sign
    return F.linear(x, weight) if isinstance(layer, nn.Linear) else F.conv2d(x, weight)


def rescale(head: Any, a: Any, target: list[int]) -> Any:
    """a times DeepLIFT's multipliers, reference 0."""
    pairs = [(a, torch.zeros_like(a))]
    for layer in head:
        pairs.append((layer(pairs[-1][0]), layer(pairs[-1][1])))
    m = F.one_hot(torch.tensor(target), CLASSES).double()
    for layer, (x, x0), (y, y0) in reversed(list(zip(head, pairs[:-1], pairs[1:], strict=True))):
        if isinstance(layer, nn.ReLU):
            m = m * torch.where(x != x0, (y - y0) / torch.where(x != x0, x - x0, 1.0), 0.0)
        else:
            x = x.expand(len(m), *x.shape[1:]).detach().clone().requires_grad_()
            (m,) = torch.autograd.grad(layer(x), x, m)
    return m * a


def context(net: Any, x: Array, target: list[int], options: dict[str, Any] | None = None, **fields: Any) -> Context:
    """What the Explainer would hand a base at ``net.layer``. One image and several targets: a row for each."""
    given = torch.tensor(x)
    a = net.trunk(given).detach()
    rows = a.expand(len(target), *a.shape[1:])

    def differentiate() -> Array:
        at = rows.clone().requires_grad_()
        net.head(at)[range(len(target)), target].sum().backward()
        result: Array = at.grad.numpy()
        return result

    values: dict[str, Any] = {
        "xp": NumpyVerbs(np.float64),
        "activations": a.numpy(),
        "target": np.array(target, np.int64),
        "x": x,
        "channel_axis": 1,
        "differentiate": differentiate,
        "score": lambda x: net(torch.tensor(x)).detach().numpy(),
        "progress": lambda done, total: None,
        "batch_size": 5,
        "logits": net(given).detach().numpy(),
        "options": options or {},
        "behind": lambda a, image: net.head(torch.tensor(a)).detach().numpy(),
        "relevance": lambda start: z_plus(net.head, a, torch.tensor(start)).numpy(),
        "contributions": lambda: rescale(net.head, rows, target).detach().numpy(),
    }
    return Context(**{**values, **fields})


X: Array = np.random.default_rng(3).normal(size=(3, 3, 15, 11))  # sampled so that Up has no two equal cells
TARGETS = [3, 0, 1]
HEADS = ("gap", "deep")


@pytest.fixture(params=HEADS)
def net(request: pytest.FixtureRequest) -> Network:
    return Network(request.param)


def at_l(net: Network, target: list[int] = TARGETS) -> tuple[Array, Array]:
    """A and dy_c/dA."""
    made = context(net, X, target)
    return made.activations, made.gradient


# --- against pytorch-grad-cam -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> ModuleType:
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed")


def theirs(library: Any, name: str, net: Network, **settings: Any) -> SimpleNamespace:
    """The map before ReLU, and the weights where the method has some, as the library computes them on the way."""
    seen = SimpleNamespace(weights=None, map=None)
    explainer = getattr(library, name)(net, [net.layer])
    for key, value in settings.items():
        setattr(explainer, key, value)
    if "get_cam_weights" in vars(type(explainer)):
        weigh = explainer.get_cam_weights

        def weights(*args: Any) -> Any:
            seen.weights = weigh(*args)
            return seen.weights

        explainer.get_cam_weights = weights
    draw = explainer.get_cam_image

    def image(*args: Any) -> Any:
        seen.map = draw(*args)
        return seen.map

    explainer.get_cam_image = image
    aims = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    explainer(torch.tensor(X, requires_grad=True), [aims.ClassifierOutputTarget(t) for t in TARGETS])
    return seen


@pytest.mark.parametrize(
    ("name", "base"),
    [("GradCAM", grad_cam), ("GradCAMPlusPlus", grad_cam_plus_plus), ("XGradCAM", xgrad_cam)],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("head", HEADS)
def test_weights_from_gradients(library: Any, head: str, activation: str, name: str, base: Any) -> None:
    net = Network(head, nn.SiLU() if activation == "silu" else None)
    seen = theirs(library, name, net)
    a, _ = at_l(net)
    found = base.components(context(net, X, TARGETS))
    agree(found, seen.weights[:, :, None, None] * a)
    agree(found.sum(1), seen.map)


@pytest.mark.parametrize(("name", "base"), [("LayerCAM", layer_cam), ("HiResCAM", hires_cam)])
def test_pixel_weights(library: Any, net: Network, name: str, base: Any) -> None:
    agree(base.components(context(net, X, TARGETS)).sum(1), theirs(library, name, net).map)


def half_pixel(size: Any) -> Any:
    """In place of torch.nn.UpsamplingBilinear2d, which aligns corners."""
    return nn.Upsample(size=size, mode="bilinear", align_corners=False)


def test_score_cam_at_equal_masks(library: Any, net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", half_pixel)
    seen = theirs(library, "ScoreCAM", net, batch_size=5)
    a, _ = at_l(net)
    found = score_cam.components(context(net, X, TARGETS, {"weights": "softmax"}))
    agree(found, seen.weights[:, :, None, None] * a, ROUNDED)
    agree(found.sum(1), seen.map, ROUNDED)


def test_ablation_cam(library: Any, net: Network) -> None:
    a, _ = at_l(net)
    assert (a == 0).any(axis=(1, 2, 3)).all()  # where nothing is 0 the library ablates to another value
    seen = theirs(library, "AblationCAM", net, batch_size=5)
    found = ablation_cam.components(context(net, X, TARGETS))
    agree(found, seen.weights[:, :, None, None] * a, ROUNDED)
    agree(found.sum(1), seen.map, ROUNDED)


def test_eigen_cam_but_for_the_sign(library: Any, net: Network) -> None:
    seen = theirs(library, "EigenCAM", net)
    found = eigen_cam.components(context(net, X, TARGETS)).sum(1)
    for ours, other in zip(found, seen.map, strict=True):
        agree(ours, other if (ours * other).sum() > 0 else -other, ROUNDED)
        assert ours.max() > -ours.min()


# --- against plain replicas -------------------------------------------------------------------------------------


def test_cam_is_the_weight_of_the_layer() -> None:
    net = Network("gap")
    a, _ = at_l(net)
    weight = net.head[2].weight.detach().numpy()
    agree(cam.components(context(net, X, TARGETS)), weight[TARGETS][:, :, None, None] * a)


def test_score_cam_of_probabilities(net: Network) -> None:
    a, _ = at_l(net)
    expected = np.zeros_like(a)
    for n, k in itertools.product(*map(range, a.shape[:2])):
        mask = F.interpolate(torch.tensor(a[n, k])[None, None], X.shape[2:], mode="bilinear").numpy()
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        p = net(torch.tensor(X[n] * mask[0])[None]).softmax(1)[0, TARGETS[n]].item()
        expected[n, k] = p * a[n, k]
    agree(score_cam.components(context(net, X, TARGETS)), expected)


def test_lift_cam(net: Network) -> None:
    """The weights are sums over space, and account for y_c(A) - y_c(0)."""
    a, _ = at_l(net)
    parts = rescale(net.head, torch.tensor(a), TARGETS).detach().numpy()
    weights = np.array([[parts[n, k].sum() for k in range(a.shape[1])] for n in range(len(a))])
    agree(lift_cam.components(context(net, X, TARGETS)), weights[:, :, None, None] * a)
    y, y0 = (net.head(torch.tensor(b)).detach().numpy()[range(len(a)), TARGETS] for b in (a, 0 * a))
    agree(weights.sum(1), y - y0)


def test_relevance_cam(net: Network) -> None:
    """R_c = 1, R_n = -1/N, walked to L, mean over space."""
    a, _ = at_l(net)
    rows = [[1.0 if n == c else -1 / CLASSES for n in range(CLASSES)] for c in TARGETS]
    start = torch.tensor(rows, dtype=torch.float64)
    r = z_plus(net.head, torch.tensor(a), start)
    assert abs(r.sum() - start.sum()) < 1e-9  # the replica's own books
    agree(relevance_cam.components(context(net, X, TARGETS)), r.mean((2, 3), keepdim=True).numpy() * a)


def test_eigen_cam_is_the_first_component(net: Network) -> None:
    """By the eigenvector of the covariance of channels, not by a decomposition of the cells."""
    a, _ = at_l(net)
    found = eigen_cam.components(context(net, X, TARGETS))
    for n, image in enumerate(a):
        rows = image.reshape(len(image), -1)
        v = np.linalg.eigh(np.cov(rows))[1][:, -1]
        centred = rows - rows.mean(1, keepdims=True)
        expected = (v[:, None] * centred).reshape(image.shape)
        flip = np.sign(expected.sum(0).max() + expected.sum(0).min())
        agree(found[n], flip * expected)


@pytest.mark.parametrize("options", [{}, {"quantile": 0.7}, {"kernel": 5, "sigma": 1.5}], ids=str)
@pytest.mark.parametrize("groups", [1, 4, 5, 12])
def test_group_cam(net: Network, groups: int, options: dict[str, Any]) -> None:
    """One group after the other in torch; five groups of twelve channels are 3, 3, 2, 2, 2."""
    a, g = (torch.tensor(v) for v in at_l(net))
    sizes = {1: [12], 4: [3] * 4, 5: [3, 3, 2, 2, 2], 12: [1] * 12}[groups]
    expected, expected_map = torch.zeros_like(a), torch.zeros(a.shape[0], *a.shape[2:]).double()
    for n, c in enumerate(TARGETS):
        x = torch.tensor(X[n : n + 1])
        b = torch.tensor(blurred(X[n : n + 1], options.get("kernel", 51), options.get("sigma", 50)))
        first = 0
        for size in sizes:
            part = g[n, first : first + size].mean((1, 2), keepdim=True) * a[n, first : first + size]
            m = part.sum(0).relu()
            up = torch.tensor(resize(m.numpy()[None], x.shape[2:]))  # test_resize.py proves it
            if "quantile" in options:
                up = up * (up >= up.quantile(options["quantile"]))
            mask = (up - up.min()) / (up.max() - up.min()) if up.max() > up.min() else 0 * up
            p, p0 = (net(v).softmax(1)[0, c] for v in (x * mask + b * (1 - mask), b))
            s = (p - p0).relu().detach()
            expected[n, first : first + size] = s * part * (m > 0)
            expected_map[n] += s * m
            first += size
    assert (expected_map.flatten(1).max(1).values > 0).any()
    found = group_cam.components(context(net, X, TARGETS, {"groups": groups, **options}))
    agree(found, expected)
    agree(found.sum(1), expected_map)


@pytest.mark.parametrize("options", [{}, {"quantile": 0.5}, {"quantile": 0.0}], ids=str)
def test_fd_cam(net: Network, options: dict[str, Any]) -> None:
    a, g = at_l(net)
    channels = a.shape[1]
    expected = np.zeros_like(a)
    for n, c in enumerate(TARGETS):
        flat = torch.tensor(a[n]).flatten(1)
        cosine = F.cosine_similarity(flat[:, None], flat[None], dim=2)

        def y(keep: Any, n: int = n, c: int = c) -> Any:
            return net.head(torch.tensor(a[n : n + 1]) * keep[:, None, None])[0, c].item()

        s = np.zeros(channels)
        for k in range(channels):
            on = (cosine[k] > torch.quantile(cosine[k], options.get("quantile", 0.95))).double()
            s[k] = y(on) + y(torch.ones(channels)) - y(1 - on)
        m = g[n].mean((1, 2))
        w = np.exp((s - s.min()) / (s.max() - s.min()))
        w = w * ((m - m.min()) / (m.max() - m.min())) - 0.5
        expected[n] = w[:, None, None] * a[n]
    agree(fd_cam.components(context(net, X, TARGETS, options)), expected)


# --- exact relations and worked examples ------------------------------------------------------------------------


def test_relations_behind_global_average_pooling() -> None:
    """methods 5: what the bases are to each other where the head is one pooling and one linear layer, A >= 0."""
    net = Network("gap")
    made = context(net, X, TARGETS)
    a, cells = made.activations, 48
    weight, bias = (net.head[2].weight.detach().numpy()[TARGETS], net.head[2].bias.detach().numpy()[TARGETS])
    y = made.logits[range(3), TARGETS]
    fc, mean = weight[:, :, None, None], a.mean((2, 3), keepdims=True)
    agree(grad_cam.components(made), fc * a / cells)
    agree(xgrad_cam.components(made), fc * a / cells, 1e-6)  # the denominator's 1e-7
    agree(hires_cam.components(made), grad_cam.components(made))
    agree(cam.components(made), cells * grad_cam.components(made))
    agree(grad_cam.components(made).sum((1, 2, 3)), y - bias)
    agree(lift_cam.components(made), fc * mean * a)
    agree(ablation_cam.components(made), fc * mean / y[:, None, None, None] * a)
    agree(layer_cam.components(made), np.maximum(fc, 0) * a / cells)


def alone(a: Any, g: Any, dtype: Any = np.float64, **fields: Any) -> Context:
    """A context of nothing but A and the gradient; the network behind says y = sum of A, p_c = 1/2."""
    a, g = np.asarray(a, dtype), np.asarray(g, dtype)
    values: dict[str, Any] = {
        "xp": NumpyVerbs(dtype),
        "activations": a,
        "target": np.zeros(len(g), np.int64),
        "x": np.random.default_rng(0).normal(size=(len(a), 3, *(2 * d for d in a.shape[2:]))).astype(dtype),
        "channel_axis": 1,
        "differentiate": lambda: g,
        "score": lambda x: np.zeros((len(x), 2), dtype),
        "progress": lambda done, total: None,
        "batch_size": 4,
        "logits": np.ones((len(a), 2), dtype),
        "behind": lambda a, image: np.repeat(a.reshape(len(a), -1).sum(1)[:, None], 2, 1),
        "relevance": lambda start: np.zeros_like(g),
        "contributions": lambda: np.zeros_like(g),
    }
    return Context(**{**values, **fields})


def test_grad_cam_plus_plus_by_hand() -> None:
    """methods 9.4."""
    a, g = np.array([[1.0, 2], [0, 1]]), np.array([[0.5, -0.2], [0, 0.1]])
    found = grad_cam_plus_plus.components(alone(a[None, None], g[None, None]))
    np.testing.assert_allclose(found[0, 0], 0.166665 * a, atol=1e-6)


def test_ablation_cam_by_hand() -> None:
    """y = 2 + 3 + 0: the channels take 2/5, 3/5 and nothing of it; the dead one costs no pass."""
    a = np.array([2.0, 3, 0])[None, :, None, None] * [[0.25, 0.25], [0.5, 0]]
    passes: list[int] = []

    def behind(a: Array, image: int) -> Array:
        passes.append(len(a))
        return a.reshape(len(a), -1).sum(1)[:, None]

    found = ablation_cam.components(alone(a, a, behind=behind, batch_size=16))
    agree(found, np.array([0.4, 0.6, 0])[None, :, None, None] * a)
    assert passes == [1, 2]


def test_eigen_cam_chooses_the_sign() -> None:
    """One channel, extremes -3 and 2 around its mean 0: the map turns over. Of equal extremes the first is positive."""
    for values, sign in (([-3.0, 2, 1], -1), ([3.0, -2, -1], 1), ([-1.0, 1, 0], -1), ([1.0, -1, 0], 1)):
        a = np.array(values)[None, None, None]
        agree(eigen_cam.components(alone(a, a)), sign * a)


def test_layer_cam_of_several_layers() -> None:
    """Shallow maps by tanh, the last one as it is, cell by cell the larger; an image without positive cells gives 0."""
    shallow = np.array([[[0.0, 1, 2, -9]], [[-1, -2, 0, 0]]])
    deep = np.array([[[-5.0, 4]], [[1, 3]]])
    found = layer_cam.fuse([shallow, deep], (1, 4))
    tanh = np.tanh([0.0, 1, 2, 0])
    agree(found[0, 0], np.maximum(tanh, [0, 0.25, 0.75, 1]))
    agree(found[1, 0], [1 / 3, 0.5, 5 / 6, 1])
    assert not layer_cam.fuse([0 * shallow, -deep[1:]][:1], (2, 8)).any()
    agree(layer_cam.fuse([deep], (1, 2)), np.maximum(deep, 0) / [[[4]], [[3]]])


# --- edges ------------------------------------------------------------------------------------------------------


def flat(value: float) -> Array:
    return np.full((2, 8, 4, 3), value)


def live(*, signed: bool) -> Array:
    a = np.random.default_rng(1).normal(size=(2, 8, 4, 3))
    return a if signed else np.maximum(a, 0)


def some_flat(value: float, *, signed: bool) -> Array:
    a = live(signed=signed)
    a[:, [0, 3, 4]] = value
    return a


EDGES: dict[str, tuple[Array, Array]] = {
    "all dead": (flat(0), live(signed=True)),
    "all constant": (flat(2), live(signed=True)),
    "all constant below 0": (flat(-2), live(signed=True)),
    "dead channels": (some_flat(0, signed=False), live(signed=True)),
    "constant channels": (some_flat(3, signed=True), live(signed=True)),
    "no gradient": (live(signed=False), flat(0)),
    "one gradient everywhere": (live(signed=False), flat(0.25)),
    "gradients of 1e-20": (live(signed=False), 1e-20 * live(signed=True)),
    "gradients of 1e10": (live(signed=False), 1e10 * live(signed=True)),
    "nothing at all": (flat(0), flat(0)),
    "sums of 0": (np.tile([1.0, -1, 0], (2, 8, 4, 1)), live(signed=True)),
    "one cell": (live(signed=False)[:, :, :1, :1], live(signed=True)[:, :, :1, :1]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("edge", EDGES)
@bases
def test_edges_are_finite_and_silent(base: Any, edge: str, dtype: Any) -> None:
    """No NaN, no RuntimeWarning (warnings are errors here), the dtype of the activations; dead cells get nothing."""
    a, g = EDGES[edge]
    found = base.components(alone(a, g, dtype, options={"groups": 4}))
    assert found.dtype == dtype
    assert found.shape == a.shape
    assert np.isfinite(found).all()
    if base is not eigen_cam:
        assert not found[a == 0].any()


@pytest.mark.parametrize("constant", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("weights", ["probability", "softmax"])
def test_a_constant_channel_weighs_nothing_in_score_cam(weights: str, constant: float) -> None:
    """And takes no part in the softmax: the weights of the others sum to 1."""
    made = alone(some_flat(constant, signed=False), live(signed=True), options={"weights": weights})
    found = score_cam.components(made)
    alive = [1, 2, 5, 6, 7]
    share = {"probability": 1 / 2, "softmax": 1 / 5}[weights]  # the network behind scores all masks alike
    agree(found[:, alive], share * made.activations[:, alive])
    assert not found[:, [0, 3, 4]].any()


def test_a_score_of_zero_is_no_divisor() -> None:
    """y_c = 0: Ablation-CAM's weights are 0, also where a channel moves the score."""
    a = np.stack([np.ones((3, 3)), -np.ones((3, 3))])[None]
    assert not ablation_cam.components(alone(a, a)).any()
    assert ablation_cam.components(alone(a + 1e-3, a)).any()


def test_denominators_that_vanish() -> None:
    """Signed activations can make them 0 to the last bit: then a share is 0, not infinity, and nothing warns."""
    g = 2.0**-11
    a = np.array([-(2.0**-21 + 1e-6) * 2.0**33, 0])[None, None, None]
    assert 2 * g**2 + a.sum() * g**3 + 1e-6 == 0
    assert not grad_cam_plus_plus.components(alone(a, np.full_like(a, g))).any()
    a = np.array([-1e-7, 0])[None, None, None]
    assert not xgrad_cam.components(alone(a, np.ones_like(a))).any()


def test_the_softmax_of_one_class_does_not_see_the_scores_of_another() -> None:
    """Scores 1e4 apart: each class keeps weights of sum 1."""
    a = live(signed=False)[:1]
    made = alone(a, np.concatenate([a, a]), options={"weights": "softmax"}, target=np.array([0, 1]))
    found = score_cam.components(replace(made, score=lambda x: np.tile([1e4, 0.0], (len(x), 1))))
    agree(found, np.concatenate([a, a]) / 8)


# --- rows -------------------------------------------------------------------------------------------------------

OPTIONS = {"groups": 5}


@bases
def test_a_batch_is_its_images(base: Any, net: Network) -> None:
    whole = base.components(context(net, X, TARGETS, OPTIONS))
    for n, target in enumerate(TARGETS):
        agree(whole[n : n + 1], base.components(context(net, X[n : n + 1], [target], OPTIONS)))


@pytest.mark.parametrize(
    ("base", "more"),
    [*((base, {}) for base in BASES), (score_cam, {"weights": "softmax"})],
    ids=[*map(base_name, BASES), "score_cam-softmax"],
)
def test_several_classes_are_each_by_itself(base: Any, more: dict[str, Any], net: Network) -> None:
    options = {**OPTIONS, **more}
    classes = [4, 1, 2, 0]
    whole = base.components(context(net, X[:1], classes, options))
    assert len(whole) == len(classes)
    for row, target in enumerate(classes):
        agree(whole[row : row + 1], base.components(context(net, X[:1], [target], options)))


@pytest.mark.parametrize("base", [score_cam, ablation_cam, fd_cam], ids=base_name)
def test_several_classes_share_the_passes(base: Any) -> None:
    """As many rows go through the network for four classes as for one."""

    def rows(targets: list[int]) -> int:
        net, count = Network("deep"), [0]

        def counted(module: Any, inputs: Any, output: Any) -> None:
            count[0] += len(output)

        made = context(net, X[:1], targets)
        net.head.register_forward_hook(counted)
        base.components(replace(made, differentiate=lambda: np.ones((len(targets), 12, 8, 6))))
        return count[0]

    assert rows([4, 1, 2, 0]) == rows([4]) > 0


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("base", [score_cam, ablation_cam, group_cam, fd_cam], ids=base_name)
def test_the_number_at_a_time_changes_nothing(base: Any, net: Network, batch_size: int) -> None:
    """And progress runs up to the total, which is the same for every image."""
    steps: list[tuple[int, int]] = []
    made = context(net, X, TARGETS, OPTIONS, batch_size=batch_size, progress=lambda *step: steps.append(step))
    agree(base.components(made), base.components(context(net, X, TARGETS, OPTIONS)))
    done, totals = [d for d, _ in steps], {t for _, t in steps}
    assert done == sorted(done)
    assert {done[-1]} == totals
    assert totals.pop() % len(X) == 0


@pytest.mark.parametrize("base", [score_cam, group_cam], ids=base_name)
def test_channels_last_inputs(base: Any, net: Network) -> None:
    plain = context(net, X, TARGETS, OPTIONS)
    turned = replace(
        plain,
        x=np.ascontiguousarray(X.transpose(0, 2, 3, 1)),
        channel_axis=3,
        score=lambda x: plain.score(np.ascontiguousarray(x.transpose(0, 3, 1, 2))),
    )
    agree(base.components(turned), base.components(plain))


@pytest.mark.parametrize("space", [(7,), (3, 4, 2)], ids=["1-D", "3-D"])
@bases
def test_other_numbers_of_axes(base: Any, space: tuple[int, ...]) -> None:
    """The same figures as the cells laid out in a plane; bases that resize masks are only asked for their shape."""
    rng = np.random.default_rng(2)
    a, g = np.maximum(rng.normal(size=(2, 8, *space)), 0), rng.normal(size=(2, 8, *space))
    options = {"groups": 4}
    found = base.components(alone(a, g, options=options, relevance=lambda start: g, contributions=lambda: g))
    assert found.shape == a.shape
    if base in (score_cam, group_cam):
        return
    line = (2, 8, 1, -1)
    other = alone(a.reshape(line), g.reshape(line), options=options)
    other = replace(other, relevance=lambda start: g.reshape(line), contributions=lambda: g.reshape(line))
    agree(found.reshape(line), base.components(other).reshape(2, 8, 1, -1))


class Sealed:
    """An array that only verbs may open."""

    def __init__(self, value: Any) -> None:
        self._value = value


class SealedVerbs:
    """NumPy's verbs on sealed arrays: a base that computes with anything else fails."""

    def __init__(self) -> None:
        self._verbs = NumpyVerbs(np.float64)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def verb(*args: Any, **keywords: Any) -> Any:
            found = getattr(self._verbs, name)(*(a._value if isinstance(a, Sealed) else a for a in args), **keywords)
            if name == "shape":
                return found
            return (Sealed(found[0]), None) if name == "share" else Sealed(found)

        return verb


@pytest.mark.parametrize("base", VERBS, ids=base_name)
def test_bases_of_the_gradient_are_written_in_verbs(base: Any, net: Network) -> None:
    """So they run inside one program on a GPU, where arrays are values of a trace."""
    plain = context(net, X[:1], [1, 2])
    sealed = replace(
        plain,
        xp=SealedVerbs(),  # type: ignore[arg-type]
        activations=Sealed(plain.activations),
        differentiate=lambda: Sealed(plain.gradient),
    )
    agree(base.components(sealed)._value, base.components(plain))


# --- what a base refuses, and its options -----------------------------------------------------------------------


def head_of(build: Callable[[tiny_models.Net, str], str], size: int = 4) -> tuple[Any, str, tuple[Any, ...]]:
    """The graph of a network whose L is conv1's ReLU [n, 6, size, size + 1], and whose head is built."""
    net = tiny_models.Net(("n", 3, size, size + 1))
    at_l = net.relu("relu1", net.conv("conv1", "image", 3, 6))
    graph = build_view(load(net.model(build(net, at_l))))
    return graph, at_l, graph.tensor(at_l).shape or ()


def axes(*values: int) -> Array:
    return np.array(values, np.int64)


def reduced(net: tiny_models.Net, x: str) -> str:
    mean = net.node("ReduceMean", "mean", x, axes=[-2, -1], keepdims=0)
    return net.node("Add", "bias", net.node("MatMul", "fc", mean, net.random(6, 5)), net.random(5))


def pooled(net: tiny_models.Net, x: str, kernel: tuple[int, ...] = (4, 5), **attributes: Any) -> str:
    pool = net.node("AveragePool", "pool", x, kernel_shape=list(kernel), **attributes)
    return net.node("Gemm", "fc", net.node("Reshape", "flat", pool, axes(0, -1)), net.random(5, 6), transB=1)


def convolved(net: tiny_models.Net, x: str, k: int = 1) -> str:
    y = net.conv("classes", x, 6, 5, k, pads=[0] * 4)
    return net.node("Flatten", "flat", net.node("GlobalAveragePool", "gap", y))


def twice(net: tiny_models.Net, x: str) -> str:
    return net.node("Gemm", "fc2", net.head(x, 6, 8), net.random(8, 5))


def bent(net: tiny_models.Net, x: str) -> str:
    return net.head(net.relu("relu2", net.node("Neg", "neg", x)), 6)


def bypassed(net: tiny_models.Net, x: str) -> str:
    other = net.node("Gemm", "fc2", net.node("Flatten", "flat2", net.node("GlobalAveragePool", "gap2", x)),
                     net.random(6, 5))  # fmt: skip
    return net.node("Add", "both", net.head(x, 6), other)


CAM_SERVES = {
    "GlobalAveragePool and Gemm": lambda net, x: net.head(x, 6),
    "ReduceMean, MatMul and Add": reduced,
    "AveragePool over all": pooled,
    "a convolution of one cell, then pooling": convolved,
}
CAM_REFUSES = {
    "two linear layers": (twice, "1 such poolings and 2 linear layers"),
    "a ReLU": (bent, "(Neg) is neither"),
    "two ways": (bypassed, "node 'both' (Add) is neither"),
    "no pooling": (
        lambda net, x: net.node("Gemm", "fc", net.node("Flatten", "flat", x), net.random(6 * 20, 5)),
        "0 such poolings and 1 linear layers",
    ),
    "pooling over a part": (lambda net, x: pooled(net, x, (4, 4), strides=[1, 9]), "(AveragePool) is neither"),
    "pooling with padding": (
        lambda net, x: pooled(net, x, (4, 5), pads=[0, 0, 1, 1], strides=[9, 9], count_include_pad=1),
        "(AveragePool) is neither",
    ),
    "mean over height": (
        lambda net, x: net.node("Gemm", "fc", net.node("Flatten", "flat", net.node("ReduceMean", "mean", x, axes=[2])),
                                net.random(30, 5)),
        "(ReduceMean) is neither",
    ),
    "a convolution with a kernel": (lambda net, x: convolved(net, x, 3), "(Conv) is neither"),
    "a Softmax between": (
        lambda net, x: net.node("Gemm", "fc2", net.node("Softmax", "soft", net.head(x, 6)), net.random(5, 5)),
        "(Softmax) is neither",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAM_SERVES)
def test_heads_that_cam_serves(name: str) -> None:
    assert cam.refuses(*head_of(CAM_SERVES[name])) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CAM_REFUSES)
def test_heads_that_cam_refuses(name: str) -> None:
    build, reason = CAM_REFUSES[name]
    said = cam.refuses(*head_of(build))  # type: ignore[arg-type]
    assert said is not None
    assert reason in said
    assert said.endswith("; " + cam.INSTEAD)


def test_group_cam_refuses_more_groups_than_channels() -> None:
    graph, at_l, shape = head_of(lambda net, x: net.head(x, 6))
    assert group_cam.refuses(graph, at_l, shape) == (
        "group-cam cuts the channels into 32 groups, and 'relu1.y' has 6: take fewer groups (groups=6), or score-cam, "
        "which takes each channel by itself"
    )
    assert group_cam.refuses(graph, at_l, shape, {"groups": 6}) is None
    assert group_cam.refuses(graph, at_l, (None, "c", 4, 5)) is None


@pytest.mark.parametrize(
    ("base", "options", "text"),
    [
        (group_cam, {"groups": 13}, "option groups cannot be 13\n  known   1 to 12, the channels at L"),
        (group_cam, {"groups": 0}, "option groups cannot be 0"),
        (group_cam, {"groups": 2.0}, "option groups cannot be 2.0"),
        (group_cam, {"groups": 4, "quantile": 1}, "option quantile cannot be 1\n  known   None, or a share between"),
        (group_cam, {"groups": 4, "kernel": 4}, "option kernel cannot be 4\n  known   an odd number of pixels"),
        (group_cam, {"groups": 4, "sigma": 0}, "option sigma cannot be 0\n  known   pixels, above 0"),
        (fd_cam, {"quantile": 95}, "option quantile cannot be 95\n  known   a share, 0 to 1"),
    ],
)
def test_options_out_of_range(base: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(text)):
        base.components(context(Network("gap"), X, TARGETS, options))


@bases
def test_every_base_is_documented_in_the_frame(base: Any) -> None:
    """A table is made of these: a name and one sentence, a formula, and three paragraphs."""
    first, *others = (base.__doc__ or "").strip().split("\n\n")
    assert re.fullmatch(r"[A-Za-z -]*CAM[+]*: [^.\n]+\.", first)
    assert others[0].startswith("    ")
    assert "[rows, c, ...]" in others[0]
    heads = [text.split(":")[0] for text in others if re.match(r"[A-Z][a-z]+: ", text)]
    assert heads == ["Conserves", "Differs", "Source"]
    assert re.search(r"\b20\d\d\b", others[-1])
    assert base.DESCENDS is (base is not eigen_cam)


# --- probability and blur ---------------------------------------------------------------------------------------


def test_probability() -> None:
    """[m, classes] and r classes -> [r, m]; no logit overflows."""
    logits = np.random.default_rng(0).normal(size=(4, 5)) * 3
    target = np.array([2, 0])
    agree(probability.probability(logits, target, None), torch.tensor(logits).softmax(1)[:, target].T)
    agree(probability.probability(logits, target, "Sigmoid"), torch.tensor(logits).sigmoid()[:, target].T)
    agree(probability.probability(logits[:, :1], target[1:], None), torch.tensor(logits[:, :1]).sigmoid().T)
    huge = np.array([[1e4, -1e4]], np.float32)
    for head in (None, "Sigmoid"):
        agree(probability.probability(huge, np.arange(2), head), [[1], [0]])


def blurred(x: Array, kernel: int, sigma: float) -> Array:
    """Line by line, numpy.pad and numpy.convolve."""
    t = np.arange(kernel) - kernel // 2
    weights = np.exp(-(t**2) / (2 * sigma**2))
    weights /= weights.sum()

    def line(values: Array) -> Array:
        return np.convolve(np.pad(values, kernel // 2, mode="reflect"), weights, mode="valid")

    return np.apply_along_axis(line, 3, np.apply_along_axis(line, 2, x))


@pytest.mark.parametrize(("kernel", "sigma"), [(1, 1.0), (5, 1.5), (51, 50)])
def test_blur(kernel: int, sigma: float) -> None:
    """A kernel of 51 on 15 x 11 pixels is mirrored several times; one of 1 changes nothing; a constant stays."""
    agree(blur.blur(X, (2, 3), kernel=kernel, sigma=sigma), blurred(X, kernel, sigma))
    agree(blur.blur(np.full((1, 3, 9, 1), 4.0), (2, 3), kernel=kernel, sigma=sigma), np.full((1, 3, 9, 1), 4.0))


def test_blur_against_torch() -> None:
    """And the weights of methods 9.3: edge over centre = exp(-0.125)."""
    t = torch.arange(-2.0, 3).double()
    w = (-(t**2) / (2 * 1.5**2)).exp()
    w = w / w.sum()
    padded = F.pad(torch.tensor(X), (2, 2, 2, 2), mode="reflect").reshape(9, 1, 19, 15)
    expected = F.conv2d(F.conv2d(padded, w.reshape(1, 1, 5, 1)), w.reshape(1, 1, 1, 5)).reshape(X.shape)
    agree(blur.blur(X, (2, 3), kernel=5, sigma=1.5), expected)
    impulse = np.zeros((1, 101))
    impulse[0, 50] = 1
    spread = blur.blur(impulse, (1,))[0]
    assert spread[25] / spread[50] == pytest.approx(0.882497, abs=1e-6)
    assert spread[24] == 0


def test_blur_keeps_the_dtype() -> None:
    assert blur.blur(X.astype(np.float32), (2, 3)).dtype == np.float32
    assert blur.blur(np.full((1, 3, 4, 4), 7, np.uint8), (2, 3)).dtype == np.float32
