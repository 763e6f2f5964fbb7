"""One measurement in a process of its own, for gpu.py: without PyTorch, whose memory and start would be in it.

    python benchmarks/gpu_process.py '{"what": "first_call", "path": "model.onnx", "shape": [1, 3, 224, 224], ...}'

The last line printed is the answer, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from harness import use_checkout

START = time.perf_counter()
POLL = 0.005  # seconds between looks at the free memory


def main() -> None:
    request = json.loads(sys.argv[1])
    use_checkout()
    import numpy as np

    from fgcam_onnx import Explainer
    from fgcam_onnx.backends.cupy import CupyBackend, CupyDevice

    device: Any
    if request["rehearse"]:
        from cuda_on_cpu.device import CpuDevice

        device = CpuDevice(captures=True)
    else:
        device = CupyDevice()
    imported = time.perf_counter()
    backend = CupyBackend(request["precision"], device=device)
    explainer = Explainer(request["path"], backend=backend)
    made = time.perf_counter()
    x = np.random.default_rng(1).normal(size=request["shape"]).astype(np.float32)

    descents: list[float] = []
    execute = backend.execute

    def clocked(*arguments: Any) -> Any:
        begin = time.perf_counter()
        found = execute(*arguments)
        descents.append(time.perf_counter() - begin)
        return found

    backend.execute = clocked  # type: ignore[method-assign]

    def explain() -> float:
        begin = time.perf_counter()
        explainer.explain(x, batch_size=len(x))
        return time.perf_counter() - begin

    answer: dict[str, Any] = {"import_and_device": imported - START, "explainer": made - imported}
    if request["what"] == "first_call":
        answer["explain"] = [explain() for _ in range(3)]
    else:
        answer |= watched(explain, *memory_of(device, request["rehearse"]))
    answer |= {"descent": descents, "providers": explainer.providers, "notes": explainer.notes}
    print(json.dumps(answer))


def memory_of(device: Any, rehearse: bool) -> tuple[Callable[[], int], Callable[[], int]]:
    """How to ask for free bytes of the device, and for bytes that the pool of this process holds."""
    if rehearse:
        return lambda: device.memory - device.used, lambda: device.most_used
    import cupy

    return lambda: int(cupy.cuda.runtime.memGetInfo()[0]), lambda: int(cupy.get_default_memory_pool().total_bytes())


def watched(explain: Callable[[], float], free: Callable[[], int], pool: Callable[[], int]) -> dict[str, Any]:
    """Two calls, and the least memory that was free meanwhile."""
    least, done = [free()], threading.Event()

    def look() -> None:
        while not done.wait(POLL):
            least[0] = min(least[0], free())

    before = least[0]
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        seconds = [explain() for _ in range(2)]
    finally:
        done.set()
        watcher.join()
    return {"explain": seconds, "free_before": before, "least_free": min(least[0], free()), "pool_bytes": pool()}


if __name__ == "__main__":
    main()
