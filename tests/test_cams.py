"""Base CAMs on small networks: components at L against numpy and torch replicas, and what FG-CAM makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tiny_models
from onnx import numpy_helper

from fgcam_onnx import Explainer
from fgcam_onnx.backends.numpy import NumpyVerbs
from fgcam_onnx.cams import score_cam
from fgcam_onnx.cams.base import Context
from fgcam_onnx.methods import METHODS
from fgcam_onnx.methods import method as find_method

torch = pytest.importorskip("torch")
F = torch.nn.functional

TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


class Replica:
    """``tiny_models.free_size`` or ``vgg`` written again in torch, float64: activations at L, gradient, logits."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.w = {t.name: torch.tensor(numpy_helper.to_array(t).astype(np.float64)) for t in model.graph.initializer}
        self.is_vgg = any(node.name == "pool2" for node in model.graph.node)

    def trunk(self, x: Any) -> Any:
        w = self.w
        for i in (1, 2):
            stride = 2 if i == 2 and not self.is_vgg else 1
            x = F.conv2d(x, w[f"conv{i}.1"], w.get(f"conv{i}.2"), padding=1, stride=stride)
            if self.is_vgg:
                gamma, beta, mean, var = (w[f"bn{i}.{k}"] for k in (1, 2, 3, 4))
                x = F.batch_norm(x, mean, var, gamma, beta, eps=1e-5)
            x = F.relu(x)
            if self.is_vgg:
                x = F.max_pool2d(x, 2)
        return x

    def head(self, a: Any) -> Any:
        if self.is_vgg:
            h = F.relu(F.linear(a.flatten(1), self.w["fc1.1"], self.w["fc1.2"]))
            return F.linear(h, self.w["fc2.1"], self.w["fc2.2"])
        return F.linear(a.mean((2, 3)), self.w["fc.1"], self.w["fc.2"])

    def at_l(self, x: npt.NDArray[Any], target: list[int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """A and dy_c/dA."""
        a = self.trunk(torch.tensor(x, dtype=torch.float64)).detach().requires_grad_()
        self.head(a)[range(len(x)), target].sum().backward()
        return a.detach().numpy(), a.grad.numpy()

    def probability(self, x: npt.NDArray[Any], target: int) -> npt.NDArray[Any]:
        with torch.no_grad():
            y = self.head(self.trunk(torch.tensor(x, dtype=torch.float64)))
        p: npt.NDArray[Any] = y.softmax(1)[:, target].numpy()
        return p


MODELS = {"gap head": tiny_models.free_size, "fully connected head": tiny_models.vgg}
TARGETS = [3, 0]


@pytest.fixture(params=sorted(MODELS))
def net(request: pytest.FixtureRequest) -> SimpleNamespace:
    model = MODELS[request.param](seed=4)
    x = tiny_models.pictures(model, 2, seed=2)
    replica = Replica(model)
    a, g = replica.at_l(x, TARGETS)
    return SimpleNamespace(explainer=Explainer(model), x=x, replica=replica, a=a, g=g)


def test_the_replica_is_the_network(net: SimpleNamespace) -> None:
    """A check of the check: the torch replica gives the network's own logits and activations."""
    e = net.explainer.explain(net.x, method="grad-cam", target=TARGETS)
    logits = net.replica.head(net.replica.trunk(torch.tensor(net.x, dtype=torch.float64))).numpy()
    np.testing.assert_allclose(e.logits, logits, **TIGHT)
    found = net.explainer.activations(net.x, [net.explainer.default_layer])
    np.testing.assert_allclose(found[net.explainer.default_layer], net.a, **TIGHT)


def test_grad_cam(net: SimpleNamespace) -> None:
    """w_k = mean of dy_c/dA_k; the map is the signed sum of w_k A_k."""
    expected = (net.g.mean((2, 3), keepdims=True) * net.a).sum(1)
    found = net.explainer.explain(net.x, method="grad-cam", target=TARGETS)
    np.testing.assert_allclose(found.relevance, expected, **TIGHT)
    assert found.layer == found.start == net.explainer.default_layer


def test_layer_cam(net: SimpleNamespace) -> None:
    """Each cell weighted by its own positive gradient."""
    expected = (np.maximum(net.g, 0) * net.a).sum(1)
    np.testing.assert_allclose(
        net.explainer.explain(net.x, method="layer-cam", target=TARGETS).relevance, expected, **TIGHT
    )


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_score_cam(net: SimpleNamespace, batch_size: int) -> None:
    """w_k = p_c(x * mm(Up(A_k))), written with torch's bilinear resize, whatever the number of masks at a time."""
    maps = []
    for i, target in enumerate(TARGETS):
        masks = F.interpolate(torch.tensor(net.a[i])[:, None], net.x.shape[2:], mode="bilinear").numpy()
        low, high = masks.min((1, 2, 3), keepdims=True), masks.max((1, 2, 3), keepdims=True)
        live = (high > low).ravel()
        m = np.where(high > low, (masks - low) / np.where(high > low, high - low, 1), 0)
        w = np.where(live, net.replica.probability(net.x[i] * m, target), 0)
        maps.append((w[:, None, None] * net.a[i]).sum(0))
    found = net.explainer.explain(net.x, method="score-cam", target=TARGETS, batch_size=batch_size)
    np.testing.assert_allclose(found.relevance, np.stack(maps), rtol=1e-4, atol=1e-5)


# --- Score-CAM and constant channels ------------------------------------------------------------------------


def context(a: npt.NDArray[Any], **fields: Any) -> Context:
    def score(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        seen.append(len(x))
        return np.stack([x.sum((1, 2, 3)), np.zeros(len(x))], 1)

    seen: list[int] = []
    values: dict[str, Any] = {
        "xp": NumpyVerbs(),
        "activations": a.astype(np.float32),
        "target": np.zeros(len(a), np.int64),
        "x": np.ones((len(a), 3, 8, 6), np.float32),
        "channel_axis": 1,
        "differentiate": lambda: pytest.fail("Score-CAM needs no gradient"),
        "score": score,
        "progress": lambda done, total: None,
        "batch_size": 2,
    }
    made = Context(**{**values, **fields})
    object.__setattr__(made, "seen", seen)
    return made


@pytest.mark.parametrize("constant", [0.0, 3.5, -2.0])
def test_score_cam_of_a_constant_channel(constant: float) -> None:
    """methods 9.2: weight 0 and no NaN, also where the constant is not 0; the channel costs no forward pass."""
    a = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    a[:, 1] = a[:, 4] = constant
    c = context(a)
    components = score_cam.components(c)
    assert np.isfinite(components).all()
    assert not components[:, [1, 4]].any()
    assert components[:, [0, 2, 3]].any(axis=(2, 3)).all()
    assert sum(c.seen) == 2 * 3  # type: ignore[attr-defined]


def test_score_cam_of_nothing_but_constants() -> None:
    """No channel says anything: no forward pass, a zero map."""
    c = context(np.full((1, 4, 3, 3), 7.0))
    assert not score_cam.components(c).any()
    assert c.seen == []  # type: ignore[attr-defined]


def test_score_cam_reports_progress() -> None:
    steps: list[tuple[int, int]] = []
    a = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    score_cam.components(context(a, progress=lambda done, total: steps.append((done, total))))
    assert steps == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]


def test_score_cam_channels_last() -> None:
    """The masks multiply every colour of a [n, h, w, c] input."""
    a = np.random.default_rng(0).normal(size=(1, 2, 4, 3))
    x = np.random.default_rng(1).normal(size=(1, 8, 6, 3)).astype(np.float32)
    plain = score_cam.components(context(a, x=x.transpose(0, 3, 1, 2)))
    turned = score_cam.components(context(a, x=x, channel_axis=3))
    np.testing.assert_allclose(plain, turned, rtol=1e-5)


# --- relations between maps ---------------------------------------------------------------------------------


def test_gap_and_linear_head_account_for_the_logit() -> None:
    """methods 5: with a GAP and linear head, Grad-CAM's components sum to y - b, the logit without bias."""
    model = tiny_models.free_size(seed=4)
    x = tiny_models.pictures(model, 2)
    e = Explainer(model).explain(x, method="grad-cam", target=TARGETS)
    bias = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "fc.2")
    expected = e.logits[range(2), TARGETS] - bias[TARGETS]
    np.testing.assert_allclose(e.relevance.sum((1, 2)), expected, rtol=1e-4)


@pytest.mark.parametrize("base", ["grad-cam", "score-cam", "layer-cam"])
def test_the_fine_map_sums_to_the_coarse_one(base: str) -> None:
    """methods 9.1: sum over FG map = sum of the components - what the ledger says leaked."""
    model = tiny_models.residual(seed=2)
    x = tiny_models.pictures(model, 2)
    explainer = Explainer(model)
    coarse = explainer.explain(x, method=base, target=TARGETS)
    fine = explainer.explain(x, method=f"fg-{base}", target=TARGETS)
    leaked = np.sum([row.leaked for row in fine.ledger.rows], axis=0)
    scale = fine.ledger.start_absolute
    np.testing.assert_allclose(fine.ledger.start, coarse.relevance.sum((1, 2)), atol=1e-5 * scale.max())
    np.testing.assert_allclose(fine.relevance.sum((1, 2)), fine.ledger.start - leaked, atol=1e-5 * scale.max())


def test_fine_map_at_l_is_the_coarse_map() -> None:
    """A descent of no step at all."""
    model = tiny_models.residual()
    x = tiny_models.pictures(model)
    explainer = Explainer(model)
    for base in ("grad-cam", "layer-cam"):
        fine = explainer.explain(x, method=f"fg-{base}", layer=explainer.default_layer)
        np.testing.assert_array_equal(fine.relevance, explainer.explain(x, method=base).relevance)
        assert fine.ledger.rows == ()


def test_fg_score_cam_has_no_negative_evidence() -> None:
    """methods 9.1.3: weights are probabilities and A >= 0, so every pixel's relevance is >= 0."""
    model = tiny_models.vgg()
    e = Explainer(model).explain(tiny_models.pictures(model), method="fg-score-cam")
    assert e.relevance.min() >= 0


def test_every_method_says_who_wrote_it() -> None:
    for name, method in METHODS.items():
        assert name == method.name
        assert method.summary
        assert "20" in method.paper
        assert METHODS[name] is find_method(name)


def test_scores_are_paid_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walked down to another layer, or denoised, Score-CAM's components are those of the first call; of no other."""
    proto = tiny_models.vgg(seed=3)
    e, fresh = Explainer(proto, threads=1), lambda: Explainer(proto, threads=1)
    x = tiny_models.pictures(proto, 2, seed=7)
    calls = []
    logits = e._engine.logits
    monkeypatch.setattr(e._engine, "logits", lambda *args: calls.append(1) or logits(*args))

    def cost(**asked: Any) -> int:
        before = len(calls)
        found = e.explain(**{"x": x, "method": "fg-score-cam", "target": [1, 2], **asked})
        expected = fresh().explain(**{"x": x, "method": "fg-score-cam", "target": [1, 2], **asked})
        np.testing.assert_array_equal(found.relevance, expected.relevance)
        return len(calls) - before

    assert cost() > 0
    layer = e.layers()[1].name
    assert cost(layer=layer) == cost(denoise=True) == cost(method="score-cam") == cost() == 0
    others: list[dict[str, Any]] = [{"target": [2, 1]}, {"x": x[::-1].copy()}, {"weights": "softmax"}, {"start": layer}]
    for other in (*others, {"batch_size": 3}):
        assert cost(**other) > 0, other
