"""What gpu.py measures: a function a section, which returns what goes into the JSON."""

from __future__ import annotations

import hashlib
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu_parts import EQUAL, OURS, RESULT, Case, Contestant, Descent, Part, Skipped, by_precision, errors, race

if TYPE_CHECKING:
    from gpu import Bench

# --- contestants ------------------------------------------------------------------------------------------------------


def torch_contestants(bench: Bench, case: Case, maps: dict[str, Any]) -> dict[str, Contestant]:
    """The published procedure and the autograd functions, whole and without their forward pass, TF32 off and on."""
    import torch
    from gpu_machine import tf32

    subject, device = case.subject, bench.machine.torch_device
    target = torch.from_numpy(case.explanation.target).to(device)
    host = torch.from_numpy(case.x)

    def whole(reference: Any, allowed: bool, name: str) -> None:
        with tf32(allowed):
            maps[name] = reference.explain(host.to(device), target=target).cpu()

    # Activations in float32 for both settings: what is compared is the descent from the same place.
    left: dict[str, Any] = {}

    def published_descent(allowed: bool) -> None:
        reference = subject.published
        if "published" not in left:
            with tf32(False):
                left["published"] = reference.forward(host.to(device))
        with tf32(allowed), torch.no_grad():
            activations, winners = left["published"]
            weights, _ = reference.grad_cam_weights(activations[-1], target)
            components = weights[:, :, None, None] * activations[-1]
            last = len(reference.features) - 1
            reference.descend(components, activations, winners, last, -1).sum(dim=1).cpu()

    def autograd_descent(allowed: bool) -> None:
        if "autograd" not in left:
            with tf32(False), torch.enable_grad():
                x = host.to(device).requires_grad_()
                left["autograd"] = x, subject.autograd.features(x)
        with tf32(allowed):
            subject.autograd.descend(*left["autograd"], target, keep=True).cpu()

    def forward(allowed: bool) -> None:
        with tf32(allowed), torch.no_grad():
            subject.model(host.to(device)).cpu()

    found = {}
    for allowed, setting in ((False, "tf32_off"), (True, "tf32_on")):
        said = setting.replace("_", " ").upper().replace("OFF", "off").replace("ON", "on")
        if subject.published is not None:
            found[f"published/{setting}/whole"] = Contestant(
                f"PyTorch, {said}: image to the device, forward pass, Grad-CAM weights, published descent, map to host",
                partial(whole, subject.published, allowed, f"published/{setting}"),
            )
            found[f"published/{setting}/descent"] = Contestant(
                f"PyTorch, {said}: the same without image and forward pass, whose activations lie on the device",
                partial(published_descent, allowed),
            )
        found[f"autograd/{setting}/whole"] = Contestant(
            f"PyTorch, {said}: image to the device, forward pass, backward pass of the rules' functions, map to host",
            partial(whole, subject.autograd, allowed, f"autograd/{setting}"),
        )
        found[f"autograd/{setting}/descent"] = Contestant(
            f"PyTorch, {said}: the same without image and forward pass, whose graph lies on the device",
            partial(autograd_descent, allowed),
        )
        found[f"torch_forward/{setting}"] = Contestant(
            f"PyTorch, {said}: image to the device, forward pass of the module as written, logits to the host",
            partial(forward, allowed),
        )
    return found


def our_descents(bench: Bench, case: Case, both_ways: bool) -> dict[str, Contestant]:
    """The compiled descents as users get them, and the other way of launching them."""
    words_ = "gradient of the head, components, descent, map and books to the host; activations lie on the device"
    found = {}
    for precision in OURS:
        descent = bench.compiled(case, precision)
        way = "one CUDA graph" if descent.program.small else "launches one by one"
        found[f"ours/{precision}/descent"] = Contestant(
            f"fgcam_onnx {precision}, as shipped ({way}): {words_}", descent
        )
        if both_ways:
            other = not descent.program.small
            way = "one CUDA graph" if other else "launches one by one"
            name = f"ours/{precision}/descent_{'as_graph' if other else 'by_launches'}"
            found[name] = Contestant(f"fgcam_onnx {precision}, {way}: {words_}", descent.as_graph(other))
    return found


def on_gpu(explainer: Any) -> bool:
    return "CUDAExecutionProvider" in explainer.providers


# --- sections ---------------------------------------------------------------------------------------------------------


def ceilings(bench: Bench, part: Part) -> dict[str, Any]:
    """What this device does at best: a matrix product without and with TF32, and a copy."""
    machine = bench.machine
    return {"matmul_tf32_off": machine.products(False), "matmul_tf32_on": machine.products(True),
            "copy": machine.copies(), "l2_bytes": machine.l2_bytes}  # fmt: skip


def comparison(bench: Bench, part: Part) -> dict[str, Any]:
    """Everybody, whole and without the forward pass; then ratios of the medians, each saying what it compares."""
    case, batch = bench.case(part), part.batch or 1
    explainer = bench.explainer(case.subject.name, "float32")
    forward_on_gpu = on_gpu(explainer)
    where = "the GPU" if forward_on_gpu else "the processor, since onnxruntime has no CUDA provider here"
    maps: dict[str, Any] = {}
    contestants = our_descents(bench, case, both_ways=True) | torch_contestants(bench, case, maps)
    wholes = {}
    for precision in OURS if forward_on_gpu else ("float32",):
        mine = bench.explainer(case.subject.name, precision)
        wholes[f"ours/{precision}/whole"] = Contestant(
            f"fgcam_onnx {precision}, Explainer.explain: checks, forward pass by onnxruntime in float32 on {where}, "
            "everything else on the GPU, map to the host",
            partial(mine.explain, case.x, batch_size=batch),
        )
    if forward_on_gpu:
        contestants |= wholes
    figures = race(bench, part, contestants, 6.0)
    if not forward_on_gpu:
        figures |= race(bench, part, wholes, 4.0, slow=True)
    ort = Contestant(
        "fgcam_onnx, backend 'ort': everything by onnxruntime on the processor", partial(_ort, bench, case)
    )
    figures |= race(bench, part, {"ort/whole": ort}, 3.0, slow=True)
    return {
        "batch": batch,
        "forward_of_fgcam_onnx": where,
        "notes": list(explainer.notes),
        "figures": figures,
        "ratios": ratios(figures, forward_on_gpu),
        "maps_against_ours_float32": {
            name: {"error_of_the_median_picture": middle, "worst": worst}
            for name, found in maps.items()
            for middle, worst in [errors(found, case.explanation.relevance)]
        },
    }


def _ort(bench: Bench, case: Case) -> None:
    from fgcam_onnx import Explainer

    key = ("ort", case.subject.name)
    explainer = bench.once(key, lambda: Explainer(case.subject.path, backend="ort"))
    explainer.explain(case.x, batch_size=len(case.x))


def ratios(figures: Mapping[str, Any], forward_on_gpu: bool) -> dict[str, Any]:
    """How many times as fast we are. Equal precision: our float32 with TF32 off, our "fast" with TF32 on."""
    found: dict[str, Any] = {}

    def ratio(name: str, contains: str, over: str, *under: str) -> None:
        medians = [figures.get(figure, {}).get("median") for figure in (over, *under)]
        if None not in medians:
            found[name] = {"value": medians[0] / sum(medians[1:]), "contains": contains, "over": over, "under": under}

    for precision, setting in EQUAL.items():
        ours = f"ours/{precision}/descent"
        for other in ("published", "autograd"):
            theirs = f"{other}/{setting}"
            ratio(f"{theirs} : {precision}, descents", "descents alone, both from activations on the device",
                  f"{theirs}/descent", ours)  # fmt: skip
            ratio(f"{theirs} : {precision}, ours with a PyTorch forward pass",
                  "whole, our forward pass replaced by the sum with PyTorch's in float32 (TF32 off)",
                  f"{theirs}/whole", ours, "torch_forward/tf32_off")  # fmt: skip
            where = "on the GPU" if forward_on_gpu else "OURS ON THE PROCESSOR: says nothing about the descent"
            ratio(f"{theirs} : {precision}, whole", f"whole, each with its own forward pass, {where}",
                  f"{theirs}/whole", f"ours/{precision}/whole")  # fmt: skip
        ratio(f"ort : {precision}, whole", "'ort' backend, all on the processor, over ours with a PyTorch forward pass",
              "ort/whole", ours, "torch_forward/tf32_off")  # fmt: skip
    return found


def forward(bench: Bench, part: Part) -> dict[str, Any]:
    """The descent beside one forward pass of the same convolutions, image and activations on the device."""
    import torch
    from gpu_machine import tf32
    from torch import nn

    case, device = bench.case(part), bench.machine.torch_device
    model, x = case.subject.model, torch.from_numpy(case.x).to(device)
    convolutions: list[Any] = []

    def keep(module: Any, given: Any, _: Any) -> None:
        convolutions.append((module, given[0].clone()))

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        with tf32(False), torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()

    def torch_forward(allowed: bool) -> None:
        with tf32(allowed), torch.no_grad():
            model(x)
        bench.machine.synchronize()

    def alone(allowed: bool) -> None:
        with tf32(allowed), torch.no_grad():
            for module, given in convolutions:
                module(given)
        bench.machine.synchronize()

    contestants = our_descents(bench, case, both_ways=False)
    for allowed, setting in ((False, "tf32_off"), (True, "tf32_on")):
        contestants[f"torch_forward/{setting}"] = Contestant(
            f"PyTorch, {setting}: forward pass of the module as written, image on the device",
            partial(torch_forward, allowed),
        )
        contestants[f"convolutions/{setting}"] = Contestant(
            f"PyTorch, {setting}: its {len(convolutions)} convolutions one after the other and nothing else",
            partial(alone, allowed),
        )
        contestants[f"ort_cuda/{setting}"] = Contestant(
            f"onnxruntime's CUDA provider, use_tf32={int(allowed)}: forward pass, image on the device",
            ort_cuda(bench, case, allowed),
        )
    figures = race(bench, part, contestants, 5.0)
    found = {}
    for precision, setting in EQUAL.items():
        ours = figures[f"ours/{precision}/descent"].get("median")
        for name in ("torch_forward", "convolutions", "ort_cuda"):
            theirs = figures[f"{name}/{setting}"].get("median")
            if ours and theirs:
                found[f"{precision} descent : {name}/{setting}"] = {
                    "value": ours / theirs,
                    "contains": "descent with the head's gradient, without the forward pass, over one forward pass",
                }
    return {"batch": part.batch, "figures": figures, "ratios": found}


def ort_cuda(bench: Bench, case: Case, allowed: bool) -> Callable[[], None]:
    """A forward pass on onnxruntime's CUDA provider, where there is one."""
    made: list[Any] = []

    def run() -> None:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise Skipped("this onnxruntime has no CUDA provider")
        if not made:
            provider = ("CUDAExecutionProvider", {"use_tf32": str(int(allowed))})
            session = onnxruntime.InferenceSession(str(case.subject.path), providers=[provider])
            if session.get_providers()[0] != "CUDAExecutionProvider":
                raise Skipped("onnxruntime's CUDA provider does not load here")
            binding = session.io_binding()
            binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(case.x, "cuda", 0))
            binding.bind_output("logits", "cuda", 0)
            made.extend((session, binding))
        session, binding = made
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def kernels(bench: Bench, part: Part) -> dict[str, Any]:
    """Each launch alone, between events of the device, in the program's order and on its own data."""
    case = bench.case(part)
    limits = bench.found.get("ceilings", {})
    found: dict[str, Any] = {
        "contains": "seconds: median of runs with the cache flushed before each, as the figures of the kinds below; "
        "warm_seconds: median of runs one after the other, whose inputs stay in L2 if they fit; bytes: each array it "
        "points to, once, weights and tables too; small: bytes are less than twice L2, and launch and tail weigh as "
        "much as the work; seconds_at_the_ceilings: of each launch its operations at the measured matrix rate or its "
        "bytes at the measured copy, whichever is longer, added up",
        "l2_bytes": bench.machine.l2_bytes,
    }

    def measure(precision: str) -> dict[str, Any]:
        launches = timed_launches(bench, bench.compiled(case, precision), repeats=2 if bench.machine.rehearsal else 7)
        kinds = {kind: summed([each for each in launches if each["kind"] == kind], limits)
                 for kind in dict.fromkeys(each["kind"] for each in launches)}  # fmt: skip
        columns = list(launches[0])
        return {
            "launches": len(launches),
            "seconds_of_all_launches": sum(each["seconds"] for each in launches),
            "warm_seconds_of_all_launches": sum(each["warm_seconds"] for each in launches),
            "seconds_at_the_ceilings": sum(k.get("seconds_at_the_ceilings", 0.0) for k in kinds.values()),
            "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["seconds"])),
            "costliest": sorted(launches, key=lambda each: -each["seconds"])[:10],
            # A line a launch: hundreds of them, spread out, would bury the rest of the file.
            "each": ["; ".join(columns), *("; ".join(cell(each[c]) for c in columns) for each in launches)],
        }

    return found | by_precision(bench, measure)


def cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def timed_launches(bench: Bench, descent: Descent, repeats: int) -> list[dict[str, Any]]:
    from fgcam_onnx.backends.cuda.launch import Scratch

    machine, program = bench.machine, descent.program
    l2 = machine.l2_bytes
    # The place for the books' parts is one for all launches: no launch moves all of it.
    books = {b for each in program.launches if each.name == "totals" for b in each.buffers if isinstance(b, Scratch)}
    found = []
    with machine.device.active():
        block = machine.device.allocate(program.layout.nbytes)
        for kernel, launch, arguments in program.bound(block, descent.addresses):
            run = partial(kernel, launch.grid, (launch.threads, 1, 1), arguments)
            run()
            cold, warm = (machine.timed(run, repeats, cold=cold) for cold in (True, False))
            seconds = max(statistics.median(cold), 1e-9)
            nbytes = sum(
                moved(buffer, program.target.dtype.itemsize) for buffer in launch.buffers if buffer not in books
            )
            found.append({
                "kind": kind_of(launch), "label": launch.label, "name": launch.name, "grid": list(launch.grid),
                "seconds": seconds, "warm_seconds": statistics.median(warm), "flops": launch.flops, "bytes": nbytes,
                "tflops": 1e-12 * launch.flops / seconds, "gbytes_per_second": 1e-9 * nbytes / seconds,
                "small": nbytes < 2 * l2,
            })  # fmt: skip
    return found


def moved(buffer: Any, itemsize: int) -> int:
    """Bytes of an array that a launch points to."""
    if hasattr(buffer, "nbytes"):
        return int(buffer.nbytes)  # scratch
    if hasattr(buffer, "size"):
        return int(buffer.size) * itemsize  # in the program's precision
    return int(buffer.array.nbytes)  # a packed weight or a table


def kind_of(launch: Any) -> str:
    """What a launch is, for the table: all generated elementwise kernels are "map"."""
    if launch.name.startswith("map"):
        return "map"
    if launch.name == "contraction":
        rounded, double = "#define TF32 1" in launch.source, "#define REAL double" in launch.source
        # The head's layers, one position each, read their weights and little else: no convolution's rate.
        dense = re.search(r"\d+x[1x]+$", launch.label) is not None
        return f"{'dense' if dense else 'contraction'} {'tf32' if rounded else 'fp64' if double else 'fp32'}"
    return str(launch.name)


def summed(launches: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> dict[str, Any]:
    """A kind of kernel: all of its launches, and those that fill the device, against the ceilings."""

    kind = launches[0]["kind"]
    matmul = limits.get("matmul_tf32_on" if kind.endswith("tf32") else "matmul_tf32_off", {}).get("flops_per_second")
    copied = limits.get("copy", {}).get("bytes_per_second")

    def together(some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seconds, flops, nbytes = (sum(each[name] for each in some) for name in ("seconds", "flops", "bytes"))
        found = {"launches": len(some), "seconds": seconds, "flops": flops, "bytes": nbytes}
        if some:
            found |= {"tflops": 1e-12 * flops / seconds, "gbytes_per_second": 1e-9 * nbytes / seconds}
            if matmul and flops:
                found["share_of_matmul"] = flops / seconds / matmul
            if copied:
                found["share_of_copy"] = nbytes / seconds / copied
            if matmul and copied:
                floor = sum(max(each["flops"] / matmul, each["bytes"] / copied) for each in some)
                found["seconds_at_the_ceilings"] = floor
        return found

    warm = sum(each["warm_seconds"] for each in launches)
    return {**together(launches), "warm_seconds": warm, "not_small": together([e for e in launches if not e["small"]])}


def accuracy(bench: Bench, part: Part) -> dict[str, Any]:
    """Maps of the same activations in three precisions: each error relative to this backend's own float64."""
    case = bench.case(part)
    maps = bench.kept[case.subject.name]["maps"]
    ran = by_precision(bench, lambda precision: maps.update({precision: bench.compiled(case, precision).map()}))
    exact = bench.backend("float64").execute(case.program, case.inputs)[RESULT]
    maps["float64"] = exact.reshape(len(exact), *exact.shape[2:])
    found = {
        f"{precision} against cupy float64": {"error_of_the_median_picture": middle, "worst": worst}
        for precision in OURS
        if precision in maps
        for middle, worst in [errors(maps[precision], maps["float64"])]
    }
    contains = "||map - reference|| / ||reference|| of the same activations"
    return ran | {"batch": part.batch, "contains": contains, "errors": found}


def numpy_reference(bench: Bench, part: Part) -> dict[str, Any]:
    """The same activations through the definition: backend 'numpy' in float64."""
    from fgcam_onnx.backends.numpy import NumpyBackend

    if part.model not in bench.kept:
        bench.case(Part("numpy", part.model, bench.small))
    kept = bench.kept[part.model or ""]
    if "float32" not in kept["maps"]:
        accuracy(bench, Part("accuracy", part.model, bench.small))
    begin = time.perf_counter()
    exact = NumpyBackend(np.dtype(np.float64)).execute(kept["program"], kept["inputs"])[RESULT]
    exact = exact.reshape(len(exact), *exact.shape[2:])
    found = {
        f"{precision} against numpy float64": {"error_of_the_median_picture": middle, "worst": worst}
        for precision, array in kept["maps"].items()
        for middle, worst in [errors(array, exact)]
    }
    return {"batch": bench.small, "seconds_of_numpy": time.perf_counter() - begin, "errors": found}


def determinism(bench: Bench, part: Part) -> dict[str, Any]:
    """Do two runs give the same bits, one after the other, as a graph and launch by launch, and compiled anew?"""
    case = bench.case(part)

    def measure(precision: str) -> dict[str, Any]:
        descent = bench.compiled(case, precision)
        first = digest(descent())
        with bench.machine.device.active():
            anew = bench.machine.backend(precision).compiled(case.program, case.inputs)
        ways = {
            "again": descent,
            "as a graph": descent.as_graph(True),
            "launch by launch": descent.as_graph(False),
            "compiled anew": Descent(bench.machine.device, anew, case.addresses),
        }
        # A graph is captured when the addresses come a second time: three calls replay it.
        same = {name: all(digest(run()) == first for _ in range(3)) for name, run in ways.items()}
        return {"sha256": first, "same_bits": same, "as_a_graph": ways["as a graph"].way}

    return by_precision(bench, measure)


def digest(found: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name in sorted(found):
        whole.update(name.encode() + np.ascontiguousarray(found[name]).tobytes())
    return whole.hexdigest()


def memory(bench: Bench, part: Part) -> dict[str, Any]:
    """Peak of the device's memory in a process of its own, CUDA's own share of it included."""
    subject = bench.subject(part.model or "")
    bench._drop()
    shape = (part.batch or 1, 3, *subject.size)
    found = {}
    for precision in OURS:
        free, total = bench.machine.free()
        answer = bench.fresh("memory", part, shape, precision, None)
        peak = (answer["free_before"] if bench.machine.rehearsal else free) - answer["least_free"]
        found[precision] = {"peak_bytes_of_the_process": peak, "total_bytes": total, **answer}
    return {
        "batch": part.batch,
        "contains": "free bytes of the device before the process began minus the least that was free while it "
        "explained; pool_bytes: what CuPy's pool held in the end. Where onnxruntime has no CUDA provider, the forward "
        "pass is not in it",
        "figures": found,
    }


def first_call(bench: Bench, part: Part) -> dict[str, Any]:
    """Batch 1 in two fresh processes: with an empty folder of compiled kernels, then with what the first left there."""
    subject = bench.subject(part.model or "")
    cache = bench.folder / f"kernels-of-{subject.name}"
    shape = (1, 3, *subject.size)
    return {
        "contains": "seconds; explain: three calls, whole; descent: of each call, what the backend took, with tracing, "
        "packing, compiling and copying the weights in the first",
        **{name: bench.fresh("first_call", part, shape, "float32", cache) for name in ("empty_cache", "filled_cache")},
    }


# By name: the section, and about how many seconds it needs to be worth beginning.
SECTIONS: dict[str, tuple[Callable[[Bench, Part], dict[str, Any]], float]] = {
    "ceilings": (ceilings, 5),
    "comparison": (comparison, 30),
    "forward": (forward, 12),
    "kernels": (kernels, 12),
    "accuracy": (accuracy, 15),
    "determinism": (determinism, 15),
    "memory": (memory, 45),
    "numpy": (numpy_reference, 45),
    "first_call": (first_call, 45),
}
