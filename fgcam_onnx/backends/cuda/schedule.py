"""Operations grouped into kernels.

A *group* is one pass over the cells of one result. It may start from an *anchor* (a convolution, a window sum, ...)
that computes each cell in a way of its own; then follow elementwise operations on that cell, and sums of it for the
books. So ``x * adjoint(share(r, conv(x, w)))`` is two kernels, not four, and a residual Add with its shares, products
and totals is one.

    an elementwise operation joins the group that computed its latest operand, if it reads that cell by cell
    a total joins a group that has its operands in registers anyway
    what only totals need is computed where they are taken, and never stored

Only groups without an anchor take totals: the cells of an anchor's block may belong to several images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fgcam_onnx.backends.cuda.operations import (
    Buffer,
    Contraction,
    Gather,
    Map,
    MatMul,
    MaxRoute,
    Operation,
    Place,
    ScatterAdd,
    Settle,
    Total,
    Value,
    WindowSum,
)

__all__ = ["Group", "schedule"]

# Kernels of these end with what the group's elementwise operations make of each cell.
ANCHORS = (Contraction, Gather, MatMul, MaxRoute, Place, ScatterAdd, WindowSum)
# Arrays that one kernel reads or writes: more would only cost registers.
MOST_ARRAYS = 12


@dataclass(eq=False)
class Group:
    """One kernel: ``anchor``, then ``maps`` in order, then ``totals``. ``stored``: buffers that are written."""

    anchor: Operation | None
    position: float
    maps: list[Map] = field(default_factory=list)
    totals: list[Total] = field(default_factory=list)
    stored: list[Buffer] = field(default_factory=list)
    images: int | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (*((self.anchor,) if self.anchor is not None else ()), *self.maps)

    @property
    def computed(self) -> set[Buffer]:
        """What it has in registers, stored or not."""
        return {operation.output for operation in self.operations}

    @property
    def size(self) -> int:
        """Cells of its results."""
        return self.operations[0].output.size if self.operations else self.totals[0].inputs[0].size

    @property
    def reads(self) -> list[Value]:
        """What it takes from memory, each once."""
        inside = self.computed
        values = [value for operation in (*self.operations, *self.totals) for value in operation.inputs]
        return [v for v in dict.fromkeys(values) if v.buffer not in inside]

    @property
    def takes_maps(self) -> bool:
        return self.anchor is None or isinstance(self.anchor, ANCHORS)


def schedule(operations: Sequence[Operation], outputs: Mapping[str, Value]) -> list[Group]:
    """Groups in the order in which they run. What no output needs is left out."""
    needed = _needed(operations, outputs)
    finals = {value.buffer for value in outputs.values()}
    quiet = _only_for_totals(needed, finals)
    made: dict[Buffer, Group] = {}
    groups: list[Group] = []
    for operation in needed:
        if isinstance(operation, Total) or operation in quiet:
            continue
        joined = _group_for(operation, groups, made) if isinstance(operation, Map) else None
        if joined is None:
            joined = Group(None if isinstance(operation, Map) else operation, position=len(groups))
            groups.append(joined)
        if isinstance(operation, Map):
            joined.maps.append(operation)
        made[operation.output] = joined
    _take_totals([o for o in needed if isinstance(o, Total)], quiet, groups, made)
    groups.sort(key=lambda group: group.position)
    outside = {value.buffer for group in groups for value in group.reads} | finals
    for group in groups:
        group.stored = [o.output for o in group.operations if o.output in outside and made.get(o.output) is group]
    return groups


def _needed(operations: Sequence[Operation], outputs: Mapping[str, Value]) -> list[Operation]:
    wanted: set[Operation] = set()
    waiting = [operation for value in outputs.values() for operation in _writers(value)]
    while waiting:
        operation = waiting.pop()
        if operation not in wanted:
            wanted.add(operation)
            waiting += [writer for value in operation.inputs for writer in _writers(value)]
    return [operation for operation in operations if operation in wanted]


def _writers(value: Value) -> Iterable[Operation]:
    if value.buffer.kind == "tally":
        return value.buffer.totals
    return () if value.buffer.writer is None else (value.buffer.writer,)


def _only_for_totals(operations: Sequence[Operation], finals: set[Buffer]) -> set[Operation]:
    """Elementwise operations whose results end in totals alone."""
    readers: dict[Buffer, list[Operation]] = {}
    for operation in operations:
        for value in operation.inputs:
            readers.setdefault(value.buffer, []).append(operation)
    quiet: set[Operation] = set()
    for operation in reversed(operations):
        if isinstance(operation, Map) and operation.output not in finals:
            direct = all(v.direct for r in readers[operation.output] for v in r.inputs if v.buffer is operation.output)
            if direct and all(isinstance(r, Total) or r in quiet for r in readers[operation.output]):
                quiet.add(operation)
    return quiet


def _group_for(operation: Map, groups: Sequence[Group], made: Mapping[Buffer, Group]) -> Group | None:
    """The group that ``operation`` can be part of, None if it needs one of its own."""
    sources = [made[value.buffer] for value in operation.inputs if value.buffer in made]
    latest = max(sources, key=lambda group: group.position, default=None)
    if latest is not None and _fits(operation, latest):
        return latest
    # Nothing was computed for it that late: two readers of one array next to each other still share a pass.
    last = groups[-1] if groups else None
    if last is None or last.anchor is not None or last in sources or not _fits(operation, last):
        return None
    shares_a_read = any(value.buffer.kind != "constant" and value in last.reads for value in operation.inputs)
    return last if shares_a_read else None


def _fits(operation: Map, group: Group) -> bool:
    inside = group.computed
    cellwise = all(v.direct and v.size == group.size for v in operation.inputs if v.buffer in inside)
    if not (group.takes_maps and operation.output.size == group.size and cellwise):
        return False
    new = [v for v in operation.inputs if v.buffer not in inside and v.buffer.number is None]
    return len({*group.reads, *new}) + len(group.maps) < MOST_ARRAYS


def _take_totals(
    totals: Sequence[Total], quiet: set[Operation], groups: list[Group], made: Mapping[Buffer, Group]
) -> None:
    """Give every total to a group, those that read most first: the others find their operands there."""

    def way(total: Total) -> tuple[list[Map], list[Value]]:
        """The quiet operations that lead to the total, in order, and what they start from."""
        steps: dict[Map, None] = {}
        bases: dict[Value, None] = {}

        def visit(value: Value) -> None:
            writer = value.buffer.writer
            if writer in quiet:
                assert isinstance(writer, Map)
                for below in writer.inputs:
                    visit(below)
                steps[writer] = None
            elif value.buffer.number is None:
                bases[value] = None

        visit(total.inputs[0])
        return list(steps), list(bases)

    # A tally that a rule goes on computing with must be complete by then: its totals do not wait for company.
    urgent = {t for group in groups if isinstance(group.anchor, Settle) for t in group.anchor.inputs[0].buffer.totals}
    ways = {total: way(total) for total in totals}
    for total in sorted(totals, key=lambda t: -len(ways[t][1])):
        steps, bases = ways[total]
        ready = max((made[value.buffer].position for value in bases if value.buffer in made), default=-1.0)
        images = total.inputs[0].shape[0]

        def serves(group: Group, bases: list[Value] = bases, ready: float = ready, images: int = images,
                   size: int = total.inputs[0].size) -> bool:  # fmt: skip
            if group.anchor is not None or group.position < ready or group.size != size:
                return False
            inside, read = group.computed, group.reads
            return group.images in (None, images) and all(
                (v.direct if v.buffer in inside else v in read) for v in bases
            )

        group = None
        if total not in urgent:
            group = next((g for g in sorted(groups, key=lambda g: g.position) if serves(g)), None)
        if group is None:
            group = Group(None, position=ready + 0.5)
            groups.append(group)
        group.images = images
        group.maps += [step for step in steps if step not in group.maps]
        group.totals.append(total)
