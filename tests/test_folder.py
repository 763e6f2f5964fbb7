"""A folder as a model: which file is taken, which files beside it speak, and folders that are traps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models

from fgcam_onnx import Explainer
from fgcam_onnx.errors import ModelError
from fgcam_onnx.folder import beside, model_in, read
from fgcam_onnx.labels import find_labels
from fgcam_onnx.preprocessing import Preprocessing, choose

NAMES = [f"name {i}" for i in range(tiny_models.CLASSES)]
PROCESSOR = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.75}


def saved(folder: Path, *names: str) -> Path:
    """A folder with a model under each of the names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(tiny_models.free_size(), folder / name)
    return folder


def optimum(folder: Path, model: str = "model.onnx") -> Path:
    """As Optimum writes it."""
    saved(folder, model)
    config = {"model_type": "resnet", "id2label": {str(i): name for i, name in enumerate(NAMES)}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def opened(path: str | Path) -> Explainer:
    return Explainer(path, backend="ort")


def recipe(explainer: Explainer) -> Preprocessing:
    return choose(
        metadata=explainer.metadata, path=explainer.path, input_shape=explainer.input_shape, layout=explainer.layout
    )


# ---------------------------------------------------------------------------------------------------- which model


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["model.onnx"], "model.onnx"),
        (["net.onnx"], "net.onnx"),
        (["model.onnx", "model_quantized.onnx", "model_fp16.onnx"], "model.onnx"),
        (["onnx/model.onnx", "onnx/model_quantized.onnx"], "onnx/model.onnx"),
        (["onnx/model_quantized.onnx"], "onnx/model_quantized.onnx"),
        (["net.onnx", "onnx/model.onnx"], "net.onnx"),
        ([".hidden.onnx", "net.onnx"], "net.onnx"),
    ],
    ids=str,
)
def test_the_model_of_a_folder(files: list[str], taken: str, tmp_path: Path) -> None:
    assert model_in(saved(tmp_path, *files)) == tmp_path / taken


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "{folder} is a folder without a model\n  known   it is empty\n"
             "  next    give a folder with a model.onnx, or the path of an .onnx file"),
        (["config.json", "pytorch_model.bin"], "{folder} is a folder without a model\n"
         "  known   it holds config.json, pytorch_model.bin\n"
         "  next    give a folder with a model.onnx, or the path of an .onnx file"),
        (["a.onnx", "b.onnx"], "{folder} holds 2 models, and none is called model.onnx\n  known   a.onnx, b.onnx\n"
                               "  next    give the file: {folder}/a.onnx"),
        (["onnx/model_fp16.onnx", "onnx/model_quantized.onnx"],
         "{folder} holds 2 models, and none is called model.onnx\n"
         "  known   onnx/model_fp16.onnx, onnx/model_quantized.onnx\n"
         "  next    give the file: {folder}/onnx/model_fp16.onnx"),
    ],
    ids=lambda v: str(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_folders_in_which_no_model_is_obvious(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ModelError) as error:
        opened(tmp_path)
    assert str(error.value) == message.replace("{folder}", str(tmp_path))


def test_a_folder_that_is_called_like_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ModelError, match="is a folder without a model"):
        opened(tmp_path)
    saved(tmp_path, "model.onnx/model.onnx")
    assert opened(tmp_path / "model.onnx").path == tmp_path / "model.onnx" / "model.onnx"


def test_the_explainer_says_what_it_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, "model.onnx", "model_fp16.onnx", "model_quantized.onnx")
    explainer = opened(tmp_path)
    note = f"{tmp_path / 'model.onnx'} is taken; beside it lie model_fp16.onnx, model_quantized.onnx"
    assert explainer.notes == [note]
    assert opened(str(tmp_path / "model.onnx")).notes == []
    assert explainer.sha256 == opened(tmp_path / "model.onnx").sha256
    x = tiny_models.pictures(tiny_models.free_size())
    assert np.array_equal(explainer.explain(x).relevance, opened(tmp_path / "model.onnx").explain(x).relevance)


# ---------------------------------------------------------------------------------------------------- sidecars


@pytest.mark.parametrize("model", ["model.onnx", "onnx/model.onnx", "onnx/model_quantized.onnx"])
@pytest.mark.parametrize("given", ["folder", "file", "in place"])
def test_a_folder_of_optimum(model: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and recipe are those of the folder, however the model is named; files of ``onnx/`` lie above it."""
    optimum(tmp_path, model)
    if given == "in place":
        monkeypatch.chdir((tmp_path / model).parent)
    explainer = opened({"folder": tmp_path, "file": tmp_path / model, "in place": Path(model).name}[given])
    assert (explainer.labels, explainer.labels_source, explainer.notes) == (NAMES, "config.json", [])
    found = recipe(explainer)
    assert (found.size, found.short_side, found.mean, found.notes) == ((24, 24), 32, (0.5, 0.5, 0.5), ())
    assert found.source == "preprocessor_config.json (ConvNextImageProcessor)"


def test_only_configuration_is_looked_for_above(tmp_path: Path) -> None:
    """A labels.txt one folder up is somebody else's."""
    saved(tmp_path, "onnx/model.onnx", "other/model.onnx")
    for name in ("labels.txt", "config.json", "preprocessor_config.json"):
        (tmp_path / name).touch()
    names = ("labels.txt", "config.json", "preprocessor_config.json")
    assert [beside(tmp_path / "onnx" / "model.onnx", name) for name in names] == [
        None, tmp_path / "config.json", tmp_path / "preprocessor_config.json",
    ]  # fmt: skip
    assert [beside(tmp_path / "other" / "model.onnx", name) for name in names] == [None] * 3


def test_links_of_a_model_hub(tmp_path: Path) -> None:
    """A hub's cache keeps files under their hashes and links to them: the links' folder is the model's."""
    optimum(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(
            file.rename(tmp_path / "blobs" / f"{len(file.name)}{file.name[0]}")
        )
    explainer = opened(tmp_path / "snapshot")
    assert explainer.labels == NAMES
    assert recipe(explainer).short_side == 32


# ---------------------------------------------------------------------------------------------------- traps


def trap(file: Path, kind: str) -> None:
    if kind == "a loop":
        file.symlink_to(file)
    elif kind == "leads nowhere":
        file.symlink_to(file.parent / "gone")
    elif kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    elif kind == "a folder":
        file.mkdir()
    elif kind == "too big":
        with file.open("wb") as stream:
            stream.truncate(1 << 33)  # a sparse file: nothing of it is read but the limit
    elif kind == "no text":
        file.write_bytes(b"\xff\xfe\x00")


TRAPS = ["a loop", "leads nowhere", "a pipe", "a device", "a folder", "too big", "no text"]


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json"])
def test_a_configuration_that_is_a_trap(name: str, kind: str, tmp_path: Path) -> None:
    """Neither read for ever nor passed over: an error that names it, and the way on."""
    trap(tmp_path / name, kind)
    with pytest.raises(ModelError, match=r"cannot be read|too large") as error:
        choose(path=tmp_path / "model.onnx")
    assert repr(str(tmp_path / name)) in error.value.what
    found = choose(path=tmp_path / "model.onnx", preprocess="unit")
    assert (found.mean, len(found.notes)) == ((0, 0, 0), 1)


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("name", ["config.json", "labels.txt", "classes.json"])
def test_labels_that_are_a_trap(name: str, kind: str, tmp_path: Path) -> None:
    trap(tmp_path / name, kind)
    notes: list[str] = []
    assert find_labels(tmp_path / "model.onnx", {}, 3, notes) is None
    (note,) = notes
    assert note.startswith(f"labels passed over: {str(tmp_path / name)!r} ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_configuration_that_nobody_may_read(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").chmod(0)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        choose(path=tmp_path / "model.onnx")


def test_no_path_in_a_file_is_followed(tmp_path: Path) -> None:
    """A configuration may name files; none of them is opened."""
    (tmp_path / "secret.json").write_text(json.dumps(NAMES))
    saved(tmp_path, "model/model.onnx")
    record: dict[str, Any] = {
        "id2label": "../secret.json", "label_names": "../secret.json", "_name_or_path": "../secret.json",
        "pretrained_cfg": {"file": "../secret.json", "mean": "../secret.json"},
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(record))
    explainer = opened(tmp_path / "model")
    assert explainer.labels is None
    with pytest.raises(ModelError, match="'mean' in"):
        recipe(explainer)


def test_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 10)
    assert read(file, 10, "a word").text == "x" * 10
    with pytest.raises(ModelError, match=r"too large for a word\n  known   more than 9 bytes"):
        read(file, 9, "a word")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"null", b"\x00" * 50, b"{" * 5000, b'{"size": []}', b'{"size": {}}', b'{"size": -3}',
        b'{"size": 1e999}', b'{"size": 12, "do_resize": 0}', b'{"image_mean": {"a": [1]}}', b'{"resample": NaN}',
        b'{"do_normalize": "yes"}', b'{"size": 8, "crop_pct": []}', b'{"pretrained_cfg": {"input_size": [true, 1, 1]}}',
        b'{"pretrained_cfg": {"input_size": [[3], 1, 1]}}', b'{"pretrained_cfg": "resnet18"}',
    ],
)  # fmt: skip
def test_malformed_configurations_name_their_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        choose(path=tmp_path / "model.onnx")
