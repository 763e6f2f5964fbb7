"""Nodes in the order in which they can be computed.

ONNX asks for it, and converters forget it: onnxruntime's own float16 converter appends its casts at the end. The
runtime sorts before it runs, so such files are deployed; a walk over the nodes needs the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush

import onnx

__all__ = ["sort_nodes"]


def sort_nodes(graph: onnx.GraphProto, captured: Callable[[onnx.NodeProto], Iterable[str]]) -> bool:
    """Sort the nodes of ``graph`` in place, each as near to its old place as it can be; True if they had to be moved.

    ``captured``: what a node's subgraphs read from around it. Nodes that form a cycle stay: the checker names them.
    """
    reads = [[*node.input, *captured(node)] for node in graph.node]
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [[makers[name] for name in names if name in makers] for names in reads]
    if all(before < i for i, each in enumerate(needs) for before in each):
        return False
    waiting = [len(set(each)) for each in needs]
    readers: list[list[int]] = [[] for _ in needs]
    for i, each in enumerate(needs):
        for before in set(each):
            readers[before].append(i)
    ready = [i for i, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        order.append(heappop(ready))
        for reader in readers[order[-1]]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(ready, reader)
    if len(order) < len(needs):
        return False
    nodes = [graph.node[i] for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True
