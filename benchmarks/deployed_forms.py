"""The same network in float32, float16 and four kinds of int8: how far do its maps move, and from which layer on?

    python benchmarks/deployed_forms.py
    python benchmarks/deployed_forms.py --models squeezenet_v1.0_caffe.onnx --photos 12

FG-Grad-CAM at the input, of the class that the float32 model gives. Forms by onnxruntime's own converters; the static
ones are calibrated on the photos. Real models and photos from FGCAM_TEST_DATA; torchvision networks with random live
weights on random pictures beside them. Nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import ROOT, write

RANDOM = ("resnet18", "mobilenet_v2")
REAL = ("efficientnet_lite0_pytorch.onnx", "squeezenet_v1.0_caffe.onnx", "dog19_mobilenetv2_keras.onnx")
SIZE = (224, 224)
# Where the error of the activations is as large as they are for the first time, the networks have parted.
PARTED = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*REAL, *RANDOM], metavar="NAME")
    parser.add_argument("--photos", type=int, default=24, help="how many pictures, at most")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    rows = []
    for name in given.models:
        model, x = real(name, given.photos) if name.endswith(".onnx") else random(name, given.photos)
        for row in compared(name, model, x):
            rows.append(row)
            print(line(row), flush=True)
    write(given.json, os.cpu_count() or 1, rows)


def line(row: dict[str, Any]) -> str:
    """A row of a table in markdown."""
    p, s, t = (row[key] for key in ("pearson", "spearman", "top5"))
    parted = f"{row['parted']['tensor']}" if row["parted"] else ""
    return (
        f"| {row['model']} | {row['form']} | {row['same class']:.2f} | {np.median(p):.3f} ({min(p):.3f}) | "
        f"{np.median(s):.3f} ({min(s):.3f}) | {np.median(t):.2f} ({min(t):.2f}) | {row['residual']:.0e} | {parted} |"
    )


def compared(name: str, model: onnx.ModelProto, x: np.ndarray) -> Iterator[dict[str, Any]]:
    from deployed import FORMS, Distance, drift, made

    from fgcam_onnx import Explainer

    plain = Explainer(model)
    expected = plain.explain(x)
    classes = [int(c) for c in expected.target]
    for form in FORMS:
        explainer = Explainer(made(form, model, x))
        found = explainer.explain(x.astype(explainer.input_dtype), target=classes)
        distance = Distance.between(expected.relevance, found.relevance)
        errors = drift(plain, explainer, x[:4])
        parted = next(({"tensor": t, "error": e} for t, e in errors.items() if e > PARTED), None)
        yield {
            "model": name,
            "form": form,
            "precision": explainer.model_precision,
            "complete": explainer.coverage().complete,
            "residual": found.ledger.residual,
            "same class": float((found.logits.argmax(1) == expected.logits.argmax(1)).mean()),
            "pearson": distance.pearson.tolist(),
            "spearman": distance.spearman.tolist(),
            "top5": distance.overlap.tolist(),
            "parted": parted,
            "error of activations": errors,
        }


def real(name: str, most: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """A shared model and the photos of classes that it knows."""
    from fgcam_onnx import Explainer, imaging
    from fgcam_onnx.preprocessing import choose

    data = Path(os.environ.get("FGCAM_TEST_DATA", ROOT.parent / "shared" / "data"))
    facts = next(f for f in json.loads((data / "models" / "models.json").read_text()) if f["file"] == name)
    explainer = Explainer(data / "models" / name)
    recipe = choose(
        metadata={"preprocessing": json.dumps(facts["preprocessing"])}, input_shape=explainer.input_shape,
        layout=explainer.layout, input_dtype=explainer.input_dtype,
    )  # fmt: skip
    known = {row.split()[0] for row in (data / "models" / facts["labels"]).read_text().splitlines()}
    with (data / "images" / "labels.csv").open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream) if row["synset"] in known]
    chosen: Sequence[str] = files[:: max(1, len(files) // most)][:most]
    x = np.stack([recipe.apply(imaging.read(data / "images" / file))[0] for file in chosen])
    return onnx.load(data / "models" / name), x


def random(name: str, most: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """A torchvision network with random live weights and random pictures."""
    from torch_reference.export import export, live, smooth_images
    from torch_reference.torchvision_import import import_torchvision

    network = live(import_torchvision().models.get_model(name, weights=None), seed=1, shift=0.5)
    x = smooth_images(most, SIZE, seed=2)
    return onnx.ModelProto.FromString(export(network, x[:2])), x.numpy()


if __name__ == "__main__":
    main()
