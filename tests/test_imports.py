"""What is loaded when, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fgcam_onnx

ROOT = Path(fgcam_onnx.__file__).resolve().parents[1]
FRAMEWORKS = ("onnxruntime", "onnx", "cupy", "torch", "timm", "tensorflow", "keras", "paddle", "jax", "PIL", "typer")


def loaded_by(code: str) -> set[str]:
    """The top-level modules in memory after running ``code`` in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('\\n'.join(sorted(m for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    """``import fgcam_onnx`` loads no runtime, no framework, and not even numpy."""
    modules = loaded_by("import fgcam_onnx")
    assert not {m for m in modules if m.split(".")[0] in (*FRAMEWORKS, "numpy")}
    assert {m for m in modules if m.startswith("fgcam_onnx")} == {"fgcam_onnx"}


def test_naming_a_class_loads_no_runtime() -> None:
    """The Explainer's module needs numpy and onnx; onnxruntime comes with the first session, cupy never by itself."""
    modules = loaded_by("from fgcam_onnx import Explainer, Explanation, explain")
    assert not {m for m in modules if m.split(".")[0] in ("onnxruntime", "cupy", "torch", "rich", "typer")}


def test_reading_a_model_loads_no_runtime(tmp_path: Path) -> None:
    import onnx
    import tiny_models

    onnx.save_model(tiny_models.vgg(), tmp_path / "m.onnx")
    code = "from fgcam_onnx.graph.load import load; from fgcam_onnx.graph.view import build_view\n"
    modules = loaded_by(f"{code}build_view(load({str(tmp_path / 'm.onnx')!r}))")
    assert "onnxruntime" not in modules


def test_public_names() -> None:
    """The package has what ``__all__`` says, each name resolves, and another is an AttributeError."""
    assert sorted(fgcam_onnx.__all__) == ["Explainer", "Explanation", "__version__", "explain"]
    assert dir(fgcam_onnx) == sorted(fgcam_onnx.__all__)
    for name in fgcam_onnx.__all__:
        assert getattr(fgcam_onnx, name) is not None
    with pytest.raises(AttributeError, match="module 'fgcam_onnx' has no attribute 'explode'"):
        fgcam_onnx.explode  # noqa: B018


# --- layers of the house ------------------------------------------------------------------------------------


def imports(file: Path, *, types_too: bool = False) -> set[str]:
    """The modules of this package that a file imports, also inside functions; ``if TYPE_CHECKING`` left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING" and not types_too
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide who imports whom"
            module = node.module or ""
            found.update(f"{module}.{a.name}" if _is_package(module) else module for a in node.names)
    return {name for name in found if name.split(".")[0] == "fgcam_onnx"}


def _is_package(module: str) -> bool:
    return (ROOT / Path(*module.split(".")) / "__init__.py").is_file()


def breaches(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports(file))
        if name.startswith(tuple(f"fgcam_onnx.{word}" for word in forbidden))
    ]


def python_files(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    return files


ABOVE = ("explainer", "cli", "descent", "forward", "methods", "metrics", "explanation", "models", "exporters")
CONCRETE = ("backends.numpy", "backends.ort", "backends.cupy", "backends.make", "runtime")
READING = ("graph.load", "graph.view", "graph.passes", "graph.shapes", "graph.stages")


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("rules", (*ABOVE, *CONCRETE, *READING, "composite", "cams", "ledger")),
        ("fgcam_onnx/propagation", (*ABOVE, *CONCRETE, *READING, "composite", "cams", "ledger", "rules")),
        ("fgcam_onnx/graph", (*ABOVE, *CONCRETE, "composite", "cams", "ledger", "rules", "registry", "propagation")),
        ("fgcam_onnx/cams", (*ABOVE, *CONCRETE, *READING, "composite", "ledger", "rules", "registry")),
        ("fgcam_onnx/backends", (*ABOVE, "composite", "cams", "ledger", "rules", "registry", "graph", "propagation")),
    ],
)
def test_imports_go_one_way(folder: str, forbidden: tuple[str, ...]) -> None:
    """design 3: rules see a layer, the registry and the verbs; backends see verbs; nothing looks up."""
    assert breaches(python_files(folder), forbidden) == []


@pytest.mark.parametrize(
    ("file", "forbidden"),
    [
        ("registry.py", (*ABOVE, *CONCRETE, *READING, "composite", "cams", "ledger")),
        ("node.py", (*ABOVE, *CONCRETE, *READING, "composite", "cams", "ledger", "rules", "registry")),
        ("composite.py", (*ABOVE, *CONCRETE, *READING, "cams", "ledger")),
        ("descent.py", ("explainer", "cli", "forward", "methods", "cams", *CONCRETE, *READING)),
        ("forward.py", ("explainer", "cli", "methods", "cams", "descent", "composite", "rules", "registry")),
        ("ledger.py", ("",)),
        ("errors.py", ("",)),
    ],
)
def test_modules_import_downwards(file: str, forbidden: tuple[str, ...]) -> None:
    assert breaches([ROOT / "fgcam_onnx" / file], forbidden) == []


def test_only_the_command_line_imports_the_command_line() -> None:
    files = [f for f in python_files("fgcam_onnx") if "cli" not in f.parts and f.name != "__main__.py"]
    assert breaches([*files, *python_files("rules")], ("cli",)) == []


def test_a_breach_is_noticed(tmp_path: Path) -> None:
    """The check itself: an upward import, also inside a function, is found; one for types only is not."""
    file = tmp_path / "rule.py"
    file.write_text("def f():\n    from fgcam_onnx import descent\n")
    assert imports(file) == {"fgcam_onnx.descent"}
    file.write_text("from fgcam_onnx.backends.numpy import NumpyBackend\n")
    assert imports(file) == {"fgcam_onnx.backends.numpy"}
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fgcam_onnx import descent\n")
    assert imports(file) == set()
