"""Exporters of PyTorch, torchvision and timm, on real networks: the file is right, and knows its preprocessing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from exporting import CLASSES, SIZE, Twin, Weights
from PIL import Image
from torch import nn
from torch_reference import import_torchvision, live, smooth_images

from fgcam_onnx import Explainer, preprocessing
from fgcam_onnx.cli import main
from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import export, from_torch, from_torchvision
from fgcam_onnx.exporters import write as write_source
from fgcam_onnx.exporters.dispatch import find

import_torchvision()
Record = Callable[[str, object], None]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load_model(path, load_external_data=False).metadata_props}


def recipe_of(path: Path) -> preprocessing.Preprocessing:
    """As the engine finds it again."""
    explainer = Explainer(path)
    return preprocessing.choose(
        metadata=explainer.metadata, path=path, input_shape=explainer.input_shape, layout=explainer.layout
    )


# ---------------------------------------------------------------------------------------------------- PyTorch


def test_a_small_network(tmp_path: Path, record_property: Record) -> None:
    weights = Weights()
    done = export(Twin(weights), tmp_path / "m.onnx", size=SIZE)
    assert done.difference <= 1e-5
    assert done.input_shape == (None, 3, *SIZE)
    exporting.assert_faithful(tmp_path / "m.onnx", Twin(weights), "NCHW", record_property, "torch")


def test_the_record_in_the_file(tmp_path: Path) -> None:
    """Source, versions and proof, in metadata that any ONNX reader shows."""
    source = from_torch.load(Twin(Weights()), input_shape=(3, *SIZE), opset=18, name="torch:twin")
    done = write_source(source, tmp_path / "m.onnx", seed=5, tolerance=1e-3)
    found = metadata(tmp_path / "m.onnx")
    assert found["source"] == "torch:twin"
    versions = json.loads(found["versions"])
    assert versions["torch"] == torch.__version__
    assert {"onnxscript", "fgcam_onnx", "onnx", "onnxruntime"} <= set(versions)
    proof = json.loads(found["proof"])
    assert proof == {"tolerance": 1e-3, "difference": done.difference, "images": 3, "seed": 5}
    assert done.opset == 18
    assert "preprocessing" not in found
    assert "labels" not in found
    assert "no preprocessing is known" in " ".join(done.notes)


def own_net() -> nn.Module:
    """What ``torch:test_export_torch:own_net`` finds."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def no_net() -> str:
    return "nothing"


def failing_net() -> nn.Module:
    raise RuntimeError("the data set is missing")


def test_a_network_of_one_s_own(tmp_path: Path) -> None:
    """A factory: one grey channel, seen from its first convolution; preprocessing by fields; labels from a file."""
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    export(
        "torch:test_export_torch:own_net",
        tmp_path / "m.onnx",
        size=20,
        labels=tmp_path / "names.txt",
        preprocessing={"mean": 0.5, "std": 0.25},
    )
    explainer = Explainer(tmp_path / "m.onnx")
    assert explainer.input_shape[1:] == (1, 20, 20)
    assert explainer.labels == ["cat", "dog", "bird"]
    recipe = recipe_of(tmp_path / "m.onnx")
    assert (recipe.color, recipe.mean, recipe.std, recipe.size) == ("GRAY", (0.5,), (0.25,), (20, 20))


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("torch:test_export_torch:no_net", ExportError, "returns a str, not a torch.nn.Module"),
        ("torch:test_export_torch:failing_net", ExportError, "RuntimeError: the data set is missing"),
        ("torch:test_export_torch:own_nets", OptionError, "did you mean 'own_net'"),
        ("torch:no_such_module:f", OptionError, "the module 'no_such_module' cannot be imported"),
        ("torch:test_export_torch", OptionError, "names no function"),
    ],
)
def test_factories_that_are_none(tmp_path: Path, word: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        export(word, tmp_path / "m.onnx")


def test_a_converter_that_loses_a_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real converter, its file changed by 2 % in one bias: an error with both values, and no file."""
    real = torch.onnx.export

    def careless(*args: Any, **options: Any) -> Any:
        program = real(*args, **options)
        weights = program.model.graph.initializers["dense.bias"]
        weights.const_value = onnx_ir.tensor(np.float32(1.02) * weights.const_value.numpy(), name="dense.bias")
        return program

    monkeypatch.setattr(torch.onnx, "export", careless)
    with pytest.raises(ExportError, match="does not compute what torch:Twin computes") as caught:
        export(Twin(Weights()), tmp_path / "m.onnx", size=SIZE)
    text = str(caught.value)
    assert "allowed 1.0e-04" in text
    assert f"scores [3, {CLASSES}]" in text
    assert "largest class of each image: source [" in text
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    from torchvision import models

    return live(models.resnet18(num_classes=4), seed=1, size=(64, 64), images=4)


@pytest.mark.parametrize("form", ["pth", "checkpoint", "safetensors"])
def test_weights_from_a_file(tmp_path: Path, resnet: nn.Module, form: str) -> None:
    """A state dict, a training checkpoint of a wrapped module, safetensors: the file answers as the trained network."""
    state = resnet.state_dict()
    file = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, file)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        torch.save(state, file)
    done = export("torchvision:resnet18", tmp_path / "m.onnx", weights=str(file), classes=4, size=64)
    assert done.labels is None
    assert done.source == f"torchvision:resnet18 weights={file.name}"
    x = smooth_images(2, (64, 64), seed=4)
    with torch.no_grad():
        expected = resnet(x).numpy()
    found = Explainer(tmp_path / "m.onnx").explain(x.numpy()).logits
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


class Trap:
    """Would run code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


def test_nothing_is_unpickled(tmp_path: Path, resnet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": resnet.state_dict(), "trap": Trap()}, "w.pth")
    with pytest.raises(ExportError, match="cannot be read without running code from the file"):
        export("torchvision:resnet18", tmp_path / "m.onnx", weights="w.pth", classes=4)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("torchvision:resnet18", {}, r"fc.weight is \[4, 512\], the network has \[1000, 512\].*\n.*--classes N"),
        ("torchvision:vgg11", {}, "missing features.0.weight"),
        ("timm:resnet18", {"weights": "absent.pth"}, "there is no file of weights 'absent.pth'"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, resnet: nn.Module, source: str, options: Any, text: str) -> None:
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError, match=text):
        export(source, tmp_path / "m.onnx", **{"weights": str(tmp_path / "w.pth"), **options})
    assert not (tmp_path / "m.onnx").exists()


# ---------------------------------------------------------------------------------------------------- torchvision


def picture(h: int, w: int) -> Image.Image:
    x = smooth_images(1, (h, w), seed=8)[0].permute(1, 2, 0).numpy()
    return Image.fromarray((127 + 40 * x).clip(0, 255).astype(np.uint8))


def test_torchvision_s_own_preprocessing_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights, all but their download: the recipe that the engine reads makes what ``transforms()`` makes."""
    from torchvision import models
    from torchvision.models import SqueezeNet1_1_Weights as Published

    state = models.squeezenet1_1().state_dict()
    monkeypatch.setattr(Published, "get_state_dict", lambda self, **_: state)
    done = export("torchvision:squeezenet1_1", tmp_path / "m.onnx", weights="imagenet1k_v1")
    assert done.source == "torchvision:squeezenet1_1 weights=imagenet1k_v1"
    assert done.notes == ()
    explainer = Explainer(tmp_path / "m.onnx")
    assert explainer.labels == Published.DEFAULT.meta["categories"]
    assert explainer.labels_source == "the model's metadata key 'labels'"
    recipe = recipe_of(tmp_path / "m.onnx")
    assert (recipe.short_side, recipe.size) == (256, (224, 224))
    image = picture(270, 310)
    expected = Published.DEFAULT.transforms(antialias=True)(image).numpy()
    assert np.abs(recipe.apply(image)[0] - expected).max() < 0.05


@pytest.mark.parametrize(
    ("source", "weights", "text"),
    [
        ("torchvision:resnet81", None, "torchvision has no classifier 'resnet81'.*\n.*\n.*did you mean 'resnet18'"),
        ("torchvision:resnet18", "IMAGENET1K_V9", "has no weights 'IMAGENET1K_V9'.*\n.*DEFAULT, IMAGENET1K_V1, none"),
        ("timm:resnet81", None, "timm has no classifier 'resnet81'.*\n.*\n.*did you mean 'resnet18'"),
        ("timm:resnet18", "a9_in1k", "timm has no weights 'a9_in1k' of resnet18.*\n.*a1_in1k"),
    ],
)
def test_unknown_names(tmp_path: Path, source: str, weights: str | None, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        export(source, tmp_path / "m.onnx", weights=weights)


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18"])
def test_a_download_that_fails(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from torchvision.models import ResNet18_Weights

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ExportError, match=r"could not be fetched\n.*Name or service not known\n.*--weights none"):
        export(source, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_random_weights_follow_the_seed() -> None:
    x = smooth_images(1, (64, 64), seed=0).numpy()
    scores = [
        find("torchvision:squeezenet1_1", weights="none", size=(64, 64), seed=seed).run(x).tobytes()
        for seed in (1, 1, 2)
    ]
    assert scores[0] == scores[1] != scores[2]


# ---------------------------------------------------------------------------------------------------- timm


def test_timm_s_own_preprocessing_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained, all but the download: 160 pixels from a shorter side of 168.4, cut off as timm does."""
    import timm
    from timm.data import create_transform, resolve_data_config

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: real(name, **more))
    done = export("timm:test_resnet.r160_in1k", tmp_path / "m.onnx")
    assert done.notes == ()
    labels = Explainer(tmp_path / "m.onnx").labels
    assert labels is not None
    assert (len(labels), labels[0]) == (1000, "tench, Tinca tinca")
    recipe = recipe_of(tmp_path / "m.onnx")
    assert (recipe.size, recipe.short_side, recipe.interpolation) == ((160, 160), 168, "bilinear")
    image = picture(300, 260)
    transform = create_transform(**resolve_data_config({}, model=real("test_resnet.r160_in1k")))
    assert np.abs(recipe.apply(image)[0] - transform(image).numpy()).max() < 0.05


def test_timm_s_random_weights_have_no_names(tmp_path: Path) -> None:
    done = export("timm:test_resnet", tmp_path / "m.onnx", weights="none", size=64)
    assert done.labels is None
    assert done.input_shape == (None, 3, 64, 64)
    assert "preprocessing is that of timm's test_resnet: are these weights used so?" in done.notes
    assert done.preprocessing is not None
    assert (done.preprocessing.size, done.preprocessing.short_side) == ((64, 64), 67)  # 168 * 64 / 160


# ---------------------------------------------------------------------------------------------------- command line


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_fgcam_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints, and that the next step that it names works."""
    file = tmp_path / "m.onnx"
    code, out, err = run(capsys, "export", "torchvision:squeezenet1_1", "--weights", "none", "--size", 64, "-o", file)
    assert (code, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert rows["file"].startswith(f"{file}   ")
    assert rows["source"] == "torchvision:squeezenet1_1 weights=none"
    assert rows["input"] == "[?, 3, 64, 64] NCHW"
    assert rows["classes"] == "1000, without names: --labels FILE"
    assert rows["proof"].startswith("scores equal to ")
    assert rows["next:"] == f"fgcam explain {file} picture.jpg"
    picture(70, 90).save(tmp_path / "picture.jpg")
    assert run(capsys, "explain", file, tmp_path / "picture.jpg", "-o", tmp_path / "maps")[0] == 0


def test_json_alone_is_on_stdout(tmp_path: Path) -> None:
    """In a process of its own: frameworks print, also from C++, and none of that is on stdout."""
    words = ["torch:test_export_torch:own_net", "--size", "20", "-o", str(tmp_path / "m.onnx"), "--json"]
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog", "bird"]))
    words += ["--preprocess", "tf", "--std", "0.25", "--labels", str(tmp_path / "names.json")]
    done = subprocess.run(
        [sys.executable, "-m", "fgcam_onnx", "export", *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["proof"]["difference"] <= record["proof"]["tolerance"] == 1e-4
    assert (record["preprocessing"]["mean"], record["preprocessing"]["std"]) == ([1.0], [0.25])
    assert record["labels"] == 3
    assert record["bytes"] == (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("resnet18",), 2, "OptionError: no source 'resnet18'"),
        (("torchvison:resnet18",), 2, "did you mean 'torchvision'"),
        (("torchvision:",), 2, "'torchvision:' names no model"),
        (("absent.keras",), 1, "ExportError: there is no file or folder 'absent.keras'"),
        (("weights.pth",), 1, "holds weights without their network"),
        (("done.onnx",), 1, "is an ONNX file already"),
        (("folder",), 1, "is no SavedModel"),
        (("torch:test_export_torch:own_net", "--size", "64x"), 2, "--size is '64x'"),
        (("torch:test_export_torch:own_net", "--mean", "a"), 2, "--mean is 'a'"),
        (("torch:test_export_torch:own_net", "--tolerance", "0"), 2, "tolerance is 0.0"),
        (("torch:test_export_torch:own_net", "--classes", "7"), 2, "this module has its classifier already"),
        (("torch:test_export_torch:own_net", "--mean", "1,2,3"), 2, "mean has 3 values for 1 channel"),
        (("torchvision:resnet18", "--classes", "7"), 2, "published weights have their own classes"),
    ],
)
def test_wrong_words(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: Any,
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("weights.pth", "done.onnx"):
        (tmp_path / name).write_bytes(b"x")
    found, out, err = run(capsys, "export", *words, "-o", "m.onnx")
    assert (found, out) == (code, "")
    assert text in err
    assert not (tmp_path / "m.onnx").exists()


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "export", "--help")
    assert code == 0
    for word in ("--weights", "--size", "--opset", "--labels", "--tolerance", "--seed", "--mean", "--std", "--scale"):
        assert word in out
    for kind in ("torchvision:NAME", "keras:NAME", "SavedModel", "Paddle"):
        assert kind in out


def test_torchvision_beside_a_foreign_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its compiled operators do not load, the error names both versions."""

    def broken(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return sys.modules[name]

    monkeypatch.setattr("fgcam_onnx.exporters.packages.importlib.import_module", broken)
    with pytest.raises(ExportError, match=r"torchvision \S+ is installed and cannot be imported\n.*nms.*torch 2"):
        from_torchvision.names()
