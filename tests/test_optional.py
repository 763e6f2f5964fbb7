"""Packages that are not always there: the module itself where it is, the pip command where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgcam_onnx.errors import MissingPackageError
from fgcam_onnx.optional import need


def test_what_is_there() -> None:
    assert need("json.decoder", "evaluate", "reading").JSONDecoder is not None


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.inner"])
def test_what_is_not(name: str) -> None:
    with pytest.raises(MissingPackageError) as caught:
        need(name, "evaluate", "ROAD solves a sparse system with it")
    assert str(caught.value) == (
        "no_such_package is not installed: ROAD solves a sparse system with it\n"
        '  next    pip install "fgcam_onnx[evaluate]"'
    )
    assert isinstance(caught.value, ImportError)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise ImportError('lib.so:\\n  no symbol')", "ImportError: lib.so: no symbol"),
    ],
)
def test_what_is_broken(code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError) as caught:
        need("half_a_package", "evaluate", "plots are drawn")
    assert str(caught.value) == (
        "half_a_package is installed and cannot be imported: plots are drawn\n"
        f"  known   {said}\n"
        '  next    pip install "fgcam_onnx[evaluate]", or mend the installation'
    )
