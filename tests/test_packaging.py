"""What is installed: the package list, the folders behind it, and that all of it can be imported without a framework.

That a built wheel works in an empty folder is checked by ``.ci/check_wheel.py``.
"""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import fgcam_onnx

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
# Folders at the top that are subpackages of fgcam_onnx.
MAPPED = ("rules", "exporters", "models")
# Scripts that ship beside the demo models; they need more than the package does.
SCRIPTS = {"fgcam_onnx.models.train_demo"}
FRAMEWORKS = ("torch", "torchvision", "timm", "onnxscript", "tensorflow", "tf2onnx", "keras", "paddle", "jax", "cupy")


def folders() -> dict[str, Path]:
    """Every package of this repository by import name."""
    homes = {"fgcam_onnx": ROOT / "fgcam_onnx", **{f"fgcam_onnx.{name}": ROOT / name for name in MAPPED}}
    found = {}
    for name, home in homes.items():
        for init in home.rglob("__init__.py"):
            parts = init.parent.relative_to(home).parts
            found[".".join((name, *parts))] = init.parent
    return found


def modules() -> list[str]:
    names = []
    for package, folder in folders().items():
        names += [package, *(f"{package}.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__")]
    return sorted(set(names) - SCRIPTS)


def test_package_list_is_the_folders() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders())
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"]), "keep the list in order: a gap is seen at once"


def test_no_folder_of_code_is_forgotten() -> None:
    """A folder with modules and without __init__.py would be left out of the wheel."""
    for home in (ROOT / "fgcam_onnx", *(ROOT / name for name in MAPPED)):
        for file in home.rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_package_dir_maps_the_top_folders() -> None:
    assert SETUPTOOLS["package-dir"] == {"fgcam_onnx": "fgcam_onnx", **{f"fgcam_onnx.{name}": name for name in MAPPED}}


@pytest.mark.parametrize("name", modules())
def test_every_module_is_importable(name: str) -> None:
    importlib.import_module(name)


def test_nothing_needs_a_framework() -> None:
    """Every module is imported where torch and its like cannot be."""
    code = f"""
import importlib, sys
for name in {FRAMEWORKS!r}:
    sys.modules[name] = None
for name in {modules()!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_no_module_imports_torch() -> None:
    """Not even inside a function: exporters may, when there are some, and the training script does."""
    for package, folder in folders().items():
        if package.startswith("fgcam_onnx.exporters"):
            continue
        for file in folder.glob("*.py"):
            if f"{package}.{file.stem}" not in SCRIPTS:
                assert not imported(file) & {"torch", "torchvision", "onnxscript"}, file
    assert "torch" in imported(ROOT / "models" / "train_demo.py")  # the check sees what it looks for


def test_import_is_light() -> None:
    code = "import fgcam_onnx, sys; print(fgcam_onnx.__version__, *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    version, *loaded = out.split()
    assert version == fgcam_onnx.__version__
    assert not {"numpy", "onnx", "onnxruntime", "PIL", "typer", "rich", *FRAMEWORKS} & set(loaded)


def test_version() -> None:
    assert fgcam_onnx.__version__ == metadata.version("fgcam_onnx") == PROJECT["project"]["version"]
    assert PROJECT["project"]["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_python_versions_agree() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"


def test_extras() -> None:
    """Exactly one extra brings each onnxruntime, the base brings none."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"cpu", "gpu", "gpu-cuda12", "export", "test", "bench"} <= set(extras)
    assert not [d for d in PROJECT["project"]["dependencies"] if d.startswith(("onnxruntime", "torch", "cupy"))]
    for name in ("gpu", "gpu-cuda12"):
        assert [d.split("[")[0] for d in extras[name] if d.startswith("onnxruntime")] == ["onnxruntime-gpu"]
    for name in ("test", "bench"):
        assert "fgcam_onnx[cpu]" in extras[name]
        assert "torch==2.13.0" in extras[name]


def test_data_files_are_declared() -> None:
    """Every file beside the code, demo models and pictures included, matches a pattern of the package data."""
    found = folders()
    for package, folder in found.items():
        declared = {file for pattern in SETUPTOOLS["package-data"].get(package, []) for file in folder.glob(pattern)}
        others = [file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
        own = {file for file in others if not any(f in file.parents for f in found.values() if folder in f.parents)}
        assert own == declared, f"package-data of {package} misses {sorted(map(str, own - declared))}"
    assert (ROOT / "fgcam_onnx" / "py.typed").is_file()


@pytest.mark.parametrize("name", MAPPED)
def test_the_bare_name_is_forbidden(name: str) -> None:
    """One file must not be loaded under two names: ruff says so while you write."""
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ruff is None:
        pytest.skip("ruff is not installed")
    for line in (f"import {name}\n\n{name}.x()\n", f"from {name} import x\n\nx()\n"):
        words = [ruff, "check", "--select", "TID251", "--stdin-filename", "tests/some_file.py", "-"]
        done = subprocess.run(words, input=line, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1, done.stderr
        assert f"fgcam_onnx.{name}" in done.stdout


def test_a_file_loaded_under_two_names_is_refused() -> None:
    """From the checkout's own folder Python would find ``rules``; the registry would not take it."""
    code = "import fgcam_onnx.rules\nimport rules.conv"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "RegistryError: a linear map for Conv is registered already" in done.stderr


def test_license_and_classifiers() -> None:
    project = PROJECT["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert not any(c.startswith("License ::") for c in project["classifiers"])
    assert "Typing :: Typed" in project["classifiers"]
