"""CNN families of timm, through torch's default exporter: the file is explained as the model would be.

What is proved of each stands in ``architectures/proof.py``. Every run proves the quick ones. All of them::

    pytest -m "slow or not slow" tests/test_architectures_timm.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch", reason="the networks are written in it")
pytest.importorskip("torch_reference").import_torchvision()  # before timm, which imports it
pytest.importorskip("timm", reason="the networks are timm's")

from architectures.proof import prove, refuse  # noqa: E402
from architectures.timm_models import (  # noqa: E402
    MEMBERS,
    REFUSED,
    UNTRIED,
    Member,
    Refusal,
    build,
    library,
    truth,
)
from torch_reference import export, smooth_images  # noqa: E402

from fgcam_onnx import Explainer  # noqa: E402

CASES = [
    pytest.param(member, id=f"{member.family}-{member.name}", marks=() if member.quick else pytest.mark.slow)
    for member in MEMBERS
]
proved: set[Member] = set()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small inputs gain nothing from threads that wait for each other, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("member", CASES)
def test_network(member: Member) -> None:
    gc.collect()
    model = build(member.name, member.size)
    expected = truth(member, model)
    explainer = Explainer(export(model, torch.from_numpy(expected.x)), backend="ort", threads=1)
    prove(explainer, expected, "timm", member.name, "dynamo").record()
    proved.add(member)


def test_n_of_n(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Every network that this run asked for was proved, and the number is printed."""
    asked = {
        item.callspec.params["member"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_network
    }
    if not asked >= {member for member in MEMBERS if member.quick}:
        pytest.skip("a selection of the matrix was asked for")
    families = {member.family for member in proved}
    record_property(
        "summary", f"timm: {len(proved)} of {len(asked)} models of {len(families)} families proved; all: {len(MEMBERS)}"
    )
    assert proved == asked


def test_forty_families() -> None:
    """More than forty; of ten of them, which bring what torchvision does not have, every run proves a member."""
    assert len({member.family for member in MEMBERS}) >= 40
    assert len({member.family for member in MEMBERS if member.quick}) >= 10
    assert len({member.name for member in MEMBERS}) == len(MEMBERS)
    assert all(member.size[0] != member.size[1] for member in MEMBERS)


def test_the_lists_are_the_library() -> None:
    """Each file of models is in the matrix, is refused, or is said not to have been tried; and members are its own."""
    timm = library()
    tried = {each.family for each in (*MEMBERS, *REFUSED)}
    assert not tried & set(UNTRIED)
    assert sorted({*tried, *UNTRIED}) == sorted(timm.list_modules())
    for each in (*MEMBERS, *REFUSED):
        assert each.name in timm.list_models(module=each.family)


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(each, id=f"{each.family}-{each.name}", marks=() if each.quick else pytest.mark.slow)
        for each in REFUSED
    ],
)
def test_what_cannot_be_explained_is_refused(refusal: Refusal) -> None:
    """By the name of a node, before anything runs."""
    x = smooth_images(2, refusal.size, 0)
    model = library().create_model(refusal.name, pretrained=False, num_classes=10).eval()
    error = refuse(export(model, x), x.numpy())
    assert refusal.reason in error.what
