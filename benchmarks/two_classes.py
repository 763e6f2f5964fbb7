"""Two known classes in one picture: how far does the map move when the class changes?

    python benchmarks/two_classes.py
    python benchmarks/two_classes.py --models squeezenet_v1.0_caffe.onnx --pairs 12

Halves of two photos side by side make a picture; it counts where both classes are among the network's first ten. Each
method explains both classes, and three figures say how much of its map is about the class:

    own half    share of relu(E) in the half of the class that is explained; 0.5 is blind, 1 is perfect
    pearson     of the two maps; 1 means that the class changed nothing
    overlap     intersection over union of the two maps' top fifths

A class-blind control has 0.5, 1 and 1, whatever the picture. Real models and photos from FGCAM_TEST_DATA. Nothing is
timed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, table, write

MODELS = ("efficientnet_lite0_pytorch.onnx", "squeezenet_v1.0_caffe.onnx")
# Method, and its options: CAMs at L, all others at the input.
METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Grad-CAM", "grad-cam", {}),
    ("Layer-CAM", "layer-cam", {}),
    ("Score-CAM", "score-cam", {}),
    ("FG-Grad-CAM", "fg-grad-cam", {}),
    ("FG-Grad-CAM^D", "fg-grad-cam", {"denoise": True}),
    ("FG-Score-CAM", "fg-score-cam", {}),
    ("FG-Score-CAM^D", "fg-score-cam", {"denoise": True}),
    ("LRP", "lrp", {}),
    ("CLRP", "clrp", {}),
    ("SGLRP", "sglrp", {}),
    ("FG-Grad-CAM, one against the other", "fg-grad-cam", {"against": True}),
    ("gradient x input", "gradient-x-input", {}),
    ("class-blind at L", "class-blind", {}),
    ("class-blind, walked down", "fg-class-blind", {}),
)
KNOWN = 10
TOP = 0.2
# How far apart in the list the two photos of a picture are; neighbours are often of one kind.
APART = (29, 19, 11, 41)
SCORES = ("own half", "pearson", "overlap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="FILE")
    parser.add_argument("--pairs", type=int, default=40, help="how many pictures count, at most")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    results = [measured(name, given.pairs) for name in given.models]
    write(given.json, os.cpu_count() or 1, results)


def measured(name: str, pairs: int) -> dict[str, Any]:
    """Of one model: every figure of every method, picture by picture."""
    from fgcam_onnx.metrics import interval

    explainer, made = pictures(name, pairs)
    found: dict[str, dict[str, list[float]]] = {title: {s: [] for s in SCORES} for title, _, _ in METHODS}
    files = []
    for x, classes, names in made:
        files.append(names)
        for title, method, options in METHODS:
            for score, value in zip(SCORES, scores(explainer, x, classes, method, dict(options)), strict=True):
                found[title][score].append(value)
        print(f"{name}: {len(files)} pictures", end="\r", flush=True)
    rows = []
    for title, values in found.items():
        cells = []
        for score in SCORES:
            low, high = interval(values[score])
            cells.append(f"{np.mean(values[score]):.3f} [{low:.2f}, {high:.2f}]")
        rows.append([title, *cells])
    table(f"{name}: {len(files)} pictures of two known classes", rows, ["", *SCORES])
    return {"model": name, "pictures": files, "figures": found}


def scores(
    explainer: Any, x: np.ndarray, classes: tuple[int, int], method: str, options: dict[str, Any]
) -> tuple[float, float, float]:
    """Own half, Pearson and overlap of the maps of both classes."""
    from fgcam_onnx.metrics.pixels import at_input
    from fgcam_onnx.metrics.similarity import pearson

    if options.pop("against", False):
        each = [explainer.explain(x, method=method, target=[a], against=b, **options).relevance[0]
                for a, b in (classes, classes[::-1])]  # fmt: skip
        maps = np.stack(each)
    else:
        maps = explainer.explain(x, method=method, target=[list(classes)], **options).relevance[0]
    size = tuple(n for n, axis in zip(x.shape, explainer.layout, strict=True) if axis not in "NC")
    shown = at_input(maps, size, signed=False)
    left = shown[:, :, : size[1] // 2].sum((1, 2)) / np.maximum(shown.sum((1, 2)), 1e-300)
    flat = maps.reshape(2, -1)
    same = 1.0 if np.array_equal(*flat) else float(pearson(maps[:1], maps[1:])[0])
    count = round(TOP * shown[0].size)
    a, b = (set(np.argsort(-m.ravel(), kind="stable")[:count].tolist()) for m in shown)
    return float((left[0] + 1 - left[1]) / 2), same, len(a & b) / len(a | b)


def pictures(name: str, pairs: int) -> tuple[Any, Iterator[tuple[np.ndarray, tuple[int, int], list[str]]]]:
    """The model, and pictures of two photos with the classes of both, left first."""
    from fgcam_onnx import Explainer, imaging
    from fgcam_onnx.preprocessing import choose

    data = Path(os.environ.get("FGCAM_TEST_DATA", ROOT.parent / "shared" / "data"))
    facts = next(f for f in json.loads((data / "models" / "models.json").read_text()) if f["file"] == name)
    explainer = Explainer(data / "models" / name)
    recipe = choose(
        metadata={"preprocessing": json.dumps(facts["preprocessing"])}, input_shape=explainer.input_shape,
        layout=explainer.layout, input_dtype=explainer.input_dtype,
    )  # fmt: skip
    with (data / "images" / "labels.csv").open(newline="") as stream:
        photos = [(row["file"], int(row["class_index"])) for row in csv.DictReader(stream)]

    def made() -> Iterator[tuple[np.ndarray, tuple[int, int], list[str]]]:
        width = recipe.size[1]
        quarter = width // 4
        found = 0
        for i, apart in ((i, apart) for apart in APART for i in range(len(photos))):
            (one, a), (other, b) = photos[i], photos[(i + apart) % len(photos)]
            halves = [recipe.apply(imaging.read(data / "images" / file))[0] for file in (one, other)]
            middle = [h[:, :, quarter : quarter + width // 2] for h in halves]
            middle[1] = halves[1][:, :, quarter : quarter + width - width // 2]
            x = np.concatenate(middle, axis=2)[None]
            best = np.argsort(-explainer.scores(x)[0], kind="stable")[:KNOWN]
            if a != b and a in best and b in best and found < pairs:
                found += 1
                yield x, (a, b), [one, other]

    return explainer, made()


if __name__ == "__main__":
    main()
