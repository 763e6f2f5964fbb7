"""Operations grouped into kernels.

A *group* is one pass over the cells of one result. It may start from an *anchor* (a convolution, a window sum, ...)
that computes each cell in a way of its own; then follow elementwise operations on that cell, and sums of it for the
books. So ``x * adjoint(share(r, conv(x, w)))`` is two kernels, not four, and a residual Add with its shares, products
and totals is one.

    an elementwise operation joins the group that computed its latest operand, if it reads that cell by cell;
    an anchor's group only while nothing in it must be stored: from there on a pass that also takes totals costs less
    a total joins a group that has its operands in registers anyway
    what only totals need, or what follows from fed arrays alone, is computed where it is read, and never stored

An anchor's pass takes no totals, since the cells of its block may belong to several images; but a contraction that is
split along k is finished by a pass of its own over the cells, and that one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
# Arrays that one kernel reads, and operations that it does on a cell: more would only cost registers.
MOST_ARRAYS = 10
MOST_STEPS = 20


@dataclass(eq=False)
class Group:
    """One kernel: ``anchor``, then ``maps`` in order, then ``totals``. ``stored``: buffers that are written.

    ``split``: the anchor leaves parts, and a second kernel adds them up and does the rest.
    """

    anchor: Operation | None
    position: float
    split: bool = False
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

    @property
    def takes_totals(self) -> bool:
        return self.anchor is None or self.split


def _never(operation: Operation) -> bool:
    return False


def schedule(
    operations: Sequence[Operation], outputs: Mapping[str, Value], split: Callable[[Operation], bool] = _never
) -> list[Group]:
    """Groups in the order in which they run. What no output needs is left out. ``split``: which anchors leave parts."""
    needed = _needed(operations, outputs)
    finals = {value.buffer for value in outputs.values()}
    inlined = _inlined(needed, finals)
    counted = _counted(needed, inlined) | finals
    made: dict[Buffer, Group] = {}
    groups: list[Group] = []
    for operation in needed:
        if isinstance(operation, Total) or operation in inlined:
            continue
        way = _way(operation.inputs, inlined)
        joined = _group_for(operation, way, groups, made, counted) if isinstance(operation, Map) else None
        if joined is None:
            anchor = None if isinstance(operation, Map) else operation
            joined = Group(anchor, len(groups), split=anchor is not None and split(anchor))
            groups.append(joined)
        if isinstance(operation, Map):
            joined.maps += [step for step in (*way.steps, operation) if step not in joined.maps]
        made[operation.output] = joined
    _take_totals([o for o in needed if isinstance(o, Total)], inlined, groups, made)
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


def _inlined(operations: Sequence[Operation], finals: set[Buffer]) -> set[Operation]:
    """Elementwise operations that are computed by those who read them: for totals alone, or from fed arrays alone."""
    readers: dict[Buffer, list[Operation]] = {}
    for operation in operations:
        for value in operation.inputs:
            readers.setdefault(value.buffer, []).append(operation)

    def cellwise(operation: Operation) -> bool:
        """Do all readers walk the same cells? One that broadcasts it, or turns it, needs it in memory."""
        own = operation.output
        return all(
            isinstance(r, Total) or (isinstance(r, Map) and r.output.size == own.size) for r in readers[own]
        ) and all(v.direct for r in readers[own] for v in r.inputs if v.buffer is own)

    candidates = [o for o in operations if isinstance(o, Map) and o.output not in finals and cellwise(o)]
    for_totals: set[Operation] = set()
    for operation in reversed(candidates):
        if all(isinstance(r, Total) or r in for_totals for r in readers[operation.output]):
            for_totals.add(operation)
    from_fed: set[Operation] = set()
    for operation in candidates:
        if all(v.buffer.writer is None or v.buffer.writer in from_fed for v in operation.inputs):
            from_fed.add(operation)
    return for_totals | from_fed


@dataclass(frozen=True)
class _Way:
    """``steps``: the inlined operations that lead to some values, in order; ``bases``: what they start from."""

    steps: list[Map]
    bases: list[Value]


def _way(values: Iterable[Value], inlined: set[Operation]) -> _Way:
    steps: dict[Map, None] = {}
    bases: dict[Value, None] = {}

    def visit(value: Value) -> None:
        writer = value.buffer.writer
        if isinstance(writer, Map) and writer in inlined:
            for below in writer.inputs:
                visit(below)
            steps[writer] = None
        elif value.buffer.number is None:
            bases[value] = None

    for value in values:
        visit(value)
    return _Way(list(steps), list(bases))


def _counted(operations: Sequence[Operation], inlined: set[Operation]) -> set[Buffer]:
    """What totals read, directly or through what is computed for them."""
    totals = [operation for operation in operations if isinstance(operation, Total)]
    return {value.buffer for total in totals for value in _way(total.inputs, inlined).bases}


def _group_for(
    operation: Map, way: _Way, groups: Sequence[Group], made: Mapping[Buffer, Group], counted: set[Buffer]
) -> Group | None:
    """The group that ``operation`` can be part of, None if it needs one of its own. ``counted``: must be stored."""
    sources = [made[value.buffer] for value in way.bases if value.buffer in made]
    latest = max(sources, key=lambda group: group.position, default=None)
    if latest is not None and _fits(operation, way, latest):
        ends = not latest.takes_totals and any(v.buffer in latest.computed & counted for v in way.bases)
        if not ends:
            return latest
    # Nothing was computed for it that late: two readers of one array next to each other still share a pass.
    last = groups[-1] if groups else None
    if last is None or last.anchor is not None or last in sources or not _fits(operation, way, last):
        return None
    return last if any(value.buffer.kind != "constant" and value in last.reads for value in way.bases) else None


def _fits(operation: Map, way: _Way, group: Group) -> bool:
    if not (group.takes_maps and operation.output.size == group.size):
        return False
    inside = group.computed
    if any(not v.direct or v.size != group.size for v in way.bases if v.buffer in inside):
        return False
    new = [v for v in way.bases if v.buffer not in inside]
    return len({*group.reads, *new}) < MOST_ARRAYS and len(group.maps) + len(way.steps) < MOST_STEPS


def _take_totals(
    totals: Sequence[Total], inlined: set[Operation], groups: list[Group], made: Mapping[Buffer, Group]
) -> None:
    """Give every total to a group, those that read most first: the others find their operands there."""
    # A tally that a rule goes on computing with must be complete by then: its totals do not wait for company.
    urgent = {t for group in groups if isinstance(group.anchor, Settle) for t in group.anchor.inputs[0].buffer.totals}
    ways = {total: _way(total.inputs, inlined) for total in totals}
    for total in sorted(totals, key=lambda t: -len(ways[t].bases)):
        way = ways[total]
        ready = max((made[value.buffer].position for value in way.bases if value.buffer in made), default=-1.0)
        group = None
        if total not in urgent:
            in_turn = sorted(groups, key=lambda g: g.position)
            group = next((g for g in in_turn if g.position >= ready and _serves(g, total, way)), None)
        if group is None:
            group = Group(None, position=ready + 0.5)
            groups.append(group)
        group.images = total.inputs[0].shape[0]
        group.maps += [step for step in way.steps if step not in group.maps]
        group.totals.append(total)


def _serves(group: Group, total: Total, way: _Way) -> bool:
    """Has the group in its registers what the total adds up?"""
    value = total.inputs[0]
    if not group.takes_totals or group.size != value.size or group.images not in (None, value.shape[0]):
        return False
    inside, read = group.computed, group.reads
    return all((v.direct if v.buffer in inside else v in read) for v in way.bases)
