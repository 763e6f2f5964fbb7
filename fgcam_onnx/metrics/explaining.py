"""How a metric asks for maps of changed pictures, or of a changed model: of classes that stay the same.

``explain`` is one of two things:

    an Explainer, with ``method`` and its other options     asked for the class of each row
    a function x [m, ...] -> maps [m, ...]                  which keeps the class itself; with a target it is called
                                                            as explain(x, target=[m classes])

An Explanation serves as maps: ``functools.partial(explainer.explain, method="fg-cam")`` is such a function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fgcam_onnx.errors import InputError, OptionError, TargetError

__all__ = ["Maps", "classes_of", "maps_of"]

Array = npt.NDArray[Any]
Maps = Callable[[Array, Array | None], Array]


def maps_of(explain: Any, options: Mapping[str, Any]) -> Maps:
    """A function (x [m, ...], classes [m] or None) -> maps float64 [m, ...], one for each row.

    Raises:
        InputError: ``explain`` is neither. The function raises it for what is not a finite map for each picture.
        OptionError: options beside a function, which has its own.
    """
    own = hasattr(explain, "explain")
    if not own and not callable(explain):
        raise InputError(
            "explain has to be an Explainer, or a function from inputs to maps", known=f"it is {type(explain).__name__}"
        )
    if not own and options:
        raise OptionError(
            f"a function that explains takes no option {next(iter(options))!r} here",
            next="put it in with functools.partial, or give an Explainer",
        )
    call: Callable[..., Any] = functools.partial(explain.explain, **options) if own else explain

    def maps(x: Array, classes: Array | None) -> Array:
        given = call(x) if classes is None else call(x, target=[int(c) for c in classes])
        array = np.asarray(getattr(given, "relevance", given))
        if array.dtype.kind not in "fiu" or array.ndim < 2 or len(array) != len(x) or not np.isfinite(array).all():
            raise InputError(
                f"explain has to give a finite map for each of {len(x)} pictures",
                known=f"it gave {array.dtype} {list(array.shape)}",
            )
        return array.astype(np.float64)

    return maps


def classes_of(explain: Any, x: Array, target: Any, *, inputs: Any = None) -> Array | None:
    """int64 [n]: the classes of pictures, by an Explainer the predicted ones if ``target`` is None; else None.

    Raises:
        TargetError: another number of classes than pictures, or no whole numbers.
    """
    if target is None:
        if not hasattr(explain, "scores"):
            return None
        found: Array = explain.scores(x, inputs=inputs).argmax(axis=1)
        return found.astype(np.int64)
    classes = np.atleast_1d(np.asarray(target))
    if classes.dtype.kind not in "iu" or classes.ndim != 1 or len(classes) not in (1, len(x)):
        raise TargetError(
            f"targets have to be whole numbers, one for all or one for each of {len(x)} pictures",
            known=f"they are {classes.dtype} {list(classes.shape)}",
        )
    return np.broadcast_to(classes, len(x)).astype(np.int64)
