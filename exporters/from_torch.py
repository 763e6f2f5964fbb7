"""PyTorch modules, through ``torch.onnx.export(dynamo=True)``; and weights from files, never unpickled.

Layout NCHW; the batch is left free, height and width are fixed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgcam_onnx.errors import ExportError, OptionError
from fgcam_onnx.exporters import code, packages
from fgcam_onnx.exporters import weights as weight_words
from fgcam_onnx.exporters.base import Source

__all__ = ["channels", "load", "load_factory", "load_object", "load_state", "seed"]

NEEDS = ("onnxscript", "torch")
# Entries of a training checkpoint that hold the state dict, and what wrappers put before its names.
NESTED = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
# Below this the weights are in the file, above it beside it: a protobuf ends at 2 GiB.
INSIDE = 1_900_000_000


def load(
    module: Any,
    *,
    input_shape: Sequence[int],
    opset: int | None = None,
    name: str = "torch",
    needs: tuple[str, ...] = NEEDS,
    recipe: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """A source from an ``nn.Module`` that takes ``[n, *input_shape]`` = ``[n, c, h, w]`` and gives ``[n, classes]``.

    The module is put into evaluation mode. ``opset``: of the file, the exporter's own choice if None.

    Raises:
        MissingFrameworkError, ExportError: torch or onnxscript is missing, or not of a version that serves.
    """
    torch = packages.load("torch")
    packages.load("onnxscript", beside="torch")
    module.eval()
    device = next((tensor.device for tensor in module.parameters()), "cpu")

    def run(x: Any) -> Any:
        with torch.no_grad():
            out = module(torch.from_numpy(x).to(device))
        return out.cpu().numpy() if isinstance(out, torch.Tensor) else out

    def convert(path: Path) -> Sequence[str]:
        # Two pictures: torch.export takes an axis of length 1 for a constant.
        x = torch.zeros(2, *input_shape, device=device)
        weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                (x,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
            )
        program.save(str(path), external_data=weights > INSIDE)
        return ()

    return Source(name, run, convert, tuple(input_shape), "NCHW", needs, recipe, labels, notes)


def seed(number: int) -> None:
    """Make the random weights of the modules that are built next those of ``number``."""
    packages.load("torch").manual_seed(number)


def load_object(
    module: Any,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
    name: str | None = None,
) -> Source:
    """A source from a module in memory; see :func:`load_factory`."""
    if classes is not None:
        raise OptionError("classes is for networks of a catalogue", known="this module has its classifier already")
    name = name or f"torch:{type(module).__name__}"
    if weight_words.is_file(weights):
        assert weights is not None
        load_state(module, weights)
        name += f" weights={Path(weights).name}"
    elif weights is not None and not weight_words.random(weights):
        raise OptionError(f"weights are {weights!r}", known="a file, or none: those that the module has")
    return load(module, input_shape=(channels(module), *(size or (224, 224))), opset=opset, name=name)


def load_factory(
    word: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    classes: int | None = None,
) -> Source:
    """A source from ``package.module:factory``: a function without arguments that returns the ``nn.Module``.

    ``weights``: a file for :func:`load_state`; None leaves those that the factory gave. ``size``: height and width of
    the input, 224x224 if None; the channels are those of the module's first convolution. ``classes`` is the factory's
    own business, and refused.
    """
    torch = packages.load("torch")
    module = code.call(word)
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{word} returns a {type(module).__name__}, not a torch.nn.Module")
    return load_object(module, weights=weights, size=size, opset=opset, classes=classes, name=f"torch:{word}")


def channels(module: Any) -> int:
    """Of the picture: what the first convolution takes, 3 where there is none."""
    torch = packages.load("torch")
    first = next((m for m in module.modules() if isinstance(m, torch.nn.Conv2d)), None)
    return 3 if first is None else int(first.in_channels)


def load_state(module: Any, file: str | os.PathLike[str]) -> None:
    """Read weights into a module: a state dict in ``.safetensors``, or one of tensors alone in any file of torch.save.

    Training checkpoints are understood: the entry ``state_dict`` or ``model``, names that begin with ``module.``.
    Nothing in the file is executed: torch's own ``weights_only`` reader takes tensors and plain containers.

    Raises:
        ExportError: the file cannot be read, holds more than tensors, or does not fit the module, naming the weights.
    """
    state = _tensors(Path(file))
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    strange = [key for key in state if key not in wanted]
    other = [
        f"{key} is {list(state[key].shape)}, the network has {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or strange or other:
        parts = (("missing", missing), ("unknown", strange), ("", other))
        known = "; ".join(f"{label} {_some(names)}".strip() for label, names in parts if names)
        way = "another number of classes is --classes N" if other and not missing else "is this the architecture?"
        raise ExportError(f"the weights in {str(file)!r} are not those of this network", known=known, next=way)
    module.load_state_dict({**wanted, **state})


def _tensors(file: Path) -> dict[str, Any]:
    torch = packages.load("torch")
    if not file.is_file():
        raise ExportError(f"there is no file of weights {str(file)!r}", next="check the path")
    try:
        if file.suffix == ".safetensors":
            packages.load("safetensors", beside="torch")
            from importlib import import_module

            state = import_module("safetensors.torch").load_file(str(file))
        else:
            state = torch.load(str(file), map_location="cpu", weights_only=True)
    except ExportError:
        raise
    except Exception as error:  # pickle, zip and safetensors have their own classes
        raise ExportError(
            f"the weights in {str(file)!r} cannot be read without running code from the file",
            known=packages.brief(error, 160),
            next="save the state dict alone: torch.save(model.state_dict(), file), or .safetensors",
        ) from error
    for entry in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(entry), Mapping):
            state = state[entry]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ExportError(f"{str(file)!r} holds no state dict", known=f"it is a {type(state).__name__}")
    return dict(state)


def _some(names: Sequence[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
