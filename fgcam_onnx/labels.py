"""Class names: where they are found, how they are written, how a user's word becomes a class index.

A label stays as its file has it (``n01440764 tench, Tinca tinca``). :func:`short` gives the name to show (``tench``);
:func:`resolve_target` understands the whole label, its synset, a name between commas, and the start of a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx import folder, timm_config
from fgcam_onnx.errors import ModelError, TargetError, nearest

__all__ = ["Target", "find_labels", "read_labels", "resolve_class", "resolve_target", "short"]

Target = int | str | Sequence[int | str] | None
LARGEST_FILE = 16 << 20
METADATA_KEYS = ("labels", "id2label", "names", "classes", "class_names")
# The names that people give to a file of class names beside a model.
FILES = (
    "labels.txt", "labels.json", "synset.txt", "synset_words.txt", "classes.txt", "class_names.txt", "classes.json",
    "class_names.json", "class_indices.json",
)  # fmt: skip
BACKGROUND = ("background", "dummy")
_SYNSET = re.compile(r"(n\d{8})\s+(?=\S)")
# {0: 'tench', 1: "jack-o'-lantern"}: the names of some exporters, printed as Python prints a dict
_PRINTED = re.compile(r"""(\d+)\s*:\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*[,}]""")
_PRINTED_LIST = re.compile(r"""(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*[,\]]""")
_NUMBERED = re.compile(r"([0-9]{1,9})[\s:,;]+(?=\S)")


# ---------------------------------------------------------------------------------------------------- finding


def find_labels(
    path: str | Path | None, metadata: Mapping[str, str], num_classes: int, notes: list[str] | None = None
) -> tuple[list[str], str] | None:
    """The class names of a model and the source they come from, or None.

    Looked for in this order: the model's metadata (``labels``, ``id2label``, ``names``, ``classes``, ``class_names``),
    then, beside the model file, ``config.json`` (``id2label``; ``label_names`` of timm), ``<stem>.labels.txt``,
    ``<stem>_labels.txt``, and the usual names of :data:`FILES`. A source that has another number of names than the
    model has classes, or that cannot be read, is passed over, with a sentence about it appended to ``notes``. Of a list
    that starts with a background class, which the model does not have, that name is left out, and a note says so.
    """
    notes = notes if notes is not None else []
    for key in METADATA_KEYS:
        if key in metadata:
            source = f"the model's metadata key {key!r}"
            try:
                return _fitted(_from_text(metadata[key], source), source, num_classes, notes), source
            except ModelError as error:
                notes.append(f"labels passed over: {error.what}")
    if path is None:
        return None
    path = Path(path)
    for name in ("config.json", f"{path.stem}.labels.txt", f"{path.stem}_labels.txt", *FILES):
        if (file := folder.beside(path, name)) is None:
            continue
        try:
            return _fitted(_from_file(file), repr(str(file)), num_classes, notes), file.name
        except ModelError as error:
            if isinstance(error, _NoLabelsError) and name == "config.json":
                continue
            notes.append(f"labels passed over: {error.what}")
    return None


class _NoLabelsError(ModelError):
    """A JSON object that says nothing about labels. In config.json it is not worth a note."""


def read_labels(file: str | Path, num_classes: int | None = None) -> list[str]:
    """The class names in a file: text with a class a line, or JSON.

    JSON is a list, a mapping of indices to names, one of names to indices, or a configuration with ``id2label`` or
    timm's ``label_names``. Lines that count themselves (``0 cat``, ``1 dog``) lose their numbers.

    Raises :class:`ModelError` where the file cannot be read, makes no sense, or does not have ``num_classes`` names.
    """
    names = _from_file(Path(file))
    if num_classes is not None and len(names) != num_classes:
        hint = None
        if _starts_with_background(names, num_classes):
            hint = f"the first is {names[0]!r}: remove it if the model has no such class"
        raise ModelError(_miscounted(names, repr(str(file)), num_classes), next=hint)
    return names


def _from_file(file: Path) -> list[str]:
    text = folder.read(file, LARGEST_FILE, "a list of labels").text
    if file.suffix.lower() == ".json":
        return _from_json(text, repr(str(file)))
    return _lines(text)


def _lines(text: str) -> list[str]:
    """A class a line; numbers from 0 on before them are none of their names."""
    names = [line.strip() for line in text.rstrip().splitlines()]
    counted = [_NUMBERED.match(name) for name in names]
    if len(names) > 1 and all(match and int(match.group(1)) == i for i, match in enumerate(counted)):
        return [name[match.end() :] for name, match in zip(names, counted, strict=True) if match]
    return names


def _fitted(names: list[str], source: str, num_classes: int, notes: list[str]) -> list[str]:
    """The names if they are as many as the classes, or one more with a background class before them."""
    if len(names) == num_classes:
        return names
    if _starts_with_background(names, num_classes):
        notes.append(
            f"the first of the {len(names)} labels in {source} is {names[0]!r}, and the model has {num_classes} "
            "classes: it is left out, so that label 1 is class 0"
        )
        return names[1:]
    what = _miscounted(names, source, num_classes)
    if (len(names), num_classes) == (1000, 1001):
        what += ", perhaps a background class before them"
    raise ModelError(what)


def _starts_with_background(names: Sequence[str], num_classes: int) -> bool:
    """TensorFlow's ImageNet models count 1001 classes, the first of them ``background``."""
    return len(names) == num_classes + 1 and _plain(names[0]).strip("/ ") in BACKGROUND


def _miscounted(names: Sequence[str], source: str, num_classes: int) -> str:
    count = "1 label" if len(names) == 1 else f"{len(names)} labels"
    return f"{source} has {count}, the model has {num_classes} classes"


def _from_text(text: str, source: str) -> list[str]:
    """Of the metadata: JSON, a list or dict as Python prints it, or a class a line."""
    if "\n" in text.strip() and not text.lstrip().startswith(("[", "{")):
        return _lines(text)
    return _from_json(text, source)


def _from_json(text: str, source: str) -> list[str]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = _printed(text)
        if not record:
            raise ModelError(f"{source} is not JSON") from None
    if isinstance(record, Mapping):
        record = _listed(record, source)
    if not isinstance(record, list) or not all(isinstance(name, str) for name in record):
        raise ModelError(f"{source} is not a list of labels")
    return list(record)


def _printed(text: str) -> Any:
    """What Python prints for a dict or a list of names. Read, not evaluated."""
    if text.lstrip().startswith("{"):
        return {int(i[:9]): _unescaped(a or b) for i, a, b in _PRINTED.findall(text)}
    if text.lstrip().startswith("["):
        return [_unescaped(a or b) for a, b in _PRINTED_LIST.findall(text)]
    return None


def _unescaped(name: str) -> str:
    return re.sub(r"\\(['\"\\])", r"\1", name)


def _listed(record: Mapping[str, Any], source: str) -> Any:
    """The labels of a JSON object in the order of their indices."""
    if timm_config.is_timm(record) and "id2label" not in record:
        found = timm_config.labels(record, source)
        if found is None:
            raise _NoLabelsError(f"{source} has no 'label_names'")
    elif "id2label" in record:
        found = record["id2label"]
    elif record and sorted(map(repr, record.values())) == sorted(map(str, range(len(record)))):
        return sorted(record, key=lambda name: int(record[name]))  # names to indices: class_indices of Keras
    elif not all(str(key).isdigit() for key in record):
        raise _NoLabelsError(f"{source} has no 'id2label'")
    else:
        found = record
    if not isinstance(found, Mapping):
        return found
    if sorted(found, key=str) != sorted((type(key)(i) for i, key in enumerate(found)), key=str):
        raise ModelError(f"{source} does not number its labels 0, 1, 2 and on")
    return [_joined(found[key]) for key in sorted(found, key=int)]


def _joined(name: Any) -> Any:
    """``["n01440764", "tench"]``, as Keras and torch list ImageNet: one label."""
    if isinstance(name, list) and name and all(isinstance(part, str) for part in name):
        return " ".join(name)
    return name


# ---------------------------------------------------------------------------------------------------- names


def short(label: str) -> str:
    """The name to show: without the synset, the first of the names between commas."""
    name = _SYNSET.sub("", label, count=1) if _SYNSET.match(label) else label
    return name.split(",")[0].strip().replace("_", " ") or label


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_\-\s]+", " ", name).casefold().split())


def _names(label: str) -> set[str]:
    """All that a label answers to."""
    found = {label}
    if match := _SYNSET.match(label):
        found |= {match.group(1), label[match.end() :]}
        label = label[match.end() :]
    return {plain for name in (*found, *label.split(",")) if (plain := _plain(name))}


# ---------------------------------------------------------------------------------------------------- targets


def resolve_target(
    target: Target | npt.NDArray[Any], labels: Sequence[str] | None, num_classes: int, logits: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """The class of each image, int64 ``[n]``, from what the caller wrote.

    ``target``: None for the largest of ``logits`` (``[n, classes]``); an index; a label (letter case, ``_`` and ``-``
    do not matter; the whole label, its synset, one of its names between commas, or the start of one, if only one class
    fits); digits as text; ``#3`` for the index where a class is *named* 3; or a list of these, one per image.

    Raises :class:`TargetError` for an index outside the classes, a word that fits no class or several, or a list of
    another length than the batch.
    """
    n = len(logits)
    if target is None:
        largest: npt.NDArray[np.int64] = np.asarray(logits).argmax(axis=1).astype(np.int64)
        return largest
    if isinstance(target, str) or not isinstance(target, (Sequence, np.ndarray)) or np.ndim(target) == 0:
        return np.full(n, resolve_class(target, labels, num_classes), dtype=np.int64)
    if len(target) != n:
        raise TargetError(
            f"{len(target)} target{'s' * (len(target) != 1)} for {n} image{'s' * (n != 1)}",
            next="give one target for all, or one for each image",
        )
    return np.asarray([resolve_class(each, labels, num_classes) for each in target], dtype=np.int64)


def resolve_class(target: Any, labels: Sequence[str] | None, num_classes: int) -> int:
    """One class from an index or a word, as in :func:`resolve_target`."""
    if isinstance(target, np.ndarray) and target.ndim == 0:
        target = target[()]
    if isinstance(target, (int, np.integer)) and not isinstance(target, (bool, np.bool_)):
        return _index(int(target), labels, num_classes)
    if not isinstance(target, str):
        raise TargetError(f"target is {target!r}, a {type(target).__name__}", known="an index, a label, or None")
    word = target.strip()
    if word.removeprefix("#").isascii() and word.removeprefix("#").isdigit():
        index = _index(int(word.removeprefix("#")[:18]), labels, num_classes)
        other = [] if word.startswith("#") else [i for i in _fitting(word, labels or ())[:1] if i != index]
        if other:
            assert labels is not None
            raise TargetError(
                f"{word!r} is the index of one class and the name of another",
                known=f"class {index} is {labels[index]!r}, class {other[0]} is {labels[other[0]]!r}",
                next=f"write #{index} or #{other[0]}",
            )
        return index
    if labels is None:
        raise TargetError(
            f"there are no labels to look {word!r} up in",
            known=f"the model has {num_classes} classes, 0 to {num_classes - 1}",
            next="give the index, or a file of labels: --labels FILE",
        )
    found = _fitting(word, labels) or _fitting(word, labels, start=True)
    if len(found) == 1:
        return found[0]
    if found:
        raise TargetError(
            f"{word!r} fits {len(found)} classes",
            known=_some(f"{i} {short(labels[i])}" for i in found),
            next="write more of the name, or the index",
        )
    plain = _plain(word)
    inside = [f"{i} {short(label)}" for i, label in enumerate(labels) if plain and plain in _plain(label)]
    names = {short(label): None for label in labels}
    raise TargetError(
        f"no class is called {word!r}",
        known=f"containing it: {_some(inside)}" if inside else f"{num_classes} classes, 0 to {num_classes - 1}",
        next="write the whole name, or the index" if inside else nearest(word, names) or None,
    )


def _index(index: int, labels: Sequence[str] | None, num_classes: int) -> int:
    if not 0 <= index < num_classes:
        raise TargetError(
            f"there is no class {index}", known=f"the model has {num_classes} classes, 0 to {num_classes - 1}"
        )
    return index


def _fitting(word: str, labels: Sequence[str], *, start: bool = False) -> list[int]:
    plain = _plain(word)
    if not plain:
        return []
    if start:
        return [i for i, label in enumerate(labels) if any(name.startswith(plain) for name in _names(label))]
    return [i for i, label in enumerate(labels) if plain in _names(label)]


def _some(words: Iterable[str], n: int = 6) -> str:
    words = list(words)
    return ", ".join(words[:n]) + (f" and {len(words) - n} more" if len(words) > n else "")
