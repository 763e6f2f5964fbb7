"""Torch models for tests: random weights with live activations, and their ONNX files from both of torch's exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Exporter = Literal["dynamo", "legacy"]

LEGACY_OPSET = 13


def smooth_images(n: int, size: tuple[int, int], seed: int, channels: int = 3) -> Tensor:
    """Random pictures [n, channels, h, w]: soft blobs, finer blobs and a little grain, about N(0, 1) like a real input.

    The grain matters: on perfectly flat regions neighbouring activations tie, and a max-pool's winner would be decided
    by rounding.
    """
    g = torch.Generator().manual_seed(seed)
    octaves = []
    for cells, strength in ((3, 0.8), (9, 0.5)):
        coarse = torch.randn(n, channels, cells, cells, generator=g)
        octaves.append(strength * F.interpolate(coarse, size, mode="bicubic", align_corners=False))
    return sum(octaves, 0.2 * torch.randn(n, channels, *size, generator=g))


def spotlit_images(n: int, size: tuple[int, int], seed: int, channels: int = 3) -> Tensor:
    """Random pictures with one bright, soft spot somewhere near the middle, as a photo has a subject.

    For tests of denoising in float32. A subject gives the map a few directions stronger than the rest; evenly textured
    pictures under random weights give singular values within a few per cent of each other, and the space of the first
    d of them then turns by ten times the rounding error and more, in any implementation.
    """
    g = torch.Generator().manual_seed(seed)
    centre = 0.3 * torch.randn(n, 2, 1, 1, generator=g)
    rows = torch.linspace(-1, 1, size[0])[:, None]
    columns = torch.linspace(-1, 1, size[1])
    distance = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2
    spot = torch.exp(-distance / 0.1)[:, None]
    return smooth_images(n, size, seed + 1, channels) * (0.15 + spot)


SWITCHED_OFF = 1e-2


def live(
    model: nn.Module, seed: int, size: tuple[int, int] = (96, 96), images: int = 16, shift: float = 0.0
) -> nn.Module:
    """Give ``model`` random weights under which activations live and logits differ by class; returns it in eval mode.

    Kaiming weights; gamma of every norm uniform in [0.5, 1.5], so always positive, and a small beta; running statistics
    from one forward pass in training mode over random smooth images (momentum None: the plain mean). An untouched
    BatchNorm (mean 0, variance 1) would let activations grow or fade with depth. What networks begin training with
    switched off, such as the 1e-6 of a layer scale, is switched on.

    ``shift``: the mean beta of every BatchNorm. At 0 half of all units are dead, and a deep network of random weights
    is chaotic: it multiplies float32's rounding by a thousand and more. At 0.5 it multiplies it by ten.
    """
    g = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=g)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.05, generator=g)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=g)
                module.bias.normal_(shift, 0.2, generator=g)
            elif isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5, generator=g)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.2, generator=g)
            else:
                for parameter in module.parameters(recurse=False):
                    if parameter.abs().max() < SWITCHED_OFF:
                        parameter.uniform_(0.2, 0.8, generator=g)
        model.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        model(smooth_images(images, size, seed + 1))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what torch's exporters say about themselves: deprecations, opset advice, tracing hints. Nothing of ours."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for third_party in (r"torch\.", r"torchvision\.", r"onnxscript\.", r"onnx_ir\.", r"copyreg"):
            warnings.filterwarnings("ignore", module=third_party)
        warnings.filterwarnings("ignore", message=r".*legacy TorchScript-based ONNX export.*")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def export(
    model: nn.Module,
    x: Tensor,
    path: Path | None = None,
    exporter: Exporter = "dynamo",
    dynamic_batch: bool = True,
) -> bytes:
    """The ONNX file of ``model`` for inputs like ``x`` [n, c, h, w]; also written to ``path`` if one is given.

    ``dynamo``: the exporter on torch.export (opset of its choice, graph optimised). ``legacy``: TorchScript tracing,
    opset 13. ``dynamic_batch`` leaves the batch axis symbolic; height and width are always those of ``x``.
    Input and output are called "image" and "logits". Weights are inside the file, so it must stay below 2 GB.
    """
    buffer = io.BytesIO()
    _export(model, x, buffer, exporter, dynamic_batch)
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def export_beside(model: nn.Module, x: Tensor, path: Path, exporter: Exporter = "dynamo") -> Path:
    """As :func:`export`, with the weights in files beside ``path``: for a model of more than 2 GB. Returns ``path``."""
    _export(model, x, path, exporter, dynamic_batch=True)
    return path


def _export(model: nn.Module, x: Tensor, into: io.BytesIO | Path, exporter: Exporter, dynamic_batch: bool) -> None:
    model.eval()
    if dynamic_batch and len(x) == 1:
        x = x.expand(2, *x.shape[1:]).contiguous()  # torch.export takes an axis of length 1 for a constant
    with _quiet_exporter(), torch.no_grad():
        if exporter == "legacy":
            torch.onnx.export(
                model,
                (x,),
                str(into) if isinstance(into, Path) else into,
                dynamo=False,
                opset_version=LEGACY_OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}} if dynamic_batch else None,
            )
            return
        program = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},) if dynamic_batch else None,
        )
        assert program is not None
        if isinstance(into, Path):
            program.save(into, external_data=True)
        else:
            into.write(program.model_proto.SerializeToString())
