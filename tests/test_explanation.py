"""The result: what it refuses to be, what it shows, and what it leaves on the disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgcam_onnx import imaging
from fgcam_onnx.errors import InputError, OptionError, OutputError
from fgcam_onnx.explanation import Explanation, Folder, plain_json

RNG = np.random.default_rng(11)


def ledger(n: int) -> Any:
    row = {"node": "conv", "op": "Conv", "rule": "z-plus", "relevance_in": np.ones(n), "leaked": np.zeros(n)}
    return SimpleNamespace(
        leaked=0.25,
        residual=1e-9,
        start=np.ones(n),
        start_absolute=np.ones(n),
        arrived=np.ones(n),
        aside={},
        rows=(),
        table=lambda: [row],
    )


def make(n: int = 2, space: tuple[int, ...] = (4, 6), **fields: Any) -> Explanation:
    values: dict[str, Any] = {
        "relevance": RNG.normal(size=(n, *space)).astype(np.float32),
        "logits": RNG.normal(size=(n, 5)).astype(np.float32),
        "target": np.arange(n, dtype=np.int64),
        "method": "fg-grad-cam",
        "layer": "input",
        "start": "pool5",
        "ledger": ledger(n),
        "input_size": tuple(8 * side for side in space),
    }
    return Explanation(**{**values, **fields})


# ---------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relevance": np.zeros((2, 4), np.float32)},
         "relevance has to be float32 [n, h, w], or [n, k, h, w] of k classes\n  known   it is float32 [2, 4]"),
        ({"relevance": np.zeros((2, 4, 6))},
         "relevance has to be float32 [n, h, w], or [n, k, h, w] of k classes\n  known   it is float64 [2, 4, 6]"),
        ({"relevance": np.zeros((0, 4, 6), np.float32)},
         "relevance has to be float32 [n, h, w], or [n, k, h, w] of k classes\n  known   it is float32 [0, 4, 6]"),
        ({"logits": np.zeros((3, 5))}, "logits have to be [n, classes] with n = 2\n  known   it is float64 [3, 5]"),
        ({"target": np.zeros(2, np.int32)}, "target has to be int64 [n] with n = 2\n  known   it is int32 [2]"),
        ({"target": np.array([0, 5])}, "target 5 is not a class\n  known   logits [n, classes] = [2, 5]"),
        ({"target": np.array([-1, 1])}, "target -1 is not a class\n  known   logits [n, classes] = [2, 5]"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)},
         "images have to be [n, H, W, 3] or [n, H, W] with n = 2\n  known   they are uint8 [2, 3, 8, 8]\n"
         "  next    move the channels last: images.transpose(0, 2, 3, 1)"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)  # fmt: skip
def test_shapes_have_to_belong_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make(**fields)
    assert str(error.value) == message


def test_relevance_has_to_be_finite() -> None:
    relevance = np.zeros((2, 4, 6), np.float32)
    relevance[1, 2, 3], relevance[1, 3, 0] = np.nan, np.inf
    with pytest.raises(InputError) as error:
        make(relevance=relevance)
    assert str(error.value) == (
        "the relevance is not finite in 2 of 48 places\n"
        "  at      first at [n, h, w] = [1, 2, 3]\n"
        "  known   fg-grad-cam at layer 'input'"
    )


# ---------------------------------------------------------------------------------------------------- numbers


def test_probabilities() -> None:
    """SGLRP's example of the specification: softmax of (2, 1, 0)."""
    e = make(1, logits=np.array([[2, 1, 0]], np.float32))
    np.testing.assert_allclose(e.probabilities, [[0.66524, 0.24473, 0.09003]], atol=5e-6)
    huge = make(1, logits=np.array([[1e30, -1e30, 0]], np.float32))
    assert huge.probabilities.tolist() == [[1, 0, 0]]
    with np.errstate(over="raise", invalid="raise"):
        two = make(2, logits=np.array([[-800.0], [3.0]]), target=np.zeros(2, np.int64)).probabilities
        np.testing.assert_allclose(two[:, 0], [0, 1 / (1 + np.exp(-3))])
    multi = make(1, logits=np.array([[0.0, 3.0]]), provenance={"head": "Sigmoid"})
    np.testing.assert_allclose(multi.probabilities, [[0.5, 1 / (1 + np.exp(-3))]])


def test_heatmap_has_the_size_of_the_input_or_the_one_asked_for() -> None:
    e = make(2, (4, 6))
    assert e.heatmap().shape == (2, 32, 48)
    assert e.heatmap((10, 20)).shape == (2, 10, 20)
    assert e.heatmap(9).shape == (2, 9, 9)
    assert (str(e.heatmap().dtype), float(e.heatmap().min()), float(e.heatmap().max())) == ("float32", 0, 1)
    assert np.array_equal(e.heatmap((5, 7)), imaging.heat(e.relevance, (5, 7)))
    for size in (0, (3, -1), (3,), (1.5, 2), (1, 2, 3)):
        with pytest.raises(OptionError) as error:
            e.heatmap(size)  # type: ignore[arg-type]
        assert str(error.value) == f"size is {size!r}\n  known   a positive number of pixels for each of (H, W)"


@pytest.mark.parametrize("space", [(6,), (3, 4, 5)])
def test_signals_and_volumes_have_maps_but_no_overlay(space: tuple[int, ...], tmp_path: Path) -> None:
    e = make(2, space)
    assert e.heatmap().shape == (2, *(8 * side for side in space))
    with pytest.raises(InputError, match="only a map over height and width can be laid over images"):
        e.overlay(np.zeros((2, 8, 8, 3), np.uint8))
    assert sorted(p.name for p in e.save(tmp_path).iterdir()) == ["manifest.json", "relevance.npy"]
    with pytest.raises(InputError, match="only a map over height and width can be laid over images"):
        e.save(tmp_path, np.zeros((2, 8, 8, 3), np.uint8))  # pictures that were given are not left out in silence


def test_overlay_by_hand() -> None:
    """Grey picture 100, map from cold (0, 0, 128) to hot (128, 0, 0), half and half."""
    e = make(1, (1, 2), relevance=np.array([[[-1, 3]]], np.float32))
    have = e.overlay(np.full((1, 1, 2), 100, np.uint8))
    assert have.tolist() == [[[[50, 50, 114], [114, 50, 50]]]]
    assert np.array_equal(e.overlay(np.full((1, 2, 3), 100 / 255)), have)
    assert e.overlay(np.full((1, 2, 3), 100, np.uint8), 1.0, "bwr")[0, 0].tolist() == [[170, 170, 255], [255, 0, 0]]


def test_overlay_takes_what_the_model_was_shown() -> None:
    shown = RNG.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    e = make(2, images=shown)
    assert np.array_equal(e.overlay(), e.overlay(shown))
    with pytest.raises(InputError) as error:
        make(2).overlay()
    assert str(error.value) == "there are no images to lay the map over\n  next    give them: overlay(images)"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4, 4, 3), np.uint8),
         "images have to be [n, H, W, 3] or [n, H, W] with n = 2\n  known   they are uint8 [3, 4, 4, 3]"),
        (np.full((2, 4, 4, 3), 200.0),
         "images have to be uint8, or floats from 0 to 1\n  known   they are float64, values 200 to 200"),
        (np.full((2, 4, 4, 3), np.nan),
         "images have to be uint8, or floats from 0 to 1\n  known   they are float64, values nan to nan"),
        (np.zeros((2, 4, 4, 3), np.int64),
         "images have to be uint8, or floats from 0 to 1\n  known   they are int64, values 0 to 0"),
        ([np.zeros((4, 4, 3)), np.zeros((5, 4, 3))],
         "the images differ in size\n  next    lay the maps over them one image at a time"),
    ],
    ids=["count", "range", "nan", "int64", "ragged"],
)  # fmt: skip
def test_images_that_do_not_fit(images: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        make(2).overlay(images)
    assert str(error.value) == message


# ---------------------------------------------------------------------------------------------------- files


def test_save(tmp_path: Path) -> None:
    e = make(2, options={"ratio": np.float32(0.5)}, provenance={"sha256": "ab", "providers": ("CPU",)})
    images = RNG.integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    folder = e.save(tmp_path / "a" / "b", images)
    assert folder == tmp_path / "a" / "b"
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "overlay_0.png",
        "overlay_1.png",
        "relevance.npy",
    ]
    assert np.array_equal(np.load(folder / "relevance.npy"), e.relevance)
    with Image.open(folder / "overlay_1.png") as picture:
        assert np.array_equal(np.asarray(picture), e.overlay(images)[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest) == [
        "schema_version", "method", "layer", "start", "options", "relevance_shape", "input_size", "images", "ledger",
        "provenance", "files",
    ]  # fmt: skip
    assert (manifest["schema_version"], manifest["options"]) == (1, {"ratio": 0.5})
    assert manifest["provenance"] == {"sha256": "ab", "providers": ["CPU"]}
    assert manifest["images"][1]["target"] == 1
    assert manifest["images"][1]["probability"] == e.probabilities[1, 1]
    assert manifest["images"][0]["relevance"]["sum"] == pytest.approx(float(e.relevance[0].sum()), abs=1e-5)
    assert manifest["ledger"]["rows"][0]["leaked"] == [0, 0]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert list(manifest["files"]) == ["relevance.npy", "overlay_0.png", "overlay_1.png"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    e = make(1, images=np.zeros((1, 8, 8, 3), np.uint8))
    first = {p.name: p.read_bytes() for p in e.save(tmp_path / "a").iterdir()}
    assert first == {p.name: p.read_bytes() for p in e.save(tmp_path / "a").iterdir()}
    assert sorted(first) == ["manifest.json", "overlay.png", "relevance.npy"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as error:
        make(1).save(tmp_path / "file")
    assert str(error.value) == (
        f"cannot write to {str(tmp_path / 'file')!r}: File exists\n  next    choose another folder: -o DIR"
    )
    with pytest.raises(OutputError, match="Not a directory"):
        make(1).save(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("fails_at", ["relevance.npy", "overlay.png", "manifest.json"])
@pytest.mark.parametrize("when", ["write", "replace"])
def test_nothing_half_written_remains(
    fails_at: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at each file in turn, while it is written and while it is put in its place."""
    e = make(1, images=np.zeros((1, 8, 8, 3), np.uint8))
    write, replace = Path.write_bytes, os.replace

    def full(path: Path, content: bytes) -> int:
        if fails_at in path.name:
            write(path, content[:7])
            raise OSError(28, "No space left on device")
        return write(path, content)

    def stuck(source: Path, to: Path) -> None:
        if to.name == fails_at:
            raise OSError(28, "No space left on device")
        replace(source, to)

    if when == "write":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(os, "replace", stuck)
    with pytest.raises(OutputError) as error:
        e.save(tmp_path / "new" / "out")
    assert str(error.value) == (
        f"cannot write to {str(tmp_path / 'new' / 'out')!r}: No space left on device\n"
        "  next    choose another folder: -o DIR"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failure_takes_the_old_manifest_and_spares_the_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(1).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")

    def stuck(source: Path, to: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", stuck)
    with pytest.raises(OutputError):
        make(1).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "relevance.npy"]


def _interrupted(folder: Path, keep: bool) -> None:
    with Folder(folder, keep=keep) as out:
        out.write({"a.npy": b"1"})
        raise KeyboardInterrupt


def test_an_interrupted_run_keeps_whole_files_if_it_is_told_to(tmp_path: Path) -> None:
    for keep, left in ((True, ["a.npy"]), (False, [])):
        folder = tmp_path / f"{keep}"
        with pytest.raises(KeyboardInterrupt):
            _interrupted(folder, keep)
        assert (sorted(p.name for p in folder.iterdir()) if folder.exists() else []) == left
        assert folder.exists() == keep


def test_plain_json() -> None:
    value = {
        1: np.float32(0.5),
        "a": (np.int64(2), np.nan, {"b": np.array([[1.0, np.inf]])}),
        "p": Path("x"),
        "n": None,
    }
    assert plain_json(value) == {"1": 0.5, "a": [2, None, {"b": [[1.0, None]]}], "p": "x", "n": None}
