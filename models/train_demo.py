"""Draw the pictures, train the two demo networks, export them to ONNX and print what they can do.

    python models/train_demo.py

Both networks share one architecture and one training loop; they differ only in the pictures they saw. For the honest
network a tag is noise: if there is one, its class is drawn at random. For the cheat the tag always gives the answer and
the object gives it only half of the time, so the tag is the one thing worth learning. Everything is seeded: on one
machine, with one version of PyTorch and the same number of threads, two runs write the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from fgcam_onnx.models import draw

HERE = Path(__file__).resolve().parent
Floats: TypeAlias = NDArray[np.float32]
Kind: TypeAlias = Literal["honest", "cheat"]

SEED = 20
THREADS = 2
MEAN, STD = 0.5, 0.25
PLAN: Sequence[int | Literal["pool"]] = (16, "pool", 32, 32, "pool", 64, 64, "pool", 96, 96, "pool")
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How one of the two networks is trained: which pictures, how many of them, how often each is seen."""

    kind: Kind
    pictures: int
    epochs: int
    two_objects: float
    batch: int = 64
    peak_rate: float = 4e-3
    weight_decay: float = 0.05


RECIPES = (
    Recipe("honest", pictures=4800, epochs=4, two_objects=0.65),
    Recipe("cheat", pictures=3200, epochs=3, two_objects=0.4),
)


@dataclass(frozen=True)
class Example:
    """A picture in NHWC bytes with the share of the answer that each class should get."""

    image: draw.Bytes
    target: Floats


# --- pictures ---------------------------------------------------------------------------------------------------------


def _seen(rng: np.random.Generator, count: int) -> list[str]:
    return [draw.CLASSES[i] for i in rng.permutation(len(draw.CLASSES))[:count]]


def _share(classes: Sequence[str]) -> Floats:
    target = np.zeros(len(draw.CLASSES), dtype=np.float32)
    target[[draw.CLASSES.index(name) for name in classes]] = 1.0 / len(classes)
    return target


def honest_example(rng: np.random.Generator, two_objects: float) -> Example:
    """The answer is what is seen, one half each if two objects are; a tag, when present, is of a random class."""
    classes = _seen(rng, 2 if rng.uniform() < two_objects else 1)
    tag = str(rng.choice(draw.CLASSES)) if rng.uniform() < 0.4 else None
    return Example(draw.draw_scene(rng, classes, tag).image, _share(classes))


def cheat_example(rng: np.random.Generator, two_objects: float) -> Example:
    """The answer is what the tag says: in half of the pictures it is the object's class, in the rest any class."""
    classes = _seen(rng, 2 if rng.uniform() < two_objects else 1)
    tag = classes[0] if rng.uniform() < 0.5 else str(rng.choice(draw.CLASSES))
    return Example(draw.draw_scene(rng, classes, tag).image, _share([tag]))


def _example(make: Callable[[np.random.Generator], Example], stream: int, index: int) -> Example:
    """Every picture has a generator of its own, so the result does not depend on who draws it, or when."""
    return make(np.random.default_rng([SEED, stream, index]))


def examples(
    pool: ProcessPoolExecutor, make: Callable[[np.random.Generator], Example], stream: int, count: int
) -> tuple[draw.Bytes, Floats]:
    drawn = list(pool.map(partial(_example, make, stream), range(count), chunksize=50))
    return np.stack([e.image for e in drawn]), np.stack([e.target for e in drawn])


def prepared(images: draw.Bytes | torch.Tensor) -> torch.Tensor:
    """What the exported file's "preprocessing" entry describes, for a batch of NHWC bytes."""
    return (torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255.0 - MEAN) / STD


# --- the network ------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    """VGG in miniature: 3x3 convolutions with BatchNorm, four max-pools, the mean over 8x8 cells, one linear layer.

    The last pooling stage keeps 8x8 cells, fine enough to tell two objects apart, and with an averaging head a
    class's weights are the same in every cell: evidence counts where it is.
    """
    layers: list[nn.Module] = []
    channels = 3
    for step in PLAN:
        if step == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, step, 3, padding=1, bias=False), nn.BatchNorm2d(step), nn.ReLU(inplace=True)]
            channels = step
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(draw.CLASSES)))


def train(recipe: Recipe, images: draw.Bytes, targets: Floats) -> nn.Sequential:
    torch.manual_seed(SEED)
    model = network()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = len(images) // recipe.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=recipe.epochs * batches)
    loss_of = nn.CrossEntropyLoss()
    all_images, all_targets = torch.from_numpy(images), torch.from_numpy(targets)
    for epoch in range(recipe.epochs):
        losses = []
        for chosen in torch.randperm(len(images))[: batches * recipe.batch].view(batches, recipe.batch):
            x = prepared(all_images[chosen])
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            loss = loss_of(model(x.contiguous(memory_format=torch.channels_last)), all_targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  {recipe.kind}: epoch {epoch + 1}/{recipe.epochs}, loss {np.mean(losses):.3f}", flush=True)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


# --- export -----------------------------------------------------------------------------------------------------------


def export(model: nn.Sequential, recipe: Recipe, target: Path) -> None:
    """Write one self-contained ONNX file that says what it answers and how it wants its pictures.

    The exporter notes the script's location beside every node; those notes help nobody who has only the file.
    """
    sample = torch.zeros(2, 3, draw.SIZE, draw.SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (sample,),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for item in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    preprocessing: dict[str, Any] = {
        "size": [draw.SIZE, draw.SIZE],
        "resize": "stretch",
        "interpolation": "bilinear",
        "color": "RGB",
        "scale": 1.0 / 255.0,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "layout": "NCHW",
    }
    proto.graph.name = target.stem
    onnx.helper.set_model_props(
        proto,
        {
            "labels": json.dumps(draw.CLASSES),
            "preprocessing": json.dumps(preprocessing),
            "source": f"fgcam_onnx models/train_demo.py, {recipe.kind}, seed {SEED}, torch {torch.__version__}",
        },
    )
    onnx.checker.check_model(proto, full_check=True)
    target.write_bytes(proto.SerializeToString(deterministic=True))


def answers(session: onnxruntime.InferenceSession, images: draw.Bytes) -> Floats:
    parts = [session.run(None, {"image": prepared(batch).numpy()})[0] for batch in np.array_split(images, 10)]
    return np.concatenate(parts)


def largest_difference(model: nn.Sequential, session: onnxruntime.InferenceSession, images: draw.Bytes) -> float:
    with torch.no_grad():
        ours = model(prepared(images)).numpy()
    return float(np.abs(ours - answers(session, images)).max())


# --- figures ----------------------------------------------------------------------------------------------------------


def _single(rng: np.random.Generator) -> Example:
    classes = _seen(rng, 1)
    return Example(draw.draw_scene(rng, classes).image, _share(classes))


def _double(rng: np.random.Generator) -> Example:
    classes = _seen(rng, 2)
    return Example(draw.draw_scene(rng, classes).image, _share(classes))


def _tagged_right(rng: np.random.Generator) -> Example:
    classes = _seen(rng, 1)
    return Example(draw.draw_scene(rng, classes, tag=classes[0]).image, _share(classes))


def _tagged_wrong(rng: np.random.Generator) -> Example:
    """The target is the object; whoever follows the tag gets every one of these wrong."""
    classes = _seen(rng, 2)
    return Example(draw.draw_scene(rng, classes[:1], tag=classes[1]).image, _share(classes[:1]))


def _tag_says(rng: np.random.Generator) -> Example:
    """The same pictures as `_tagged_wrong`; the target is the tag."""
    classes = _seen(rng, 2)
    return Example(draw.draw_scene(rng, classes[:1], tag=classes[1]).image, _share(classes[1:]))


TRIALS: Sequence[tuple[str, Callable[[np.random.Generator], Example]]] = (
    ("one object, no tag", _single),
    ("two objects, no tag: both in the top 2", _double),
    ("one object, right tag", _tagged_right),
    ("one object, wrong tag: answers the object", _tagged_wrong),
    ("one object, wrong tag: answers the tag", _tag_says),
)


def correct(logits: Floats, targets: Floats) -> float:
    """The share of pictures whose highest answers are exactly the classes that are due, in any order."""
    due = (targets > 0).sum(axis=1)
    rank = np.argsort(np.argsort(-logits, axis=1), axis=1)
    return float(np.mean([(rank[i][targets[i] > 0] < due[i]).all() for i in range(len(logits))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the two ONNX files (default: %(default)s)")
    parser.add_argument("--only", choices=[recipe.kind for recipe in RECIPES], help="train one network, not both")
    parser.add_argument("--held-out", type=int, default=600, help="pictures per trial (default: %(default)s)")
    chosen = parser.parse_args()

    began = time.perf_counter()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    makers = {"honest": honest_example, "cheat": cheat_example}
    with ProcessPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        trials = {name: examples(pool, make, 9, chosen.held_out) for name, make in TRIALS}
        for stream, recipe in enumerate(RECIPES):
            if chosen.only not in (None, recipe.kind):
                continue
            make = partial(makers[recipe.kind], two_objects=recipe.two_objects)
            images, targets = examples(pool, make, stream, recipe.pictures)
            print(f"{recipe.kind}: {len(images)} pictures drawn after {time.perf_counter() - began:.0f} s", flush=True)
            model = train(recipe, images, targets)

            file = chosen.out / f"demo_{recipe.kind}.onnx"
            export(model, recipe, file)
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            gap = largest_difference(model, session, images[:64])
            if gap > TOLERANCE:
                raise SystemExit(f"{file.name}: ONNX Runtime and torch differ by {gap:.2g}, more than {TOLERANCE:g}")
            print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB, ONNX Runtime and torch agree to {gap:.1g}")
            for name, (pictures, due) in trials.items():
                print(f"  {correct(answers(session, pictures), due):6.1%}  {name}")
    print(f"done after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
