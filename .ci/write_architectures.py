"""Write docs/architectures.md from the matrix's lists and from what a full run of it recorded:

    FGCAM_ARCHITECTURES=build/architectures python -m pytest -m "slow or not slow" tests/test_architectures_*.py
    python .ci/write_architectures.py build/architectures

A network of the lists without a record is an error: the page says N of N or is not written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
MARK = "<!-- .ci/write_architectures.py -->\n"

sys.path.insert(0, str(ROOT / "tests"))

from architectures import light_models, timm_models, torchvision_models  # noqa: E402


def records(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {(each["library"], each["model"], each["exporter"]): each for each in found}


def size(record: dict[str, Any]) -> str:
    return " x ".join(str(n) for n in record["size"])


def layer(record: dict[str, Any]) -> str:
    return " x ".join(str(n) for n in record["shape"])


def percent(record: dict[str, Any]) -> str:
    return f"{100 * record['leaked']:.1f} %"


def table(head: str, rows: list[list[str]]) -> str:
    columns = head.split(", ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """The generated half of the page."""
    torchvision = []
    for name in torchvision_models.MODELS:
        new, old = (found["torchvision", name, exporter] for exporter in ("dynamo", "legacy"))
        assert (new["size"], new["shape"]) == (old["size"], old["shape"])
        errors = [f"{each['error']:.0e}" for each in (new, old)]
        run = "yes" if name in torchvision_models.QUICK else ""
        torchvision.append([name, size(new), layer(new), *errors, percent(new), run])
    members = []
    for member in timm_models.MEMBERS:
        record = found["timm", member.name, "dynamo"]
        run = "yes" if member.quick else ""
        members.append([member.family, member.name, size(record), layer(record), percent(record), run])
    light = []
    for each in light_models.LIGHT:
        record = found["light", each.name, "caffe2"]
        light.append([each.name, size(record), layer(record), percent(record), "yes" if each.quick else ""])
    refused = [["torchvision", each.name, each.reason] for each in torchvision_models.REFUSED]
    refused += [["timm", each.name, each.reason] for each in timm_models.REFUSED]

    families = len({member.family for member in timm_models.MEMBERS})
    n = 2 * len(torchvision) + len(members) + len(light)
    return "\n".join(
        [
            f"**{n} of {n}** files: {len(torchvision)} models of torchvision from two exporters, {len(members)} models "
            f"of {families} families of timm, {len(light)} graphs of the onnx package. {len(refused)} refusals.\n",
            "## torchvision\n",
            table("model, input, L, torch.export, legacy, leaked, every run", torchvision),
            "## timm\n",
            table("family, model, input, L, leaked, every run", members),
            "## onnx\n",
            table("model, input, L, leaked, every run", light),
            "## Refused\n",
            table("library, model, the message says", refused),
        ]
    )


if __name__ == "__main__":
    text = page(records(Path(sys.argv[1])))
    PAGE.write_text(PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + text, encoding="utf-8")
