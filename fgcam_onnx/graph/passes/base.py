"""What a folding pass is: LayerGraph in, LayerGraph out, and a sentence for everything it left alone.

A pass changes the *view* only, never the graph that runs. Two layers become one when the pair computes what one
canonical layer computes; the result carries the original name of the last output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fgcam_onnx.graph.layer import Layer, LayerGraph, Refusal

__all__ = ["PassResult", "fuse_pairs", "refuse"]


@dataclass(frozen=True)
class PassResult:
    graph: LayerGraph
    modified: bool
    refused: tuple[Refusal, ...] = ()


def refuse(layer: Layer, reason: str) -> Refusal:
    return Refusal(layer.name, reason)


def fuse_pairs(
    graph: LayerGraph,
    matches: Callable[[Layer, Layer], bool],
    fuse: Callable[[LayerGraph, Layer, Layer], Layer | Refusal],
) -> PassResult:
    """Fuse every (first, second) with ``matches(first, second)``, where second is the only reader of first's output.

    ``fuse`` returns the layer that stands for both, or a Refusal. A tensor that is read elsewhere, or that is a
    graph output, must stay visible, so its producer is not folded away.
    """
    refused: list[Refusal] = []
    modified = False
    done: dict[str, Layer] = {}  # by layer name, in order: chains fold from the front
    makers: dict[str, str] = {}  # tensor -> the layer of `done` that computes it
    for second in graph.layers:
        operands = second.operands
        first = done.get(makers.get(second.inputs[operands[0]], "")) if operands else None
        current = second
        if first is not None and matches(first, second):
            readers = graph.consumers(first.output)
            if len(readers) != 1:
                others = ", ".join(sorted(r.name for r in readers if r.name != second.name))
                result: Layer | Refusal = refuse(second, f"{first.name}'s output is also read by {others}")
            elif first.output in graph.outputs:
                result = refuse(second, f"{first.name}'s output {first.output!r} is a graph output")
            elif first.output == graph.logits:
                result = refuse(second, f"{first.name}'s output {first.output!r} is what is explained")
            else:
                result = fuse(graph, first, second)
            if isinstance(result, Layer):
                del done[first.name]
                current, modified = result, True
            else:
                refused.append(result)
        done[current.name] = current
        makers.update({name: current.name for name in current.outputs if name})
    return PassResult(replace(graph, layers=tuple(done.values())) if modified else graph, modified, tuple(refused))
