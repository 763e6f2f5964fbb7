"""Build the sdist and the wheel, and use them as a stranger would: in an empty folder, far from the checkout.

1. The sdist holds what a checkout holds, the wheel every file of the packages.
2. The README's demo command, word for word, in the unpacked sdist.
3. The wheel in that environment: every module is imported (there is no torch here), and ``fgcam demo`` runs again.

Run with the Python of an environment; needs nothing installed but pip.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT_OUT = ("__pycache__",)

IMPORT_ALL = """
import importlib, pkgutil, sys
import fgcam_onnx
scripts = {"fgcam_onnx.models.train_demo"}  # needs torch: run by hand, from the [export] extra
names = ["fgcam_onnx", *(m.name for m in pkgutil.walk_packages(fgcam_onnx.__path__, "fgcam_onnx."))]
for name in names:
    if name not in scripts:
        file = importlib.import_module(name).__file__
        assert file and "site-packages" in file, f"{name} comes from {file}"
for package in sys.argv[1:]:
    assert package in names, f"{package} is in pyproject.toml and not in the wheel"
assert "torch" not in sys.modules
print(f"{len(names)} modules, fgcam_onnx {fgcam_onnx.__version__}")
"""


def run(*command: str | Path, cwd: Path, **more: str) -> None:
    """Run it; on failure show all that it said, and end."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout.decode(errors='replace')}")


def packages() -> dict[str, Path]:
    """Package name -> folder, as pyproject.toml has them."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    homes = dict(tool["package-dir"])
    found = {}
    for name in tool["packages"]:
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            if (home := homes.get(".".join(parts[:cut]))) is not None:
                found[name] = ROOT.joinpath(home, *parts[cut:])
                break
    return found


def tracked() -> list[str]:
    """What git knows; all that lies in the package folders where there is no git."""
    try:
        out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        names = [name for name in out.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [str(p.relative_to(ROOT)) for home in packages().values() for p in home.rglob("*") if p.is_file()]
    return [name for name in names if (ROOT / name).is_file()]


def check_contents(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as tar:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    missing = [name for name in tracked() if name not in in_sdist and not name.startswith(".git")]
    for package, home in packages().items():
        for path in home.iterdir():
            if path.is_file():
                name = f"{package.replace('.', '/')}/{path.name}"
                if name not in in_wheel:
                    missing.append(f"{name} (wheel)")
    pictures = {f"fgcam_onnx/models/pictures/{p.name}" for p in (ROOT / "models" / "pictures").iterdir()}
    missing += sorted(pictures - in_wheel)
    if not any(name.endswith("licenses/LICENSE") for name in in_wheel):
        missing.append("LICENSE (wheel)")
    strangers = sorted({n.split("/")[0] for n in in_wheel} - {"fgcam_onnx"})
    if missing or any(not name.endswith(".dist-info") for name in strangers):
        sys.exit(f"missing: {missing}\ntop level of the wheel: fgcam_onnx, {strangers}")
    print(f"sdist {sdist.stat().st_size / 1e6:.1f} MB, wheel {wheel.stat().st_size / 1e6:.1f} MB, complete")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "venv", work / "tools", cwd=work)
        run(work / "tools/bin/pip", "install", "--quiet", "build", cwd=work)
        run(work / "tools/bin/python", "-m", "build", "--outdir", work / "dist", ROOT, cwd=work)
        (sdist,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
        check_contents(sdist, wheel)

        with tarfile.open(sdist) as tar:
            tar.extractall(work / "unpacked", filter="data")
        (home,) = (work / "unpacked").iterdir()
        sys.path.insert(0, str(ROOT / ".ci"))
        import readme

        run("bash", "-c", readme.command("demo").replace("python3", sys.executable, 1), cwd=home)
        print("the README's demo command runs in the unpacked sdist")

        empty, bin = work / "empty", home / ".venv" / "bin"
        empty.mkdir()
        run(bin / "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel, cwd=empty)
        run(bin / "python", "-I", "-W", "error", "-c", IMPORT_ALL, *packages(), cwd=empty)
        run(bin / "fgcam", "demo", "-o", "maps", cwd=empty)
        if not (empty / "maps" / "poster.png").is_file():
            sys.exit("fgcam demo wrote no poster.png")
        print("the wheel works in an empty folder: every module, and fgcam demo")


if __name__ == "__main__":
    main()
