"""Every CNN classifier of torchvision, from both of torch's exporters: the file is explained as the model would be.

What is proved of each stands in ``architectures/proof.py``; among it that the map equals, to 1e-4, the one that an
independent implementation finds in the PyTorch model. Every run proves the quick ones. All of them::

    pytest -m "slow or not slow" tests/test_architectures_torchvision.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks are torchvision's")

from architectures.proof import Truth, check_accounts, prove, refuse  # noqa: E402
from architectures.torchvision_models import (  # noqa: E402
    DECIDED,
    FAMILIES,
    LARGE,
    MODELS,
    QUICK,
    QUICK_FROM_BOTH,
    REFUSED,
    TRANSFORMERS,
    Network,
)
from torch import nn  # noqa: E402
from torch_reference import (  # noqa: E402
    GraphRelevance,
    export,
    export_beside,
    fg_grad_cam_resnet,
    import_torchvision,
    live,
    relative_error,
    smooth_images,
)
from torch_reference.export import Exporter  # noqa: E402

from fgcam_onnx import Explainer, Explanation  # noqa: E402

EXPORTERS: tuple[Exporter, ...] = ("dynamo", "legacy")
QUICK_CASES = {(name, "legacy") for name in QUICK} | {(name, "dynamo") for name in QUICK_FROM_BOTH}
CASES = [
    pytest.param(
        name, exporter, id=f"{name}-{exporter}", marks=() if (name, exporter) in QUICK_CASES else pytest.mark.slow
    )
    for name in MODELS
    for exporter in EXPORTERS
]
proved: set[tuple[str, Exporter]] = set()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small inputs gain nothing from threads that wait for each other, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def network(name: str) -> tuple[Network, Truth]:
    """One at a time: some take gigabytes."""
    gc.collect()
    net = Network(name)
    return net, net.truth()


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_network(name: str, exporter: Exporter, tmp_path: Path) -> None:
    net, truth = network(name)
    x = torch.from_numpy(truth.x)
    file: bytes | Path = (
        export_beside(net.model, x, tmp_path / "model.onnx", exporter)
        if name in LARGE
        else export(net.model, x, exporter=exporter)
    )
    found = prove(Explainer(file, backend="ort", threads=1), truth, "torchvision", name, exporter)
    assert found.error is not None
    found.record()
    proved.add((name, exporter))


def test_n_of_n(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Every network that this run asked for was proved, and the number is printed."""
    asked = {
        (item.callspec.params["name"], item.callspec.params["exporter"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_network
    }
    if not asked >= QUICK_CASES:
        pytest.skip("a selection of the matrix was asked for")
    record_property("summary", f"torchvision: {len(proved)} of {len(asked)} files proved; the matrix has {len(CASES)}")
    assert proved == asked


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for family in FAMILIES for name in family.quick if family.dtype == torch.float64]
)
def test_the_pictures_are_decided(name: str) -> None:
    """No kink and no winner is so near that rounding decides the map; else two correct programs could differ."""
    net, truth = network(name)
    assert net.decided(truth) <= DECIDED


def test_the_lists_are_the_library() -> None:
    """Nothing of torchvision.models is missing: each classifier is in the matrix, or a transformer."""
    models = import_torchvision().models
    listed = [*MODELS, *(name for family in TRANSFORMERS for name in family)]
    assert sorted(listed) == sorted(models.list_models(module=models))
    assert [refusal.name for refusal in REFUSED] == [family[0] for family in TRANSFORMERS]
    for family in FAMILIES:
        assert family.size[0] != family.size[1]
        assert family.quick
        assert set(family.quick) <= set(family.models)


@pytest.mark.parametrize(
    "refusal",
    [pytest.param(each, id=each.name, marks=() if each.name == "vit_b_16" else pytest.mark.slow) for each in REFUSED],
)
def test_a_transformer_is_refused(refusal: Any) -> None:
    """By the name of a node, before anything runs."""
    model = import_torchvision().models.get_model(refusal.name, weights=None, num_classes=10, **refusal.options).eval()
    x = smooth_images(2, refusal.size, 0)
    error = refuse(export(model, x), x.numpy())
    assert refusal.reason in error.what


# ------------------------------------------------------------------------------------- the independent implementation


def test_two_independent_implementations_agree() -> None:
    """The walk over the torch.fx graph, and autograd functions written for ResNets: float64, no rounding to hide in."""
    model = live(import_torchvision().models.resnet18(weights=None, num_classes=20), 0, (64, 96), images=4).double()
    x, target = smooth_images(2, (64, 96), 3).double(), torch.tensor([3, 11])
    expected = fg_grad_cam_resnet(model, x, target)
    assert relative_error(GraphRelevance(model, "layer4").explain(x, target), expected.detach()) <= 1e-12


def test_it_folds_a_batchnorm_of_negative_gamma() -> None:
    """s < 0 swaps what spoke for and against a channel: z+ with w' = s w, by hand (methods 9.1.7)."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 4, 5, bias=False)
    ).eval()  # fmt: skip
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-1.0, 0.5, -0.2, 2.0]))
        model[1].running_var.uniform_(0.5, 2.0, generator=g)
    x, target = torch.randn(1, 3, 8, 6, generator=g).double(), torch.tensor([2])
    found = GraphRelevance(model, "1").explain(x, target)
    w = (
        model[0].weight.double()
        * (model[1].weight / (model[1].running_var + 1e-5).sqrt()).double()[:, None, None, None]
    )
    a = model.double()[:2](x)
    r = model[3].weight[2].reshape(1, 4, 6, 4).mean(dim=(2, 3), keepdim=True) * a
    low, high = x.min(), x.max()
    above, below = torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
    z = above(x - low, w.clamp(min=0)) + above(x - high, w.clamp(max=0))
    expected = (x - low) * below(r / z, w.clamp(min=0)) + (x - high) * below(r / z, w.clamp(max=0))
    assert relative_error(found, expected.sum(dim=1).detach()) <= 1e-6


def test_it_refuses_what_it_has_no_rule_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(dim=1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(NotImplementedError, match="no rule"):
        GraphRelevance(model, "2").explain(torch.randn(1, 3, 6, 6), torch.tensor([2]))


# --------------------------------------------------------------------------------------------- each check can fail


@pytest.fixture(scope="module")
def small() -> tuple[bytes, Truth]:
    net = Network("mobilenet_v3_small")
    truth = net.truth()
    return export(net.model, torch.from_numpy(truth.x), exporter="legacy"), truth


@pytest.fixture(scope="module")
def proven(small: tuple[bytes, Truth]) -> tuple[Explainer, Truth]:
    return Explainer(small[0], backend="ort", threads=1), small[1]


def attempt(explainer: Any, truth: Truth) -> None:
    prove(explainer, truth, "torchvision", "mobilenet_v3_small", "legacy")


WRONG = {
    "the logits are": lambda t: replace(t, logits=t.logits * (1 + 2e-4)),
    "from the tensor of methods 2.2": lambda t: replace(t, at_l=t.at_l * (1 + 2e-4)),
    "methods 2.2 says": lambda t: replace(t, at_l=t.at_l[:, :-1]),
    "from that of the independent implementation": lambda t: replace(t, relevance=t.relevance * (1 + 2e-4)),
}


@pytest.mark.parametrize("message", WRONG)
def test_another_truth_is_noticed(proven: tuple[Explainer, Truth], message: str) -> None:
    explainer, truth = proven
    attempt(explainer, truth)
    with pytest.raises(AssertionError, match=message):
        attempt(explainer, WRONG[message](truth))


@pytest.mark.parametrize("options", [{"first_layer": "z+"}, {"add": "norm"}, {"mul": "uniform"}], ids=str)
def test_another_rule_is_noticed(proven: tuple[Explainer, Truth], options: dict[str, str]) -> None:
    """Were one rule exchanged for its neighbour, the map would be off by a hundred times the bound."""
    explainer, truth = proven
    found = explainer.explain(truth.x, target=truth.target, **options)
    assert relative_error(found.relevance, np.asarray(truth.relevance)) > 1e-2


class Doctored:
    """An Explainer whose answers are changed on the way out."""

    def __init__(self, explainer: Explainer, **answers: Any) -> None:
        self.explainer, self.answers = explainer, answers

    def __getattr__(self, name: str) -> Any:
        return self.answers.get(name, getattr(self.explainer, name))


def test_a_gap_in_the_coverage_is_noticed(proven: tuple[Explainer, Truth]) -> None:
    gap = SimpleNamespace(node="conv", reason="none")
    doctored = Doctored(proven[0], coverage=lambda: SimpleNamespace(complete=False, gaps=(gap,)))
    with pytest.raises(AssertionError, match="no rule for"):
        attempt(doctored, proven[1])


def test_a_batch_that_is_not_its_images_is_noticed(proven: tuple[Explainer, Truth]) -> None:
    def explain(x: np.ndarray, **options: Any) -> Explanation:
        found = proven[0].explain(x, **options)
        return replace(found, relevance=found.relevance * np.float32(1 + 2e-4)) if len(x) == 1 else found

    with pytest.raises(AssertionError, match="picture 0 alone"):
        attempt(Doctored(proven[0], explain=explain), proven[1])


def test_accounts_that_do_not_close_are_noticed(proven: tuple[Explainer, Truth]) -> None:
    explainer, truth = proven
    found = explainer.explain(truth.x, target=truth.target)
    check_accounts(found)
    ledger, scale = found.ledger, found.ledger.start_absolute
    row = ledger.rows[3]
    opened = (*ledger.rows[:3], replace(row, relevance_out=row.relevance_out + 2e-4 * scale), *ledger.rows[4:])
    map_off = found.relevance + np.float32(2e-4) * scale[:, None, None] / found.relevance[0].size
    for message, wrong in (
        ("a map is empty", replace(found, relevance=found.relevance * np.array([[[1]], [[0]]], np.float32))),
        ("a row of the ledger", replace(found, ledger=replace(ledger, rows=opened))),
        ("the ledger's total", replace(found, ledger=replace(ledger, arrived=ledger.arrived + 2e-4 * scale))),
        ("the map's total", replace(found, relevance=map_off.astype(np.float32))),
    ):
        with pytest.raises(AssertionError, match=message):
            check_accounts(wrong)


def test_a_network_that_is_explained_is_no_refusal(small: tuple[bytes, Truth]) -> None:
    with pytest.raises(RuntimeError, match="ran before it was refused"):
        refuse(small[0], small[1].x)
