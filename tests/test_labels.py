"""Where class names are found, and what a user's word for a class means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgcam_onnx.errors import ModelError, TargetError
from fgcam_onnx.labels import find_labels, read_labels, resolve_target, short

LABELS = [
    "n01440764 tench, Tinca tinca",
    "n02085620 Chihuahua",
    "n02085936 Maltese_dog",
    "n02113624 toy poodle",
    "n02113712 miniature poodle",
    "n02012849 crane",
    "n03126707 crane",
    "7",
    "n03594734 jean, blue jean, denim",
]
LOGITS = np.eye(9, dtype=np.float32)[[3, 8]]


def one(target: Any, labels: list[str] | None = LABELS) -> int:
    (index,) = resolve_target(target, labels, 9, LOGITS[:1])
    return int(index)


# ---------------------------------------------------------------------------------------------------- targets


def test_none_is_the_largest_logit() -> None:
    wanted = resolve_target(None, LABELS, 9, LOGITS)
    assert (str(wanted.dtype), wanted.tolist()) == ("int64", [3, 8])


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (5, 5),
        (np.int64(5), 5),
        (np.array(5), 5),
        ("5", 5),
        ("#7", 7),
        ("tench", 0),
        ("Tinca Tinca", 0),
        ("tench, tinca tinca", 0),
        ("n01440764", 0),
        ("n01440764 TENCH, Tinca tinca", 0),
        (" chihuahua ", 1),
        ("chi", 1),
        ("maltese dog", 2),
        ("Maltese-Dog", 2),
        ("mini", 4),
        ("blue jean", 8),
        ("den", 8),
        (["denim"], 8),
        (("denim",), 8),
        (np.array([2]), 2),
    ],
    ids=repr,
)
def test_what_a_target_may_be(target: Any, index: int) -> None:
    assert one(target) == index


def test_one_for_all_or_one_for_each() -> None:
    assert resolve_target("tench", LABELS, 9, LOGITS).tolist() == [0, 0]
    assert resolve_target([1, "tench"], LABELS, 9, LOGITS).tolist() == [1, 0]
    assert resolve_target(np.array([4, 2]), None, 9, LOGITS).tolist() == [4, 2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (9, "there is no class 9\n  known   the model has 9 classes, 0 to 8"),
        (-1, "there is no class -1\n  known   the model has 9 classes, 0 to 8"),
        ("9999999999999999999999", "there is no class 999999999999999999\n  known   the model has 9 classes, 0 to 8"),
        (True, "target is True, a bool\n  known   an index, a label, or None"),
        (1.0, "target is 1.0, a float\n  known   an index, a label, or None"),
        ("chihuaua", "no class is called 'chihuaua'\n  known   9 classes, 0 to 8\n  next    did you mean 'Chihuahua'?"),
        (
            "poodle",
            "no class is called 'poodle'\n  known   containing it: 3 toy poodle, 4 miniature poodle\n"
            "  next    write the whole name, or the index",
        ),
        ("crane", "'crane' fits 2 classes\n  known   5 crane, 6 crane\n  next    write more of the name, or the index"),
        ("", "no class is called ''\n  known   9 classes, 0 to 8"),
        ([1, 2, 3], "3 targets for 1 image\n  next    give one target for all, or one for each image"),
        ([], "0 targets for 1 image\n  next    give one target for all, or one for each image"),
    ],
    ids=repr,
)
def test_what_it_may_not_be(target: Any, message: str) -> None:
    with pytest.raises(TargetError) as error:
        one(target)
    assert str(error.value) == message
    assert error.value.exit_code == 2


def test_a_digit_that_is_also_a_name() -> None:
    labels = ["zero", "two", "1", "3"]
    assert resolve_target("3", labels, 4, LOGITS).tolist() == [3, 3]
    assert resolve_target("#1", labels, 4, LOGITS).tolist() == [1, 1]
    with pytest.raises(TargetError) as error:
        resolve_target("1", labels, 4, LOGITS)
    assert str(error.value) == (
        "'1' is the index of one class and the name of another\n"
        "  known   class 1 is 'two', class 2 is '1'\n  next    write #1 or #2"
    )


def test_no_labels() -> None:
    assert one("4", None) == 4
    with pytest.raises(TargetError) as error:
        one("cat", None)
    assert str(error.value) == (
        "there are no labels to look 'cat' up in\n"
        "  known   the model has 9 classes, 0 to 8\n  next    give the index, or a file of labels: --labels FILE"
    )


def test_short_names() -> None:
    assert [short(label) for label in LABELS] == [
        "tench", "Chihuahua", "Maltese dog", "toy poodle", "miniature poodle", "crane", "crane", "7", "jean",
    ]  # fmt: skip
    assert [short(label) for label in ("", ",", "n01440764", "N/A")] == ["", ",", "n01440764", "N/A"]


# ---------------------------------------------------------------------------------------------------- finding

THREE = ["cat", "dog", "jack-o'-lantern"]


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"labels": json.dumps(THREE)}, "labels"),
        ({"id2label": json.dumps(dict(enumerate(THREE)))}, "id2label"),
        ({"names": str(dict(enumerate(THREE)))}, "names"),
        ({"names": json.dumps({"2": THREE[2], "0": THREE[0], "1": THREE[1]})}, "names"),
    ],
)
def test_labels_in_the_metadata(metadata: dict[str, str], key: str) -> None:
    assert find_labels(None, metadata, 3) == (THREE, f"the model's metadata key {key!r}")


def test_labels_beside_the_file_in_their_order(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    assert find_labels(model, {}, 3) is None
    for name in ("labels.txt", "net_labels.txt", "net.labels.txt"):
        (tmp_path / name).write_text("\n".join(THREE) + "\n\n", encoding="utf-8-sig")
        assert find_labels(model, {}, 3) == (THREE, name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    notes: list[str] = []
    assert find_labels(model, {}, 3, notes) == (THREE, "net.labels.txt")
    assert notes == []
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert find_labels(model, {}, 3) == (["a", "b", "c"], "config.json")
    assert find_labels(model, {"labels": json.dumps(THREE)}, 3) == (THREE, "the model's metadata key 'labels'")


def test_ten_labels_are_ordered_as_numbers(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(12)]
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(names)}}))
    assert find_labels(tmp_path / "m.onnx", {}, 12) == (names, "config.json")


QUOTED = ["cat", "jack-o'-lantern", 'the "cat\'s" \\']


@pytest.mark.parametrize(
    ("key", "text", "want"),
    [
        ("names", str(dict(enumerate(QUOTED))), QUOTED),
        ("classes", str(QUOTED), QUOTED),
        ("class_names", "cat\ndog\nbird\n", ["cat", "dog", "bird"]),
        ("labels", "0 cat\n1 dog\n2 bird", ["cat", "dog", "bird"]),
        ("labels", json.dumps({"cat": 1, "dog": 0, "bird": 2}), ["dog", "cat", "bird"]),
    ],
)
def test_forms_of_other_exporters(key: str, text: str, want: list[str]) -> None:
    """A dict or list as Python prints it (Ultralytics), lines, names to indices."""
    notes: list[str] = []
    assert find_labels(None, {key: text}, 3, notes) == (want, f"the model's metadata key {key!r}")
    assert notes == []


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("labels.json", json.dumps(THREE), THREE),
        ("labels.json", json.dumps({"labels": 3}), None),
        ("synset.txt", "n01440764 tench, Tinca tinca\nn02085620 Chihuahua\nx y", ["n01440764 tench, Tinca tinca",
                                                                               "n02085620 Chihuahua", "x y"]),
        ("classes.txt", "\ufeffcat\r\ndog\r\nbird\r\n", ["cat", "dog", "bird"]),
        ("class_names.txt", "0: cat\n1: dog\n2: bird", ["cat", "dog", "bird"]),
        ("class_names.txt", "1 cat\n2 dog\n3 bird", ["1 cat", "2 dog", "3 bird"]),
        ("class_names.txt", "0\n1\n2", ["0", "1", "2"]),
        ("class_indices.json", json.dumps({"cat": 2, "dog": 0, "bird": 1}), ["dog", "bird", "cat"]),
        ("classes.json", json.dumps({"0": ["n01440764", "tench"], "1": ["n0", "b"], "2": ["n1", "c"]}),
         ["n01440764 tench", "n0 b", "n1 c"]),
    ],
)  # fmt: skip
def test_names_and_forms_of_files(name: str, text: str, want: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    notes: list[str] = []
    assert find_labels(tmp_path / "m.onnx", {}, 3, notes) == (want and (want, name))
    assert len(notes) == (want is None)
    if want is not None:
        assert read_labels(tmp_path / name, 3) == want


@pytest.mark.parametrize("first", ["background", "Background", "__background__", "/background/", "dummy"])
def test_a_background_before_the_classes_is_left_out_and_told(first: str, tmp_path: Path) -> None:
    """TensorFlow counts 1001 classes of ImageNet: a file with them does not shift a model without the first."""
    file = tmp_path / "labels.txt"
    file.write_text("\n".join([first, *THREE]))
    notes: list[str] = []
    assert find_labels(tmp_path / "m.onnx", {}, 3, notes) == (THREE, "labels.txt")
    assert notes == [
        f"the first of the 4 labels in {str(file)!r} is {first!r}, and the model has 3 classes: it is left out, so "
        "that label 1 is class 0"
    ]
    with pytest.raises(ModelError) as error:
        read_labels(file, 3)
    assert str(error.value) == (
        f"{str(file)!r} has 4 labels, the model has 3 classes\n"
        f"  next    the first is {first!r}: remove it if the model has no such class"
    )
    assert find_labels(tmp_path / "m.onnx", {}, 4) == ([first, *THREE], "labels.txt")


def test_one_label_more_that_is_no_background_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("fore\n" + "\n".join(THREE))
    notes: list[str] = []
    assert find_labels(tmp_path / "m.onnx", {}, 3, notes) is None
    assert notes == [f"labels passed over: {str(tmp_path / 'labels.txt')!r} has 4 labels, the model has 3 classes"]
    (tmp_path / "labels.txt").write_text("\n".join(f"c{i}" for i in range(1000)))
    assert find_labels(tmp_path / "m.onnx", {}, 1001, notes) is None
    assert notes[1].endswith("has 1000 labels, the model has 1001 classes, perhaps a background class before them")


def test_a_source_that_does_not_fit_is_passed_over_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    notes: list[str] = []
    metadata = {"labels": '["a"]', "id2label": '{"1": "a", "2": "b", "3": "c"}', "names": "[0, 1, 2]"}
    assert find_labels(tmp_path / "m.onnx", metadata, 3, notes) is None
    assert notes == [
        "labels passed over: the model's metadata key 'labels' has 1 label, the model has 3 classes",
        "labels passed over: the model's metadata key 'id2label' does not number its labels 0, 1, 2 and on",
        "labels passed over: the model's metadata key 'names' is not a list of labels",
        f"labels passed over: {str(tmp_path / 'config.json')!r} is not JSON",
        f"labels passed over: {str(tmp_path / 'labels.txt')!r} has 2 labels, the model has 3 classes",
    ]


def test_a_file_of_labels_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps(THREE))
    assert read_labels(file) == THREE
    for content, message in (
        (b'{"a": 1}', "{file} has no 'id2label'"),
        (b'{"id2label": 3}', "{file} is not a list of labels"),
        (b"[" * 100_000, "{file} is not JSON"),
        (b"\xff\xfe", "{file} cannot be read: not text in UTF-8\n  next    put a list of labels there"),
        (b'["a", "b"]', "{file} has 2 labels, the model has 3 classes"),
        (b'{"0": "a", "00": "b", "1": "c"}', "{file} does not number its labels 0, 1, 2 and on"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError) as error:
            read_labels(file, 3)
        assert str(error.value) == message.replace("{file}", repr(str(file)))
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_labels(tmp_path / "none.txt")
    with pytest.raises(ModelError, match="cannot be read: not a regular file"):
        read_labels(tmp_path)
