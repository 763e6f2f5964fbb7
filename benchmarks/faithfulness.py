"""Why the figures of an evaluation are what they are: three reasons, each tested on the same pictures.

    fgcam evaluate MODEL PICTURES --methods paper -o results
    python benchmarks/faithfulness.py results --model MODEL --pictures PICTURES

1. **One pattern.** Long chains of z+ forget where they started. Pearson between the map of a class, of the second class
   and of no class (class-blind), at L and at every layer that they are walked down to.
2. **Denoising** raises localisation where there is something to raise: its gain against what the map had.
3. **Saturation.** A picture whose class has p near 1 cannot gain: Average Increase by the picture's own p.

The pictures, their preprocessing and their classes are those of the results. Nothing is timed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import table, write

DENOISED = (("fg-grad-cam", "fg-grad-cam+denoise"), ("fg-score-cam", "fg-score-cam+denoise"))
# Above this probability a picture has nothing to gain.
SURE = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder of fgcam evaluate")
    parser.add_argument("--model", type=Path, required=True, help="the model that was evaluated")
    parser.add_argument("--pictures", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--limit", type=int, help="so many pictures for the first question")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    from fgcam_onnx.evaluation.store import read_rows

    record, rows = read_rows(given.results)
    name = given.model.name
    found = {
        "model": name,
        "pattern": pattern(given.model, given.pictures, record["spec"], rows, given.limit, name),
        "denoising": denoising(rows, name),
        "saturation": saturation(rows, name),
    }
    write(given.json, os.cpu_count() or 1, [found])


def pattern(
    model: Path, pictures: Path, spec: dict[str, Any], rows: Sequence[dict[str, Any]], limit: int | None, name: str
) -> dict[str, Any]:
    """How alike the maps of the class, of the second class and of none are, layer by layer."""
    from fgcam_onnx import Explainer, imaging
    from fgcam_onnx.metrics import interval
    from fgcam_onnx.metrics.similarity import pearson
    from fgcam_onnx.recipe import Preprocessing

    explainer = Explainer(model)
    recipe = Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec["preprocessing"].items()
                              if k not in ("sha256",)})  # fmt: skip
    layers = [explainer.default_layer, *dict.fromkeys(layer for _, layer in spec["cells"])]
    kinds = ("second class", "class-blind")
    found: dict[str, dict[str, list[float]]] = {layer: {kind: [] for kind in kinds} for layer in layers}
    for image in list(dict.fromkeys(row["image"] for row in rows))[:limit]:
        x = recipe.apply(imaging.read(pictures / image))[0][None]
        first, second = np.argsort(-explainer.scores(x)[0], kind="stable")[:2].tolist()
        for layer in layers:
            both = explainer.explain(x, method="fg-grad-cam", layer=layer, target=[[first, second]]).relevance[0]
            blind = explainer.explain(x, method="fg-class-blind", layer=layer, target=[first]).relevance
            for kind, other in zip(kinds, (both[1:], blind), strict=True):
                found[layer][kind].append(float(pearson(both[:1], other)[0]))
    lines = []
    for layer, values in found.items():
        cells = []
        for kind in kinds:
            low, high = interval(values[kind])
            cells.append(f"{np.mean(values[kind]):.3f} [{low:.2f}, {high:.2f}]")
        lines.append([layer, *cells])
    count = len(found[layers[0]][kinds[0]])
    table(f"{name}: Pearson of FG-Grad-CAM's map to that of the ..., {count} pictures", lines, ["", *kinds])
    return found


def denoising(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The gain in localisation, in thirds of the pictures by what the map had without."""
    found, lines = [], []
    for plain, denoised in DENOISED:
        of = {(r["method"], r["layer"], r["image"]): r["proportion"] for r in rows if r["proportion"] is not None}
        pairs = [(v, of[denoised, layer, image] - v) for (m, layer, image), v in of.items()
                 if m == plain and layer == "input" and (denoised, layer, image) in of]  # fmt: skip
        if len(pairs) < 6:
            continue
        had, gain = np.array(sorted(pairs)).T
        thirds = np.array_split(np.arange(len(had)), 3)
        r = float(np.corrcoef(had, gain)[0, 1])
        found.append({"method": plain, "had": had.tolist(), "gain": gain.tolist(), "pearson": r})
        lines.append(
            [plain, *(f"{had[t].mean():.2f}: {gain[t].mean():+.3f}" for t in thirds), f"{r:.2f}", str(len(had))]
        )
    if lines:
        head = ["at the input", "lowest third: gain", "middle", "highest", "Pearson", "n"]
        table(f"{name}: localisation without denoising, and what denoising adds", lines, head)
    return found


def saturation(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Average Drop and Increase of pictures whose class is sure, and of others, at the input."""
    found, lines = [], []
    methods = list(dict.fromkeys(row["method"] for row in rows if row["layer"] == "input"))
    for method in methods:
        mine = [r for r in rows if r["method"] == method and r["layer"] == "input" and r["average_drop"] is not None]
        cells = []
        for sure in (True, False):
            part = [r for r in mine if (r["p"] > SURE) is sure]
            if part:
                drop, rise = (float(np.mean([r[k] for r in part])) for k in ("average_drop", "average_increase"))
                found.append({"method": method, "sure": sure, "n": len(part), "drop": drop, "increase": rise})
                cells += [f"{drop:.1f}", f"{rise:.1f}", str(len(part))]
            else:
                cells += ["", "", "0"]
        lines.append([method, *cells])
    head = ["at the input", f"p > {SURE}: A.D.", "A.I.", "n", "others: A.D.", "A.I.", "n"]
    table(f"{name}: Average Drop and Increase by the picture's own p", lines, head)
    return found


if __name__ == "__main__":
    main()
