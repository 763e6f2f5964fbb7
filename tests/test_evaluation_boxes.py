"""Boxes: every form they come in, rows that cannot be read, XML that is not parsed, and boxes that do not fit."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from fgcam_onnx.errors import InputError
from fgcam_onnx.evaluation.boxes import LARGEST_XML, Box, check, read_boxes
from fgcam_onnx.metrics.localisation import box_mask

VOC = """<annotation>
  <folder>val</folder><filename>%s</filename>
  <size><width>500</width><height>375</height><depth>3</depth></size>
  <object><name>n01751748</name><pose>Unspecified</pose>
    <bndbox><xmin>111</xmin><ymin>108</ymin><xmax>441</xmax><ymax>193</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
  <object><name>dog</name><bndbox><xmax> 4.5 </xmax><ymax>3</ymax><xmin>1</xmin><ymin>2</ymin></bndbox></object>
</annotation>"""
BOTH = (Box(111, 108, 441, 193, "n01751748"), Box(1, 2, 4.5, 3, "dog"))


def listed(folder: Path, text: str, name: str = "boxes.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def failed(path: Path) -> str:
    with pytest.raises(InputError) as info:
        read_boxes(path)
    return str(info.value)


# ---------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    "text",
    [
        "file,x1,y1,x2,y2,label\na.jpg,1,2,3,4,cat\nb.jpg,0,0,5.5,6,\na.jpg,5,6,7,8,dog\n",
        "file,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,cat\nb.jpg,0,0,5.5,6\na.jpg,5,6,7,8,dog",
        "Label;Right;Bottom;Left;Top;FileName\ncat;3;4;1;2;a.jpg\n;5.5;6;0;0;b.jpg\ndog;7;8;5;6;a.jpg\n",
        "a.jpg,1,2,3,4,cat\nb.jpg,0,0,5.5,6\na.jpg,5,6,7,8,dog\n",
        "a.jpg\t1\t2\t3\t4\tcat\r\n\r\nb.jpg\t0\t0\t5.5\t6\r\na.jpg\t5\t6\t7\t8\tdog\r\n",
        '\ufeff"file", "x1", "y1", "x2", "y2", "label"\n"a.jpg", 1,2,3,4, "cat"\nb.jpg,0,0,5.5,6,\na.jpg,5,6,7,8,dog',
    ],
)
def test_a_list(tmp_path: Path, text: str) -> None:
    found = read_boxes(listed(tmp_path, text))
    assert found == {
        "a.jpg": (Box(1, 2, 3, 4, "cat"), Box(5, 6, 7, 8, "dog")),
        "b.jpg": (Box(0, 0, 5.5, 6),),
    }
    assert list(found) == ["a.jpg", "b.jpg"]


def test_the_list_of_kaggle(tmp_path: Path) -> None:
    text = "ImageId,PredictionString\nval_1,n01978287 240 170 260 240 n01978287 1 2 3 4 \nval_2,n02 5 6 7 8\nval_3,\n"
    assert read_boxes(listed(tmp_path, text, "LOC_val_solution.csv")) == {
        "val_1": (Box(240, 170, 260, 240, "n01978287"), Box(1, 2, 3, 4, "n01978287")),
        "val_2": (Box(5, 6, 7, 8, "n02"),),
        "val_3": (),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4\na.jpg,1,2,three,4\n", ("x2 of a box is 'three'", "line 3")),
        ("file,x1,y1,x2,y2\n\n\na.jpg,1,2,3\n", ("a box has no y2", "line 4")),
        ('file,x1,y1,x2,y2\n"a\n\n.jpg",1,2,3,4\na.jpg,1,2,3\n', ("a box has no y2", "line 5")),
        ("file,x1,y1,x2,y2\na.jpg,1,nan,3,4\n", ("y1 of a box is 'nan'", "line 2")),
        ("file,x1,y1,x2,y2\na.jpg,1,inf,3,4\n", ("'inf'", "line 2")),
        ("file,x1,y1,x2,y2\na.jpg,1,1e999,3,4\n", ("'1e999'", "line 2")),
        ("file,x1,y1,x2,y2\na.jpg,1_0,2,3,4\n", ("'1_0'", "line 2")),
        ("file,x1,y1,x2,y2\n,1,2,3,4\n", ("names no picture", "line 2")),
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4,5\n", ("6 cells", "the header has 5", "line 2")),
        ("file,x1,y1,x2\na.jpg,1,2,3\n", ("have no y2", "file, x1, y1, x2")),
        ("x1,y1,x2,y2\n1,2,3,4\n", ("names the pictures", "call one of them file")),
        ("file,x,y,w,h\na.jpg,1,2,3,4\n", ("has no boxes", "xmin")),
        ("a.jpg,1,2,3\n", ("has no boxes", "without a header")),
        ("a.jpg,1,2,3,4\nb.jpg,1,2,x,4\n", ("x2 of a box is 'x'", "line 2")),
        ("ImageId,PredictionString\nv,n01 1 2 3 4 n01 1 2 3\n", ("PredictionString of 9 words", "line 2")),
        ("ImageId,PredictionString\nv,n01 1 2 3 four\n", ("y2 of a box is 'four'", "line 2")),
        ('file,x1,y1,x2,y2\n"a.jpg,1,2,3,4\nb.jpg,1,2,3,4\n', ("is not CSV", "line 2")),
        ("file,x1,y1,x2,y2\n", ("a header and nothing else",)),
        ("file,x1,x1,y1,x2,y2\na.jpg,1,1,2,3,4\n", ("two columns 'x1'",)),
        ("", ("is empty",)),
        (" \n\n", ("is empty",)),
    ],
)
def test_a_row_that_cannot_be_read(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    message = failed(listed(tmp_path, text))
    for word in (*words, "boxes.csv"):
        assert word in message


def test_what_is_no_list(tmp_path: Path) -> None:
    assert "No such file" in failed(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"file,x1,y1,x2,y2\na\xe9.jpg,1,2,3,4\n")
    assert "line 2" in failed(tmp_path / "latin.csv")
    (tmp_path / "nul.csv").write_bytes(b"file,x1,y1,x2,y2\na.jpg\0,1,2,3,4\n")
    assert "line 2" in failed(tmp_path / "nul.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    assert "not a regular file" in failed(tmp_path / "pipe.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no boxes" in failed(tmp_path / "empty")


def test_a_list_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgcam_onnx.evaluation.listing.LARGEST_LIST", 40)
    assert len(read_boxes(listed(tmp_path, "a.jpg,1,2,3,4\n"))) == 1
    assert "too large" in failed(listed(tmp_path, "a.jpg,1,2,3,4\n" * 3))


# ---------------------------------------------------------------------------------------------------- Pascal VOC


def test_pascal_voc(tmp_path: Path) -> None:
    """The file's own stem is the picture; what it says itself, ``%s`` in some of ImageNet's, is not."""
    assert read_boxes(listed(tmp_path, VOC, "val_1.xml")) == {"val_1": BOTH}
    nested = tmp_path / "Annotations" / "CLS-LOC" / "val"
    nested.mkdir(parents=True)
    listed(nested, VOC, "val_2.XML")
    listed(nested, "<annotation><source><object/></source></annotation>", "val_3.xml")
    listed(nested, "junk", "._val_3.xml")
    assert read_boxes(tmp_path / "Annotations") == {"val_2": BOTH, "val_3": ()}
    assert read_boxes(nested) == {"val_2": BOTH, "val_3": ()}


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        listed(tmp_path / name, VOC, "1.xml")
    assert list(read_boxes(tmp_path)) == ["a/1", "b/1"]


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {b} "{("&" + a + ";") * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><annotation><object><name>&i;</name></object></annotation>"
)


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS.encode(),
        b'<!DOCTYPE annotation SYSTEM "http://example.org/x.dtd"><annotation/>',
        b'<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>',
        b"<annotation/>\n<!DOCTYPE annotation>",
    ],
)
def test_declarations_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    message = failed(tmp_path / "a.xml")
    assert "declares a document type or entities" in message
    assert "a.xml" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-7", "cp037"])
def test_declarations_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    laughs = LAUGHS.replace('<?xml version="1.0"?>', head)
    (tmp_path / "a.xml").write_bytes(laughs.encode(encoding))
    message = failed(tmp_path / "a.xml")
    assert ("not in UTF-8" in message) == (encoding in ("utf-16", "utf-16-be", "utf-32"))  # before it is parsed
    if encoding in ("utf-7", "cp037"):  # an ASCII head that promises something else
        (tmp_path / "a.xml").write_bytes(head.encode() + laughs.split("?>")[1].encode(encoding))
        failed(tmp_path / "a.xml")


def test_the_parser_itself_refuses_a_document_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second guard alone."""
    import re

    monkeypatch.setattr("fgcam_onnx.evaluation.boxes._DECLARATION", re.compile(rb"(?!)"))
    assert "declares a document type" in failed(listed(tmp_path, LAUGHS, "a.xml"))


def test_comments_and_cdata_are_no_declarations(tmp_path: Path) -> None:
    text = "<annotation><!-- a <b> --><object><name><![CDATA[dog]]></name>" + VOC.split("<name>dog</name>")[1]
    assert read_boxes(listed(tmp_path, text, "a.xml")) == {"a": BOTH[1:]}
    (tmp_path / "b.xml").write_bytes(
        b'<?xml version="1.0" encoding="iso-8859-1"?>' + text.replace("dog", "caf\xe9").encode("latin-1")
    )
    assert read_boxes(tmp_path / "b.xml")["b"][0].label == "caf\xe9"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><object>\n\n</annotation>", ("is not XML", "line 3")),
        ("", ("is not XML",)),
        ("<html/>", ("Pascal VOC", "<html>")),
        ("<annotation><object/></annotation>", ("without a <bndbox>", "object 1")),
        ("<annotation><object><part><bndbox/></part></object></annotation>", ("without a <bndbox>", "object 1")),
        (VOC.replace("<ymin>2</ymin>", ""), ("a box has no y1", "object 2")),
        (VOC.replace("<ymin>2</ymin>", "<ymin>two</ymin>"), ("y1 of a box is 'two'", "object 2")),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', ("a.xml",)),
        ("<annotation>" + "<a>" * 20000 + "</a>" * 20000 + "</annotation>", ()),
    ],
)
def test_xml_that_cannot_be_read(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = listed(tmp_path, text, "a.xml")
    if not words:  # deep, and harmless
        assert read_boxes(file) == {"a": ()}
        return
    message = failed(file)
    for word in words:
        assert word in message


def test_xml_that_is_too_large(tmp_path: Path) -> None:
    listed(tmp_path, VOC + " " * (LARGEST_XML - len(VOC)), "a.xml")
    assert read_boxes(tmp_path / "a.xml") == {"a": BOTH}
    listed(tmp_path, VOC + " " * (LARGEST_XML - len(VOC) + 1), "a.xml")
    assert "too large" in failed(tmp_path / "a.xml")


# ---------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("corners", "kept"),
    [
        ((0, 0, 20, 10), (0, 0, 20, 10)),
        ((1.5, 2, 19.5, 9), (1.5, 2, 19.5, 9)),
        ((0, 0, 21, 11), (0, 0, 20, 10)),
        ((-1, -1, 5, 5), (0, 0, 5, 5)),
        ((-0.5, 0, 20.5, 5), (0, 0, 20, 5)),
    ],
)
def test_a_box_that_fits(corners: tuple[float, ...], kept: tuple[float, ...]) -> None:
    usable, reasons = check([Box(*corners, label="a")], (10, 20))
    assert usable == (Box(*kept, label="a"),)
    assert reasons == ()
    assert box_mask([box.corners for box in usable], (10, 20), (10, 20)).any()


@pytest.mark.parametrize(
    ("corners", "why"),
    [
        ((0, 0, 21.1, 5), "(0, 0, 21.1, 5) reaches out of its picture, 20 pixels wide and 10 high"),
        ((0, 0, 5, 12), "reaches out"),
        ((-1.5, 0, 5, 5), "reaches out"),
        ((0, -2, 5, 5), "reaches out"),
        ((5, 5, 5, 8), "(5, 5, 5, 8) has no area"),
        ((8, 5, 5, 8), "has no area"),
        ((5, 5, 8, 5), "has no area"),
        ((20, 5, 21, 8), "lies outside its picture"),
        ((math.nan, 0, 5, 5), "not finite"),
        ((0, 0, math.inf, 5), "not finite"),
    ],
)
def test_a_box_that_does_not_fit(corners: tuple[float, ...], why: str) -> None:
    good = Box(1, 1, 2, 2)
    usable, (reason,) = check([good, Box(*corners)], (10, 20))
    assert usable == (good,)
    assert why in reason


# ---------------------------------------------------------------------------------------------------- real


def test_the_boxes_of_real_photographs(test_data: Path) -> None:
    from PIL import Image

    boxes = read_boxes(test_data / "images" / "boxes.csv")
    assert len(boxes) == 43
    assert boxes["ILSVRC2012_val_00000001.jpg"] == (Box(111, 108, 441, 193, "n01751748"),)
    for name, its in boxes.items():
        with Image.open(test_data / "images" / name) as picture:
            usable, reasons = check(its, (picture.height, picture.width))
        assert len(usable) == len(its), reasons
