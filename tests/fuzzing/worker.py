"""A process that examines mutants: lines ``entry seed`` in, a line of JSON out for each.

With arguments it examines one and prints what came of it: ``python tests/fuzzing/worker.py vgg 1234``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fuzzing import planted
from fuzzing.examine import Finding, examine
from fuzzing.mutants import make


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints does not end among the answers
    for line in sys.stdin:
        entry, seed = line.split()
        kinds: tuple[str, ...] = ()
        gc.collect()
        if entry.startswith(planted.MARK):
            finding = planted.run(entry)
            kinds = (entry,)
        else:
            try:
                mutant = make(entry, int(seed))
            except Exception:
                kinds, finding = (), Finding("broken", "make", traceback.format_exc()[-3000:])
            else:
                kinds, finding = mutant.kinds, examine(mutant)
        print(json.dumps({**asdict(finding), "kinds": kinds}), file=answers, flush=True)


def show(entry: str, seed: int) -> None:
    os.environ.setdefault("FGCAM_MEMORY", "1G")
    mutant = make(entry, seed)
    way = "file" if mutant.as_path else "bytes"
    print(f"{entry} {seed}: {', '.join(mutant.kinds)}; {len(mutant.content):,} bytes, given as {way}")
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_bytes(mutant.content)
    finding = examine(mutant)
    print(f"{finding.outcome} at {finding.stage}: {finding.detail}\npeak {finding.peak >> 20} MiB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        show(sys.argv[1], int(sys.argv[2]))
    else:
        serve()
