"""Read an ONNX model safely: from a path, from bytes or from a ModelProto.

A model file is untrusted input. External data must lie inside the model's folder, every tensor's stated size is
compared with the bytes that are there before anything is allocated for it, and the checker of the onnx package
has the last word on the structure.

The loaded model keeps its large initializers apart (``weights``): what is left is a light ModelProto that can be
copied, checked and given further outputs for nothing, while every weight exists in memory once.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from fgcam_onnx import memory
from fgcam_onnx.errors import FgcamError, ModelError
from fgcam_onnx.folder import model_in
from fgcam_onnx.graph import wire
from fgcam_onnx.graph.order import sort_nodes

__all__ = ["ONNX_DOMAINS", "LoadedModel", "captured", "damaged", "light_model", "load"]

ONNX_DOMAINS = ("", "ai.onnx")
# An initializer of at least this many bytes is held as a NumPy array beside the graph.
LARGE = 1024
# Inside a file, raw bytes of at least this many are read past the parser.
STREAMED = 1 << 16
# Types whose elements lie in a file as they lie in an array.
PLAIN: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
}
# Further types of arrays that onnxruntime takes over as they are; others stay in the graph.
HELD = (TensorProto.BOOL, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)
# Two elements in a byte; onnx before 1.18 has no 4-bit float.
FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4, getattr(TensorProto, "FLOAT4E2M1", -1))
EXTERNAL_KEYS = ("location", "offset", "length", "checksum", "basepath")
NUMBER = re.compile(r"-?[0-9]{1,19}")
# Bytes that an element of a sparse tensor may take, made dense; and the part of the memory that they may have.
DENSE, SPARSE = 8, 8
KINDS = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
# Nodes after inlining of local functions: functions that call functions can state 2^n nodes in n lines.
MOST_NODES = 1_000_000
# Rounds of a Loop, and of the loops inside it together: nobody can wait for 2^62 of them.
MOST_ROUNDS = 10_000


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


@contextlib.contextmanager
def damaged(name: str) -> Iterator[None]:
    """Turns what a file that contradicts itself makes Python say into a ModelError.

    onnx's checker looks at each part and not at how they fit: text that is not UTF-8, a BatchNormalization with
    fewer scales than channels, a shape that its data does not fill.
    """
    try:
        yield
    except FgcamError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} is damaged: its parts contradict each other",
            known=" ".join(f"{type(error).__name__}: {error}".split())[:300],
            next="export or download it again",
        ) from error


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto | LoadedModel) -> LoadedModel:
    """Read, size-check and structure-check ``model``. A folder stands for the model in it; a loaded one is as it is.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, not valid, or points outside its folder; a folder holds no
            model, or several.
    """
    if isinstance(model, LoadedModel):
        return model
    path: Path | None = None
    digest = hashlib.sha256()
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        digest.update(proto.SerializeToString(deterministic=True))
        if not proto.graph.node or not proto.opset_import:
            raise ModelError(
                f"the given ModelProto has {len(proto.graph.node)} nodes and {len(proto.opset_import)} opset imports",
                next="is it the result of onnx.load?",
            )
    else:
        if isinstance(model, bytes):
            content, shown = model, f"{len(model):,} bytes"
        else:
            path = Path(model)
            return _load_file(model_in(path) if os.path.isdir(path) else path, digest)
        digest.update(content)
        proto = _parse(content, shown)
        del content
    with damaged("the given model"):
        return _load(proto, digest, None, "the given model", {})


def _load_file(path: Path, digest: hashlib._Hash) -> LoadedModel:
    """From a file: its large weights go straight into arrays, past the parser, if it has the usual form."""
    name = str(path)
    with _open(path) as stream:
        size = 0
        while block := stream.read(1 << 22):
            digest.update(block)
            size += len(block)
        found = wire.split(stream, size, STREAMED)
        stream.seek(0)
        content, payloads = found or (stream.read(), [])
        proto = _parse(content, name)
        with damaged(name):
            weights = {}
            for payload in payloads:
                tensor = proto.graph.initializer[payload.index]
                stream.seek(payload.offset)
                if _is_plain(tensor) and not external_data_helper.uses_external_data(tensor):
                    _check_length(tensor, payload.length, name)
                    weights[tensor.name] = _array(stream, tensor)
                else:
                    tensor.raw_data = stream.read(payload.length)
            return _load(proto, digest, path, name, weights)


def _is_plain(tensor: TensorProto) -> bool:
    """Is each element one NumPy number in the file?"""
    return tensor.data_type in PLAIN


def _array(stream: BinaryIO, tensor: TensorProto) -> np.ndarray:
    """The tensor's array, read in place. Its size was checked against what the file holds."""
    array: np.ndarray = np.empty(tuple(tensor.dims), PLAIN[tensor.data_type])
    read = stream.readinto(array.reshape(-1).view(np.uint8).data) if array.size else 0  # type: ignore[attr-defined]
    if read != array.nbytes:
        raise EOFError(f"{read} of {array.nbytes} bytes of {tensor.name!r}")
    return array


def _load(
    proto: onnx.ModelProto, digest: hashlib._Hash, path: Path | None, name: str, weights: dict[str, np.ndarray]
) -> LoadedModel:
    for node in _all_nodes(proto.graph.node):
        for word in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if not isinstance(word, str):  # protobuf gives text that is not UTF-8 as bytes
                raise ModelError(
                    f"{name} is damaged: the name {word!r} is not UTF-8", next="export or download it again"
                )
        if node.domain == "ai.onnx":  # the long name of ONNX's own domain: onnxruntime knows both, onnx's checker one
            node.domain = ""
    for opset in proto.opset_import:
        if opset.domain == "ai.onnx" and not any(other.domain == "" for other in proto.opset_import):
            opset.domain = ""
    for value in proto.graph.value_info:
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type not in KINDS:
            raise ModelError(
                f"tensor {value.name!r} has no type that ONNX knows", at=name
            )  # nor does onnxruntime load it
    folder = path.resolve().parent if path else None
    external: set[Path] = set()
    for tensor in proto.graph.initializer:
        if external_data_helper.uses_external_data(tensor) and _is_plain(tensor):
            file, offset = _find_external(tensor, folder, name)
            with file.open("rb") as stream:
                stream.seek(offset)
                weights[tensor.name] = _array(stream, tensor)
            external.add(file)
            _forget_external(tensor)
    read = [t for t in proto.graph.initializer if t.name not in weights or t.HasField("raw_data")]
    for tensor in (*read, *_inner_tensors(proto)):
        if external_data_helper.uses_external_data(tensor):
            file, offset = _find_external(tensor, folder, name)
            with file.open("rb") as stream:
                stream.seek(offset)
                tensor.raw_data = stream.read(_stored_bytes(tensor, name) or 0)
            external.add(file)
            _forget_external(tensor)
        _check_size(tensor, name)
    for file in sorted(external):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    _check_sparse(proto, name)
    if proto.functions:
        proto = _inline(proto, name)
    light = light_model(proto, weights)
    sort_nodes(light.graph, captured)
    _check(light, weights, name)
    _check_rounds(light, name)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    for word in (*metadata, *metadata.values()):
        if not isinstance(word, str):
            raise ModelError(f"{name} is damaged: its metadata is not UTF-8", next="export or download it again")
    return LoadedModel(light, weights, digest.hexdigest(), path, metadata)


def _open(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is no regular file", next="give the path of an .onnx file")
        return path.open("rb")
    except FileNotFoundError as error:
        near = sorted(path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        raise ModelError(
            f"there is no file {path}",
            known=f"{path.parent} holds {', '.join(p.name for p in near[:5])}" if near else None,
            next="check the path",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"{str(path)!r} cannot be read: {reason}", next="check the path and its permissions"
        ) from error


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


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                stack.extend(graph.node for graph in (attribute.g, *attribute.graphs))


def _check_rounds(proto: onnx.ModelProto, name: str) -> None:
    """Every Loop says how often it runs, in a number that is there to be read, and it is not for ever."""
    numbers = {t.name: t for t in proto.graph.initializer}
    numbers |= {
        n.output[0]: a.t for n in proto.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    stack = [(node, 1) for node in proto.graph.node]
    while stack:
        node, around = stack.pop()
        if node.op_type == "Loop" and node.domain in ONNX_DOMAINS:
            count = numbers.get(node.input[0]) if node.input else None
            values = (
                numpy_helper.to_array(count).ravel() if count is not None and count.ByteSize() < LARGE else np.zeros(0)
            )
            rounds = int(values[0]) if values.size == 1 and values.dtype.kind == "i" else None
            if rounds is None or rounds * around > MOST_ROUNDS:
                often = "nobody knows how often" if rounds is None else f"{rounds * around:,} times"
                raise ModelError(
                    f"{name} has a Loop that runs {often}",
                    at=f"node {node.name!r}",
                    known=f"a Loop may run {MOST_ROUNDS:,} times, and the model must state how often as a constant",
                    next="export the model without control flow, or do not trust this file",
                )
            around *= max(1, rounds)
        stack.extend((inner, around) for a in node.attribute for graph in (a.g, *a.graphs) for inner in graph.node)


def captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """The tensors that a node's subgraphs read from the graph around it: inputs that the node does not list."""
    read: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                read.update(dict.fromkeys(n for n in (*inner.input, *captured(inner)) if n and n not in own))
                own.update(inner.output)
            read.update(dict.fromkeys(value.name for value in graph.output if value.name not in own))
    return tuple(read)


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor but the graph's initializers: attributes, sparse ones, those of subgraphs and functions."""
    nodes = [*_all_nodes(proto.graph.node), *(n for function in proto.functions for n in _all_nodes(function.node))]
    attributes = [a for node in nodes for a in node.attribute]
    graphs = [g for a in attributes for g in (a.g, *a.graphs)]
    yield from (tensor for graph in graphs for tensor in graph.initializer)
    yield from (tensor for a in attributes for tensor in ([a.t] if a.HasField("t") else a.tensors))
    inner = [s for a in attributes for s in (a.sparse_tensor, *a.sparse_tensors)]
    for sparse in (*(s for graph in (proto.graph, *graphs) for s in graph.sparse_initializer), *inner):
        yield from (t for t in (sparse.values, sparse.indices) if t.ByteSize())


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
    four_bit = tensor.data_type in FOUR_BITS
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
    else:
        _check_length(tensor, len(tensor.raw_data), name)


def _check_sparse(proto: onnx.ModelProto, name: str) -> None:
    """Sparse tensors are made dense before anything runs: together no more than a part of the memory."""
    attributes = [a for node in _all_nodes(proto.graph.node) for a in node.attribute]
    found = [*proto.graph.sparse_initializer, *(s for a in attributes for s in (a.sparse_tensor, *a.sparse_tensors))]
    found += [sparse for a in attributes for graph in (a.g, *a.graphs) for sparse in graph.sparse_initializer]
    dense = 0
    for sparse in found:
        if any(d < 0 for d in sparse.dims):
            raise ModelError(f"sparse tensor {sparse.values.name!r} has a negative dimension", at=name)
        dense += math.prod(sparse.dims) * DENSE
    if dense > memory.available() // SPARSE:
        raise ModelError(
            f"the sparse tensors of {name} would have {dense:,} bytes",
            known=f"they may take {memory.available() // SPARSE:,}",
            next="export the model with dense weights, or do not trust this file",
        )


def _check_length(tensor: TensorProto, length: int, name: str) -> None:
    expected = _stored_bytes(tensor, name)
    if length != expected:
        raise ModelError(
            f"tensor {tensor.name!r} states {expected:,} bytes and holds {length:,}",
            at=name,
            known=f"shape {list(tensor.dims)}, type {TensorProto.DataType.Name(tensor.data_type)}",
            next="the file is damaged: export or download it again",
        )


def _forget_external(tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _find_external(tensor: TensorProto, folder: Path | None, name: str) -> tuple[Path, int]:
    """The file that holds the tensor's bytes, inside the model's folder, and where in it they start."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    strange = [key for key in entries if key not in EXTERNAL_KEYS and not key.startswith("prepacked")]
    if strange:  # onnxruntime does not read past these either
        raise ModelError(
            f"external data of tensor {tensor.name!r} has an entry {strange[0][:80]!r} that nobody knows", at=name
        )
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
    if not target.is_file() or location.endswith(("/", os.sep)):
        raise ModelError(
            f"the side file {location!r} with the model's weights is missing",
            at=where,
            known=f"looked in {folder}",
            next="copy it beside the .onnx file",
        )
    expected = _stored_bytes(tensor, name)
    stated = [entries[key] for key in ("offset", "length") if key in entries]
    if not all(NUMBER.fullmatch(text) for text in stated):
        raise ModelError(f"external data of {location!r} has an offset or length that is no number", at=where)
    offset = int(entries.get("offset", "0"))
    length = int(entries["length"]) if "length" in entries else expected
    if expected is None or length != expected or offset < 0 or offset + length > target.stat().st_size:
        raise ModelError(
            f"external data {location!r} does not hold what the model states",
            at=where,
            known=f"{expected} bytes needed, {length} stated at offset {offset}, file of {target.stat().st_size} bytes",
            next="the side file belongs to another model or is truncated: copy it again",
        )
    return target, offset


def _inline(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    from onnx import inliner

    if _inlined_nodes(proto) > MOST_NODES:
        raise ModelError(
            f"{name} has local functions that grow to more than {MOST_NODES:,} nodes",
            next="export it without functions, or do not trust this file",
        )
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:
        raise ModelError(f"{name} has local functions that cannot be inlined: {error}") from error


def _inlined_nodes(proto: onnx.ModelProto) -> int:
    """How many nodes the graph has once every call of a local function is written out; 0 where calls form a cycle."""
    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in _all_nodes(f.node)] for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    try:
        for name in TopologicalSorter(
            {name: set(body) & bodies.keys() for name, body in bodies.items()}
        ).static_order():
            sizes[name] = min(sum(sizes.get(call, 1) for call in bodies[name]), MOST_NODES + 1)
    except CycleError:  # the inliner names it
        return 0
    return sum(sizes.get((n.domain, n.op_type), 1) for n in _all_nodes(proto.graph.node))


def light_model(proto: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """``proto`` without its large initializers, which go to ``weights``."""
    for tensor in proto.graph.initializer:
        if tensor.name not in weights and tensor.ByteSize() >= LARGE and tensor.data_type in (*PLAIN, *HELD):
            weights[tensor.name] = numpy_helper.to_array(tensor)
    return _without(proto, weights)


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
    for value in probe.graph.output:  # the checker wants a shape, any shape; the runtime does not
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(probe)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{name} is not a valid ONNX model",
            known=reason[:300],
            next="export it again, or report the file to whoever made it",
        ) from error
