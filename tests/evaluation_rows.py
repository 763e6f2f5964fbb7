"""Rows of an evaluation that never took place: figures near the paper's, with pictures that differ as pictures do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fgcam_onnx.evaluation.names import is_control
from fgcam_onnx.evaluation.published import INPUT_METHODS, LAYERS, METHODS, published

Row = dict[str, Any]
CONTROLS = ("class-blind", "fg-class-blind", "random", "center-gaussian", "edges")
TENSORS = {33: "pool4", 23: "pool3", 13: "pool2", "input": "input"}
# Insertion and deletion of a control, and A.D., A.I. and localisation.
_CONTROL = {
    "class-blind": (0.50, 0.13, 40.0, 18.0, 0.44),
    "fg-class-blind": (0.55, 0.11, 25.0, 26.0, 0.47),
    "random": (0.30, 0.28, 62.0, 6.0, 0.26),
    "center-gaussian": (0.46, 0.20, 35.0, 20.0, 0.41),
    "edges": (0.41, 0.16, 48.0, 14.0, 0.33),
}


def row(image: str, method: str, layer: str, **figures: Any) -> Row:
    return {"image": image, "target": 0, "label": None, "method": method, "layer": layer, "p": 0.8, **figures}


def rows_of(values: dict[tuple[str, str], Sequence[float | None]], figure: str) -> list[Row]:
    """One figure by hand: a list of values, picture by picture, for each cell."""
    return [
        row(f"{i:02}", method, layer, **{figure: value})
        for (method, layer), found in values.items()
        for i, value in enumerate(found)
    ]


def realistic(
    n: int = 58, *, steps: int = 28, layers: Sequence[int | str] = (*LAYERS, "input"), seed: int = 0
) -> list[Row]:
    """The paper's methods and the controls at the paper's layers; boxes on two pictures of three."""
    random = np.random.default_rng(seed)
    hard, p = random.normal(0, 1, n), random.uniform(0.35, 0.99, n)
    t = np.linspace(0, 1, steps + 1)
    rows = []
    for layer in layers:
        for method in (*(INPUT_METHODS if layer == "input" else METHODS), *CONTROLS):
            if layer == "input" and method == "class-blind":
                continue
            if is_control(method):
                means = _CONTROL[method]
            else:
                names = ("insertion", "deletion", "average_drop", "average_increase", "proportion")
                means = tuple(published(method, layer, name) for name in names)
            for i in range(n):
                noise = random.normal(0, 1, 4)
                curves = []
                for area, down in ((means[0], False), (means[1], True)):
                    area = float(np.clip(area + 0.08 * hard[i] + 0.02 * noise[0], 0.03, 0.9)) / (p.mean() / p[i])
                    low = 0.02
                    share = np.clip((area - low) / (p[i] - low), 0.02, 0.95)
                    curve = low + (p[i] - low) * (1 - t) ** (1 / share - 1 + 1e-3)
                    if not down:
                        curve = low + (p[i] - low) * (1 - (1 - t) ** (1 / (1 - share) - 1 + 1e-3))
                    curves.append(np.clip(curve + 0.01 * random.normal(0, 1, steps + 1), 0, 1))
                insertion, deletion = (float((c.sum() - c[0] / 2 - c[-1] / 2) / steps) for c in curves)
                boxed = i % 3 > 0
                rows.append(
                    row(
                        f"n{i:04}.jpg",
                        method,
                        TENSORS[layer],
                        average_drop=float(max(0.0, means[2] + 12 * hard[i] + 4 * noise[1])),
                        average_increase=100.0 * (random.random() < means[3] / 100),
                        insertion=insertion,
                        deletion=deletion,
                        overall=insertion - deletion,
                        proportion=float(np.clip(means[4] + 0.15 * hard[i] + 0.04 * noise[2], 0, 1)) if boxed else None,
                        pointing_game=float(random.random() < means[4] + 0.2) if boxed else None,
                        rank_accuracy=float(np.clip(means[4] - 0.05 + 0.05 * noise[3], 0, 1)) if boxed else None,
                        empty=0.0 if boxed else None,
                        deletion_scores=curves[1].tolist(),
                        insertion_scores=curves[0].tolist(),
                    )
                )
    return rows
