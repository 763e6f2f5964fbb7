"""FG-Grad-CAM on a GPU: against the published procedure and autograd functions in PyTorch, and kernel by kernel.

    python benchmarks/gpu.py                     # all of it, within ten minutes; one JSON under benchmarks/results/
    python benchmarks/gpu.py --quick             # two batches, few turns
    python benchmarks/gpu.py --sections kernels --models vgg16_bn --batches 32
    python benchmarks/gpu.py --rehearse          # without a GPU: every line once, on stand-ins; the times mean nothing

Every part stands alone: one that fails is reported with its error, and the others go on, in a new process if it broke
the device's context. The JSON is written anew after each part. benchmarks/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gpu_parts import BrokenDevice, Case, Descent, Failure, Part, Skipped, Subject, stand_in, words
from gpu_report import aims, environment, show
from gpu_sections import SECTIONS
from harness import ROOT, use_checkout

RESULTS = ROOT / "benchmarks" / "results"
MODELS = ("vgg16_bn", "resnet50")
BATCHES = (32, 1, 8, 64)
MOST_RESTARTS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    use_checkout()
    with tempfile.TemporaryDirectory(prefix="fgcam-gpu-") as own:
        folder = options.folder or Path(own)
        if not options.rehearse:
            # Kernels are compiled here and now, whatever was run on this machine before. CuPy asks when it is imported.
            os.environ["CUPY_CACHE_DIR"] = str(options.cache or folder / "kernels")
            from fgcam_onnx.backends.cupy import status

            usable, words = status()
            if not usable:
                print(f"benchmarks/gpu.py needs a GPU: {words}. --rehearse runs it without one.", file=sys.stderr)
                return 1
        from gpu_machine import Gpu, Rehearsal

        machine = Rehearsal() if options.rehearse else Gpu()
        path = options.json or default_path(machine.name, options.rehearse)
        if options.rehearse and path.resolve().is_relative_to(RESULTS.resolve()):
            print("a rehearsal's figures mean nothing and do not belong among the results", file=sys.stderr)
            return 1
        path.parent.mkdir(parents=True, exist_ok=True)
        return Bench(machine, options, folder, path).run()


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", help="1 2 for a rehearsal, 1 32 if quick, else 1 8 32 64")
    parser.add_argument("--rounds", type=int, help="turns of each contestant at most: 10, 3 if quick")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="no NumPy reference, no fresh processes")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which no further part is begun")
    parser.add_argument("--json", type=Path, help="where the figures go: benchmarks/results/<device>.json by default")
    parser.add_argument("--cache", type=Path, help="CuPy's folder of compiled kernels: a fresh one by default")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: nothing it prints is a measurement")
    parser.add_argument("--resume", action="store_true", help="keep the parts that the JSON has, run those it lacks")
    parser.add_argument(
        "--folder", type=Path, help="where exported models are, to be used again: a fresh one by default"
    )
    options = parser.parse_args(arguments)
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    options.batches = options.batches or ([1, 2] if options.rehearse else [1, 32] if options.quick else list(BATCHES))
    options.rounds = options.rounds or (3 if options.quick or options.rehearse else 10)
    if options.quick:
        options.sections = [name for name in options.sections if name not in ("numpy", "first_call", "memory")]
    return options


def default_path(name: str, rehearsal: bool) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (Path(tempfile.gettempdir()) if rehearsal else RESULTS) / f"{slug}.json"


class Bench:
    """Runs the parts one after the other, keeps what several need, writes what was found."""

    def __init__(self, machine: Any, options: argparse.Namespace, folder: Path, path: Path) -> None:
        self.machine, self.options, self.folder, self.path = machine, options, folder, path
        self.begin = time.perf_counter()
        self.large = 32 if 32 in options.batches else max(options.batches)
        self.small = min(options.batches)
        self.found: dict[str, Any] = {}
        # Maps and inputs of the smallest batch, for the parts that compare with a slow reference.
        self.kept: dict[str, dict[str, Any]] = {}
        self.slow: dict[str, float] = {}
        # Contestants after which the device's context was dead: they are not tried again.
        self.broken: list[str] = []
        self.restarts = 0
        self._memo: dict[Any, Any] = {}
        self._case: tuple[Any, Case] | None = None

    def run(self) -> int:
        self.result: dict[str, Any] = {
            "rehearsal": self.machine.rehearsal,
            "device": self.machine.name,
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.options).items()},
        }
        if self.machine.rehearsal:
            self.result["warning"] = "a rehearsal without a GPU, on stand-ins: no figure in here is a measurement"
        if self.options.resume and self.path.exists():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            self.found |= {name: part for name, part in before["parts"].items() if not part.get("retry")}
            self.broken, self.restarts = before["broken"], before["restarts"]
        self.result["environment"] = self.attempt(lambda: environment(self.machine))
        for part in self.parts():
            if part.name in self.found:
                continue
            print(f"{time.perf_counter() - self.begin:6.1f} s  {part.name}: ", end="", flush=True)
            self.found[part.name] = found = self.attempt(lambda part=part: self.one(part))
            print(found["status"] + (f": {found['error']}" if "error" in found else ""), flush=True)
            alive = self.machine.alive()
            self.write()
            if not alive:
                return self.start_again(part)
        with suppress(Exception):
            self._drop()
        shown = self.attempt(lambda: {"aims": aims(self)})
        self.result |= {"aims": shown.get("aims", []), "seconds": time.perf_counter() - self.begin}
        if "error" in shown:
            self.result["aims_error"] = shown["error"]
        self.write()
        show(self.result)
        print(f"\nfigures: {self.path}")
        states = [self.result["environment"], shown, *self.found.values()]
        return int(any(state["status"] == "failed" for state in states))

    def start_again(self, part: Part) -> int:
        """Go on in a new process: in this one every call to the device fails from now on."""
        if self.restarts >= MOST_RESTARTS:
            print(f"the device's context was broken {self.restarts + 1} times: enough", file=sys.stderr)
            return 1
        self.restarts += 1
        self.write()
        print(f"        {part.name} broke the device's context: going on in a new process", flush=True)
        command = [sys.executable, str(Path(__file__)), *self.options.given, "--resume", "--json", str(self.path)]
        command += ["--folder", str(self.folder), "--cache", str(self.options.cache or self.folder / "kernels")]
        command += ["--limit", f"{self.left():.0f}"]
        return subprocess.call(command)

    def parts(self) -> list[Part]:
        """The most telling first: time may run out."""
        options = self.options
        telling = list(dict.fromkeys((self.large, self.small)))
        found = [Part("ceilings")]
        for batch in telling:
            for model in options.models:
                found += [Part(name, model, batch) for name in ("comparison", "forward", "kernels")]
                if batch == self.small:
                    found += [Part(name, model, batch) for name in ("accuracy", "determinism")]
        found += [Part("numpy", model) for model in reversed(options.models)]
        found.append(Part("memory", options.models[0], max(options.batches)))
        rest = [batch for batch in sorted(options.batches) if batch not in telling]
        found += [Part("comparison", model, batch) for batch in rest for model in options.models]
        found += [Part("first_call", model) for model in options.models]
        return [part for part in found if part.section in options.sections]

    def attempt(self, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``action`` found, or why not; nothing a part does ends the run."""
        begin = time.perf_counter()
        try:
            found = {"status": "ok", **action()}
        except Skipped as reason:
            found = {"status": "skipped", "error": str(reason)}
        except Exception as error:
            found = {"status": "failed", "error": words(error), "traceback": traceback.format_exc()}
            if isinstance(error, BrokenDevice):
                found["retry"] = True
            with suppress(Exception):  # what failed may hold memory, and later parts need it
                self._drop()
        return {**found, "seconds_taken": time.perf_counter() - begin}

    def one(self, part: Part) -> dict[str, Any]:
        section, needs = SECTIONS[part.section]
        left = self.left()
        if left < (0 if self.machine.rehearsal else needs):
            raise Skipped(f"{max(0, left):.0f} s of --limit were left, and it needs about {needs}")
        return section(self, part)

    def left(self) -> float:
        return float(self.options.limit) - (time.perf_counter() - self.begin)

    def write(self) -> None:
        """All that is known, in one step: whoever ends the run leaves a whole file."""
        self.result |= {"parts": self.found, "broken": self.broken, "restarts": self.restarts}
        own = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        own.write_text(json.dumps(self.result, indent=1, default=plain) + "\n", encoding="utf-8")
        own.replace(self.path)

    # --- what several parts need ---

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once; if it failed, the same error for everybody: time is lost only once."""
        if key not in self._memo:
            try:
                self._memo[key] = make()
            except Exception as error:
                self._memo[key] = Failure(error)
        found = self._memo[key]
        if isinstance(found, Failure):
            raise RuntimeError(f"{key}: {words(found.error)}") from found.error
        return found

    def backend(self, precision: str) -> Any:
        return self.once(("backend", precision), lambda: self.machine.backend(precision))

    def subject(self, name: str) -> Subject:
        return self.once(("model", name), lambda: self._subject(name))

    def explainer(self, name: str, precision: str) -> Any:
        from fgcam_onnx import Explainer

        def make() -> Any:
            return Explainer(self.subject(name).path, backend=self.backend(precision))

        return self.once(("explainer", name, precision), make)

    def _subject(self, name: str) -> Subject:
        from torch_reference import (
            PublishedFGCAM,
            RelevanceResNet,
            RelevanceVGG,
            export,
            import_torchvision,
            live,
            smooth_images,
        )

        size = (32, 32) if self.machine.rehearsal else (224, 224)
        model = stand_in(name) if self.machine.rehearsal else getattr(import_torchvision().models, name)(weights=None)
        model = live(model, seed=0, size=size, images=2)
        path = self.folder / f"{name}.onnx"
        pictures = smooth_images(2, size, seed=0)
        if not path.exists():  # the weights are those of the seed: a process that goes on finds its file
            try:
                export(model, pictures, path, exporter="legacy")
            except Exception:  # a PyTorch that no longer has it
                export(model, pictures, path, exporter="dynamo")
        model = model.to(self.machine.torch_device).requires_grad_(False)
        vgg = name.startswith("vgg")
        published = PublishedFGCAM.of(model) if vgg else None
        return Subject(name, model, published, (RelevanceVGG if vgg else RelevanceResNet)(model), path, size)

    def case(self, part: Part) -> Case:
        """The activations of a batch. Only those of one batch are kept: they are gigabytes."""
        key = part.model, part.batch
        if self._case is None or self._case[0] != key:
            self._drop()
            self._case = key, self._made(*key)
        return self._case[1]

    def _made(self, name: Any, batch: Any) -> Case:
        from torch_reference import smooth_images

        subject, backend, device = self.subject(name), self.backend("float32"), self.machine.device
        x = smooth_images(batch, subject.size, seed=67).numpy()
        seen: list[Any] = []
        execute = backend.execute

        def watched(program: Any, inputs: Mapping[str, Any]) -> Any:
            seen.append((program, inputs))
            return execute(program, inputs)

        explainer = self.explainer(name, "float32")
        with mock.patch.object(backend, "execute", watched):
            explanation = explainer.explain(x, batch_size=batch)
        program, handed = seen[-1]
        inputs = {n: np.ascontiguousarray(v if isinstance(v, np.ndarray) else v.numpy()) for n, v in handed.items()}
        with device.active():
            memory = {n: device.upload(array.astype(np.float32, copy=False)) for n, array in inputs.items()}
        addresses = {n: m.pointer for n, m in memory.items()}
        made = Case(subject, x, explanation, program, inputs, addresses, list(memory.values()))
        if batch == self.small:
            self.kept[name] = {"program": program, "inputs": inputs, "maps": {}}
        return made

    def _drop(self) -> None:
        """Give back the device's memory between batches."""
        self._case = None
        for key, backend in self._memo.items():
            if key[0] == "backend" and not isinstance(backend, Failure):
                backend.release()
        self.machine.release()

    def compiled(self, case: Case, precision: str) -> Descent:
        """The descent of a case, on activations that lie on the device."""
        if precision not in case.compiled:
            backend = self.backend(precision)
            with self.machine.device.active():
                case.compiled[precision] = backend.compiled(case.program, case.inputs)
        return Descent(self.machine.device, case.compiled[precision], case.addresses)

    def fresh(self, what: str, part: Part, shape: Sequence[int], precision: str, cache: Path | None) -> dict[str, Any]:
        """The answer of a process of its own."""
        request = {"what": what, "path": str(self.subject(part.model or "").path), "shape": list(shape),
                   "precision": precision, "rehearse": self.machine.rehearsal}  # fmt: skip
        environ = dict(os.environ) | ({"CUPY_CACHE_DIR": str(cache)} if cache is not None else {})
        command = [sys.executable, str(Path(__file__).with_name("gpu_process.py")), json.dumps(request)]
        limit = max(20.0, min(150.0, self.left()))
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=limit, check=False)
        if done.returncode:
            raise RuntimeError(f"a fresh process failed: {' | '.join(done.stderr.strip().splitlines()[-4:])}")
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer


def plain(value: Any) -> Any:
    """For JSON: NumPy's numbers, and what has no better form in words."""
    return value.item() if isinstance(value, np.generic) else str(value)


if __name__ == "__main__":
    sys.exit(main())
