"""Which pictures, labels and boxes a source has; what is told of the rest; and draws that are part of larger draws."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from fgcam_onnx.errors import FgcamError, ImageError, InputError, OptionError
from fgcam_onnx.evaluation.boxes import Box
from fgcam_onnx.evaluation.dataset import Dataset, Sample, read_dataset
from fgcam_onnx.imaging import read


def pictures(root: Path, *names: str) -> Path:
    """Empty files: nothing here opens a picture."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, text: str, name: str = "list.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def labels(dataset: Dataset) -> dict[str, str | None]:
    return {sample.id: sample.label for sample in dataset.samples}


def failed(kind: type[FgcamError], source: Path | Sequence[Path], **options: object) -> str:
    with pytest.raises(kind) as info:
        read_dataset(source, **options)  # type: ignore[arg-type]
    assert type(info.value) is kind
    return str(info.value)


# ---------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "b.JPEG", "a.png", "10.jpg", "9.jpg", ".hidden.jpg", "notes.md", "__MACOSX/a.jpg")
    dataset = read_dataset(tmp_path)
    assert labels(dataset) == {"10.jpg": None, "9.jpg": None, "a.png": None, "b.JPEG": None}
    assert dataset.samples[0] == Sample("10.jpg", tmp_path / "10.jpg", None)
    assert dataset.counts == {"found": 4, "pictures": 4, "labelled": 0, "boxed": 0}
    assert dataset.notes == ()
    assert read_dataset(str(tmp_path)) == dataset


def test_lists_in_a_folder_are_not_taken_silently(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    listed(tmp_path, "a.jpg,cat\n", "labels.csv")
    boxes = listed(tmp_path, "a.jpg,1,2,3,4\n", "boxes.csv")
    assert labels(read_dataset(tmp_path)) == {"a.jpg": None}
    assert read_dataset(tmp_path).notes == (
        "lists among the pictures, not read unless they are given: boxes.csv, labels.csv",
    )
    assert read_dataset(tmp_path, boxes=boxes).notes == (
        "lists among the pictures, not read unless they are given: labels.csv",
    )
    assert labels(read_dataset(tmp_path / "labels.csv")) == {"a.jpg": "cat"}


def test_class_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "n02/b.JPEG", "n02/a.JPEG", "n01/deep/er/c.png", "n01/d.png", "empty/readme.txt")
    assert labels(read_dataset(tmp_path)) == {
        "n01/d.png": "n01",
        "n01/deep/er/c.png": "n01",
        "n02/a.JPEG": "n02",
        "n02/b.JPEG": "n02",
    }


@pytest.mark.parametrize(
    ("files", "found", "note"),
    [
        (["val/n01/a.jpg", "val/n02/b.jpg"], {"val/n01/a.jpg": "n01", "val/n02/b.jpg": "n02"}, ""),
        (["train/n01/a.jpg", "val/n01/a.jpg", "val/n02/b.jpg"], {"val/n01/a.jpg": "n01", "val/n02/b.jpg": "n02"},
         "val/ is measured; left out: train"),
        (["train/n01440764/a.jpg"], {"train/n01440764/a.jpg": "n01440764"}, ""),
        (["ILSVRC/Data/CLS-LOC/val/n01/a.jpg", "ILSVRC/Data/CLS-LOC/val/n02/b.jpg", "ILSVRC/Annotations/x.xml"],
         {"ILSVRC/Data/CLS-LOC/val/n01/a.jpg": "n01", "ILSVRC/Data/CLS-LOC/val/n02/b.jpg": "n02"}, ""),
        (["n01443537/images/a.jpg", "n01443538/images/b.jpg"],
         {"n01443537/images/a.jpg": "n01443537", "n01443538/images/b.jpg": "n01443538"}, ""),
        (["n01443537/images/a.jpg"], {"n01443537/images/a.jpg": "n01443537"}, ""),
        (["val/images/a.jpg", "val/val_annotations.txt"], {"val/images/a.jpg": None}, ""),
        (["cat/a.jpg"], {"cat/a.jpg": "cat"}, ""),
        (["test/a.jpg", "cat/b.jpg"], {"cat/b.jpg": "cat", "test/a.jpg": "test"}, ""),
        (["a.jpg", "more/b.jpg"], {"a.jpg": None}, "folders beside the pictures, left out: more"),
    ],
)  # fmt: skip
def test_trees(tmp_path: Path, files: list[str], found: dict[str, str | None], note: str) -> None:
    dataset = read_dataset(pictures(tmp_path, *files))
    assert labels(dataset) == found
    assert list(dataset.notes) == [note] * bool(note)
    assert all(sample.path == tmp_path / sample.id for sample in dataset.samples)


def test_links(tmp_path: Path) -> None:
    """Class folders that are links are followed, once round."""
    pictures(tmp_path / "store", "x/a.jpg")
    pictures(tmp_path / "set", "n02/b.jpg")
    (tmp_path / "set" / "n01").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "set" / "n02" / "again").symlink_to(tmp_path / "set" / "n02")
    assert labels(read_dataset(tmp_path / "set")) == {"n01/a.jpg": "n01", "n02/b.jpg": "n02"}


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "sub/readme.md")
    message = failed(ImageError, tmp_path)
    assert "holds no pictures" in message
    assert ".jpg" in message
    assert "there is no picture" in failed(ImageError, tmp_path / "nowhere")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Their ids can be written to any file, and the picture is still found."""
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")
    pictures(tmp_path, name)
    (sample,) = read_dataset(tmp_path, limit=1).samples
    assert sample.id == "caf\\xe9 é.jpg"
    assert sample.path.exists()


# ---------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.jpg,65\nsub/b.png,tench\n",
        "a.jpg,65\nsub/b.png,tench\n",
        "a.jpg;65\nsub/b.png;tench\n",
        "a.jpg\t65\nsub/b.png\ttench",
        "Image;Class\n./a.jpg;65\nsub//b.png;tench\n",
        "class_index,path\n65,a.jpg\ntench,sub/b.png\n",
        "\ufefffilename,target,more\r\na.jpg,65,1\r\n\r\nsub/b.png,tench,2\r\n",
        "ImageId,label\na,65\nsub/b,tench\n",
        "a,65\nsub/b,tench\n",
        "file,label\na.jpg,65\nsub\\b.png,tench\n",
    ],
)
def test_a_list(tmp_path: Path, text: str) -> None:
    pictures(tmp_path, "a.jpg", "sub/b.png", "c.jpg")
    dataset = read_dataset(listed(tmp_path, text))
    assert labels(dataset) == {"a.jpg": "65", "sub/b.png": "tench"}
    assert all(sample.path.exists() for sample in dataset.samples)
    assert dataset.notes == ()


def test_labels_with_the_delimiter(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    whole = {"a.jpg": "tench, Tinca tinca", "b.jpg": "harvester, reaper"}
    assert labels(read_dataset(listed(tmp_path, 'a.jpg,"tench, Tinca tinca"\nb.jpg,"harvester, reaper"\n'))) == whole
    assert labels(read_dataset(listed(tmp_path, "a.jpg;tench, Tinca tinca\nb.jpg;harvester, reaper\n"))) == whole
    message = failed(InputError, listed(tmp_path, "file,label\na.jpg,tench\nb.jpg,harvester, reaper\n"))
    assert "a row of 3 cells, where the header has 2" in message
    assert "line 3" in message
    assert "between quotes" in message


def test_a_synset_goes_before_an_index(tmp_path: Path) -> None:
    """The index of ImageNet is another class in a model of 19 dogs; the synset is none there, and that is told."""
    pictures(tmp_path, "a.jpg")
    dataset = read_dataset(listed(tmp_path, "file,class_index,synset,name\na.jpg,65,n01751748,sea snake\n"))
    assert labels(dataset) == {"a.jpg": "n01751748"}
    assert dataset.notes == ("labels are of the column 'synset' of list.csv, not class_index",)


def test_a_list_without_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    assert labels(read_dataset(listed(tmp_path, "a.jpg\nb.jpg\n"))) == {"a.jpg": None, "b.jpg": None}
    assert labels(read_dataset(listed(tmp_path, "file,label\nb.jpg,\na.jpg,3\n"))) == {"b.jpg": None, "a.jpg": "3"}


def test_a_first_row_that_only_looks_like_a_header(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    assert labels(read_dataset(listed(tmp_path, "a.jpg,target\nb.jpg,file\n"))) == {"a.jpg": "target", "b.jpg": "file"}


@pytest.mark.parametrize("text", ["picture_of,what\na.jpg,cat\n", "label,what\ncat,a.jpg\n", "cat,a.jpg\ndog,b.jpg\n"])
def test_a_list_without_a_column_of_files(tmp_path: Path, text: str) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    message = failed(InputError, listed(tmp_path, text))
    assert "no column of" in message
    assert text.splitlines()[0].replace(",", ", ") in message
    assert "call one of them file" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("file,label\n", "a header and nothing else"),
        ("file,label\n,3\n", "a row names no picture"),
        ("file,label\na.jpg,3\na.jpg,4\n", "the picture 'a.jpg' has two labels"),
    ],
)
def test_a_list_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    pictures(tmp_path, "a.jpg")
    message = failed(InputError, listed(tmp_path, text))
    assert words in message


def test_two_labels_are_told_with_their_lines(tmp_path: Path) -> None:
    message = failed(InputError, listed(tmp_path, "file,label\na.jpg,3\nb.jpg,4\n./a.jpg,cat\n"))
    assert "line 4" in message
    assert "'3' in line 2, and 'cat'" in message


def test_a_picture_that_is_listed_again(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    dataset = read_dataset(listed(tmp_path, "a.jpg,3\nb.jpg,4\na.jpg,3\n"))
    assert labels(dataset) == {"a.jpg": "3", "b.jpg": "4"}
    assert dataset.notes == ("pictures that are listed again and measured once: 1",)


def test_missing_pictures_are_no_error_yet(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    dataset = read_dataset(listed(tmp_path, "a.jpg,3\ngone.jpg,4\ngone2,5\n"))
    assert labels(dataset) == {"a.jpg": "3", "gone.jpg": "4", "gone2": "5"}
    assert dataset.notes == (f"pictures that are listed and not there: 2, first {str(tmp_path / 'gone.jpg')!r}",)
    with pytest.raises(ImageError, match="there is no picture"):
        read(dataset.samples[1].path)


def test_paths_out_of_the_folder(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "lists/b.jpg")
    text = f"../a.jpg,1\n{tmp_path / 'lists' / 'b.jpg'},2\n{tmp_path / 'a.jpg'},3\n"
    dataset = read_dataset(listed(tmp_path / "lists", text))
    assert labels(dataset) == {"../a.jpg": "1", "b.jpg": "2", (tmp_path / "a.jpg").as_posix(): "3"}
    assert all(sample.path.exists() for sample in dataset.samples)


def test_the_list_of_kaggle(tmp_path: Path) -> None:
    """Boxes, and the class where they agree; the words are never taken for a label."""
    pictures(tmp_path, "val_1.JPEG", "val_2.JPEG")
    text = "ImageId,PredictionString\nval_1,n01 1 2 3 4 n01 5 6 7 8\nval_2,n01 1 2 3 4 n02 5 6 7 8\n"
    dataset = read_dataset(listed(tmp_path, text))
    assert labels(dataset) == {"val_1.JPEG": "n01", "val_2.JPEG": None}
    assert dataset.samples[0].boxes == (Box(1, 2, 3, 4, "n01"), Box(5, 6, 7, 8, "n01"))
    assert dataset.counts == {"found": 2, "pictures": 2, "labelled": 1, "boxed": 2}


def test_a_list_of_boxes_as_the_source(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    text = "file,x1,y1,x2,y2,label\na.jpg,1,2,3,4,cat\na.jpg,5,6,7,8,cat\nb.jpg,1,2,3,4,cat\nb.jpg,5,6,7,8,dog\n"
    dataset = read_dataset(listed(tmp_path, text))
    assert labels(dataset) == {"a.jpg": "cat", "b.jpg": None}
    assert [len(sample.boxes) for sample in dataset.samples] == [2, 2]
    assert dataset.notes == ("pictures whose boxes are of several classes, taken without a label: 1",)
    assert labels(read_dataset(listed(tmp_path, "a.jpg,1,2,3,4,cat\nb.jpg,1,2,3,4,dog\n"))) == {
        "a.jpg": "cat",
        "b.jpg": "dog",
    }


# ---------------------------------------------------------------------------------------------------- several


def test_files_and_several_sources(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "one/b.jpg", "two/n01/c.jpg", "two/n02/d.jpg", "odd.picture")
    assert labels(read_dataset(tmp_path / "one" / "b.jpg")) == {"b.jpg": None}
    assert labels(read_dataset(tmp_path / "odd.picture")) == {"odd.picture": None}
    assert labels(read_dataset([tmp_path / "two", tmp_path / "a.jpg", tmp_path / "one"])) == {
        "two/n01/c.jpg": "n01",
        "two/n02/d.jpg": "n02",
        "a.jpg": None,
        "one/b.jpg": None,
    }
    assert "there is no picture" in failed(ImageError, [tmp_path / "a.jpg", tmp_path / "z.jpg"])
    assert "no pictures are given" in failed(InputError, [])


def test_a_picture_of_two_sources(tmp_path: Path) -> None:
    pictures(tmp_path, "n01/a.jpg", "n02/b.jpg")
    once = read_dataset([tmp_path / "n01" / "a.jpg", tmp_path])
    assert labels(once) == {"n01/a.jpg": "n01", "n02/b.jpg": "n02"}
    assert once.notes == ("pictures that were named again and are measured once: 1",)
    other = listed(tmp_path, "n01/a.jpg,n02\n")
    assert "has two labels" in failed(InputError, [tmp_path, other])


# ---------------------------------------------------------------------------------------------------- draws


def test_draws_are_nested_and_keep_the_order(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"n{c:02}/{i}.jpg" for c in range(10) for i in range(20)))
    every = [sample.id for sample in read_dataset(tmp_path).samples]
    draws = [[s.id for s in read_dataset(tmp_path, limit=n, seed=3).samples] for n in (1, 10, 20, 60, 199)]
    for smaller, larger in pairwise(draws):
        assert [id for id in larger if id in smaller] == smaller
    assert [len(draw) for draw in draws] == [1, 10, 20, 60, 199]
    assert all([id for id in every if id in draw] == draw for draw in draws)
    per_class = Counter(id.split("/")[0] for id in draws[3])
    assert len(per_class) == 10  # random: 60 of 200 in a row would be of three classes
    other = [s.id for s in read_dataset(tmp_path, limit=60, seed=4).samples]
    assert set(other) != set(draws[3])
    dataset = read_dataset(tmp_path, limit=60, seed=3)
    assert dataset.counts == {"found": 200, "pictures": 60, "labelled": 60, "boxed": 0}
    assert dataset.notes == ("60 of 200 pictures, drawn with seed 3",)
    (tmp_path / "n00" / "new.jpg").touch()
    after = {s.id for s in read_dataset(tmp_path, limit=60, seed=3).samples}
    assert len(after - set(draws[3])) <= 1  # a new picture moves one other at most


def test_a_draw_does_not_change_from_release_to_release(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{c}.jpg" for c in "abcdefgh"))
    assert [s.id for s in read_dataset(tmp_path, limit=3).samples] == ["c.jpg", "d.jpg", "f.jpg"]


def test_limits(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    assert read_dataset(tmp_path, limit=2) == read_dataset(tmp_path) == read_dataset(tmp_path, limit=99, seed=7)
    for limit in (0, -1):
        assert "the limit is" in failed(OptionError, tmp_path, limit=limit)


# ---------------------------------------------------------------------------------------------------- boxes


def boxed(root: Path, text: str) -> Dataset:
    return read_dataset(root, boxes=listed(root / ".lists", text))


def test_boxes_find_their_pictures(tmp_path: Path) -> None:
    """By the path, by its end, and whatever the endings are."""
    pictures(tmp_path, "n01/a.JPEG", "n01/b.JPEG", "n02/c.v1.png", "n02/d.jpg", "n02/e.jpg")
    rows = ["n01/a.JPEG", "b", "c.v1", "some/where/n02/d.jpg", "n02\\e.jpeg", "b.jpg", "gone.jpg", "n09/a.JPEG"]
    dataset = boxed(tmp_path, "".join(f"{name},0,0,{i},9\n" for i, name in enumerate(rows, start=1)))
    widths = {sample.id: [box.x2 for box in sample.boxes] for sample in dataset.samples}
    assert widths == {
        "n01/a.JPEG": [1],
        "n01/b.JPEG": [2, 6],
        "n02/c.v1.png": [3],
        "n02/d.jpg": [4],
        "n02/e.jpg": [5],
    }
    assert dataset.notes == ("boxes without a picture: 2 of 8",)


def test_boxes_that_fit_several_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "n01/a.jpg", "n02/a.jpg", "n03/b.jpg", "n03/b.png", "n03/c.jpg")
    dataset = boxed(tmp_path, "a.jpg,0,0,1,1\na.jpg,0,0,2,2\nb.png,0,0,3,3\nb,0,0,4,4\n")
    assert {s.id: len(s.boxes) for s in dataset.samples if s.boxes} == {"n03/b.png": 1}
    assert dataset.notes == (
        "boxes whose name fits several pictures, left out: 3 of 4",
        "pictures without a box: 4 of 5",
    )


def test_boxes_of_what_is_not_drawn_are_not_missing(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    lists = listed(tmp_path / ".lists", "a.jpg,0,0,1,1\nb.jpg,0,0,1,1\nc.jpg,0,0,1,1\n")
    dataset = read_dataset(tmp_path, boxes=lists, limit=1)
    assert dataset.notes == ("1 of 3 pictures, drawn with seed 0",)
    assert dataset.counts["boxed"] == 1


# ---------------------------------------------------------------------------------------------------- real


def test_real_photographs(test_data: Path) -> None:
    images = test_data / "images"
    dataset = read_dataset(images / "labels.csv", boxes=images / "boxes.csv")
    assert dataset.counts == {"found": 58, "pictures": 58, "labelled": 58, "boxed": 43}
    assert dataset.samples[0].label == "n01751748"
    assert {sample.id for sample in dataset.samples} == {sample.id for sample in read_dataset(images).samples}
    for sample in dataset.samples:
        with Image.open(sample.path) as picture:
            assert picture.size[0] > 0


def test_labels_of_real_photographs_are_classes(test_data: Path) -> None:
    """Both columns name the same class of the 1000."""
    import csv

    from fgcam_onnx.labels import read_labels, resolve_class

    words = read_labels(test_data / "models" / "imagenet1000_labels.txt", 1000)
    with open(test_data / "images" / "labels.csv", encoding="utf-8", newline="") as stream:
        index = {row["file"]: int(row["class_index"]) for row in csv.DictReader(stream)}
    for sample in read_dataset(test_data / "images" / "labels.csv").samples[::4]:
        assert resolve_class(sample.label, words, 1000) == index[sample.id]
