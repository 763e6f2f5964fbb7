"""Where weights come from: the words that ``weights=`` takes, and downloads that fail."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from fgcam_onnx.errors import ExportError, FgcamError
from fgcam_onnx.exporters.packages import brief

__all__ = ["FILES", "downloading", "is_file", "random"]

FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".h5", ".keras", ".pdparams")


def random(word: str | None) -> bool:
    """Whether the weights are to stay as they are initialised."""
    return word is not None and word.lower() in ("none", "random")


def is_file(word: str | None) -> bool:
    """Whether the word is a file, to be told from the name of published weights."""
    return word is not None and (word.lower().endswith(FILES) or "/" in word or "\\" in word)


@contextlib.contextmanager
def downloading(what: str) -> Iterator[None]:
    """Turn whatever a framework raises while it fetches weights into one error.

    Network, hub, cache and hash errors have classes of their own in each framework, and they change.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # progress is no result
            yield
    except FgcamError:
        raise
    except Exception as error:
        raise ExportError(
            f"the weights {what} could not be fetched",
            known=brief(error, 200),
            next="check the network, or give a file: --weights FILE, or export random weights: --weights none",
        ) from error
