"""Read an ONNX model safely: from a path, from bytes or from a ModelProto.

A model file is untrusted input. External data must lie inside the model's folder, every tensor's stated size is
compared with the bytes that are there before anything is allocated for it, and the checker of the onnx package
has the last word on the structure.

The loaded model keeps its large initializers apart (``weights``): what is left is a light ModelProto that can be
copied, checked and given further outputs for nothing, while every weight exists in memory once.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from fgcam_onnx.errors import ModelError

__all__ = ["ONNX_DOMAINS", "LoadedModel", "load"]

ONNX_DOMAINS = ("", "ai.onnx")
# An initializer of at least this many bytes is held as a NumPy array beside the graph.
LARGE = 1024


@dataclass(frozen=True)
class LoadedModel:
    """A checked model: ``proto`` without its large initializers, which are in ``weights`` by name.

    ``sha256`` covers the model file (or its serialized bytes) and, in order of their names, all external data.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, np.ndarray]
    sha256: str
    path: Path | None
    metadata: Mapping[str, str]


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> LoadedModel:
    """Read, size-check and structure-check ``model``.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, not valid, or points outside its folder.
    """
    path: Path | None = None
    digest = hashlib.sha256()
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        digest.update(proto.SerializeToString(deterministic=True))
    else:
        if isinstance(model, bytes):
            content, shown = model, f"{len(model):,} bytes"
        else:
            path = Path(model)
            content, shown = _read(path), str(path)
        digest.update(content)
        proto = _parse(content, shown)
        del content
    name = str(path) if path else "the given model"

    folder = path.resolve().parent if path else None
    weights: dict[str, np.ndarray] = {}
    external: set[Path] = set()
    for tensor in _all_tensors(proto.graph):
        if external_data_helper.uses_external_data(tensor):
            external.add(_pull_external(tensor, folder, name))
        _check_size(tensor, name)
    for file in sorted(external):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    if proto.functions:
        proto = _inline(proto, name)
    for tensor in proto.graph.initializer:
        if tensor.ByteSize() >= LARGE and tensor.data_type != TensorProto.STRING:
            weights[tensor.name] = numpy_helper.to_array(tensor)
    light = _without(proto, weights)
    _check(light, weights, name)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return LoadedModel(light, weights, digest.hexdigest(), path, metadata)


def _read(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(path.glob("*.onnx"))
        raise ModelError(
            f"{path} is a folder, not a model file",
            known=f"it holds {', '.join(p.name for p in inside[:5])}" if inside else "it holds no .onnx file",
            next=f"give the file: {inside[0]}" if inside else "give the path of an .onnx file",
        )
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        near = sorted(path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        raise ModelError(
            f"there is no file {path}",
            known=f"{path.parent} holds {', '.join(p.name for p in near[:5])}" if near else None,
            next="check the path",
        ) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", next="check its permissions") from error


def _parse(content: bytes, shown: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf raises a class of its own per implementation
        raise ModelError(
            f"{shown} is not an ONNX model: its bytes do not parse",
            known=f"{len(content):,} bytes, starting with {content[:8]!r}",
            next="the file is truncated, or of another format: export or download it again",
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(
            f"{shown} is not an ONNX model: it has {len(proto.graph.node)} nodes and "
            f"{len(proto.opset_import)} opset imports",
            known=f"{len(content):,} bytes, starting with {content[:8]!r}",
            next="the file is truncated, or of another format: export or download it again",
        )
    return proto


def _all_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers and tensor attributes, also of subgraphs."""
    stack = [graph]
    while stack:
        graph = stack.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def _elements(tensor: TensorProto, name: str) -> int:
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}", at=name)
    return math.prod(tensor.dims)


def _stored_bytes(tensor: TensorProto, name: str) -> int | None:
    """Bytes that the stated shape and type take when stored raw; None for strings."""
    if tensor.data_type == TensorProto.STRING:
        return None
    try:
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError) as error:
        raise ModelError(f"tensor {tensor.name!r} has unknown data type {tensor.data_type}", at=name) from error
    elements = _elements(tensor, name)
    four_bit = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
    return (elements + 1) // 2 if four_bit else elements * item.itemsize


def _check_size(tensor: TensorProto, name: str) -> None:
    expected = _stored_bytes(tensor, name)
    if expected is None or not tensor.HasField("raw_data"):
        # Typed fields are arrays already in memory: to_array cannot allocate beyond them, but a lie about the
        # shape must still be an error here and not a crash later.
        held = max(
            len(tensor.float_data) // (2 if tensor.data_type in (TensorProto.COMPLEX64,) else 1),
            len(tensor.int32_data),
            len(tensor.int64_data),
            len(tensor.double_data) // (2 if tensor.data_type == TensorProto.COMPLEX128 else 1),
            len(tensor.uint64_data),
            len(tensor.string_data),
        )
        needed = _elements(tensor, name)
        if needed > max(held * 2, held + 8):  # four-bit types pack two in one entry
            raise ModelError(
                f"tensor {tensor.name!r} states {needed:,} elements and holds {held:,}",
                at=name,
                next="the file is damaged: export or download it again",
            )
    elif len(tensor.raw_data) != expected:
        raise ModelError(
            f"tensor {tensor.name!r} states {expected:,} bytes and holds {len(tensor.raw_data):,}",
            at=name,
            known=f"shape {list(tensor.dims)}, type {TensorProto.DataType.Name(tensor.data_type)}",
            next="the file is damaged: export or download it again",
        )


def _pull_external(tensor: TensorProto, folder: Path | None, name: str) -> Path:
    """Replace the reference by the bytes it points at; the file, for the checksum."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"tensor {tensor.name!r} of {name}"
    if folder is None:
        raise ModelError(
            f"the model keeps weights in a side file ({location!r}) and was not given as a path",
            at=where,
            next="give the path of the .onnx file, with the side file beside it",
        )
    target = Path(os.path.realpath(folder / location))
    if not location or os.path.isabs(location) or not target.is_relative_to(folder):
        raise ModelError(
            f"external data {location!r} lies outside the model's folder",
            at=where,
            known=f"it resolves to {target}, the folder is {folder}",
            next="a model may only read files beside it: do not trust this file",
        )
    if not target.is_file():
        raise ModelError(
            f"the side file {location!r} with the model's weights is missing",
            at=where,
            known=f"looked in {folder}",
            next="copy it beside the .onnx file",
        )
    expected = _stored_bytes(tensor, name)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else expected
    except ValueError as error:
        raise ModelError(f"external data of {location!r} has an offset or length that is no number", at=where) from error
    if expected is None or length != expected or offset < 0 or offset + length > target.stat().st_size:
        raise ModelError(
            f"external data {location!r} does not hold what the model states",
            at=where,
            known=f"{expected} bytes needed, {length} stated at offset {offset}, file of {target.stat().st_size} bytes",
            next="the side file belongs to another model or is truncated: copy it again",
        )
    with target.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return target


def _inline(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:
        raise ModelError(f"{name} has local functions that cannot be inlined: {error}") from error


def _without(proto: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy in which the given initializers are references to a side file that is never read."""
    light = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, (str, int, bytes)):
            setattr(light, field.name, value)
        elif hasattr(value, "add"):
            getattr(light, field.name).extend(value)
    graph = light.graph
    for field, value in proto.graph.ListFields():
        if field.name == "initializer":
            graph.initializer.extend(t if t.name not in weights else _reference(t) for t in value)
        elif isinstance(value, str):
            setattr(graph, field.name, value)
        else:
            getattr(graph, field.name).extend(value)
    return light


def _reference(tensor: TensorProto) -> TensorProto:
    reference = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    reference.data_location = TensorProto.EXTERNAL
    entry = reference.external_data.add()
    entry.key, entry.value = "location", "weights"
    return reference


def _check(light: onnx.ModelProto, weights: Mapping[str, np.ndarray], name: str) -> None:
    """onnx's checker on the light graph; its held-back weights stand there as typed inputs."""
    from fgcam_onnx.graph.shapes import typed_probe

    probe = typed_probe(LoadedModel(light, weights, "", None, {}))
    try:
        onnx.checker.check_model(probe)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{name} is not a valid ONNX model",
            known=reason[:300],
            next="export it again, or report the file to whoever made it",
        ) from error
