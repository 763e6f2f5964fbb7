"""The README's two commands, for whoever has to run them: CI, and the test that they are still there.

python .ci/readme.py test --venv /tmp/v      one line each: make the environment, install, run
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
ENDS = {"demo": "fgcam demo", "test": "-m pytest"}


def command(which: str, text: str | None = None) -> str:
    """The one line of the README that does everything from nothing to the demo, or to the tests."""
    text = README.read_text(encoding="utf-8") if text is None else text
    lines = [line for line in re.findall(r"^python3 -m venv .*$", text, re.M) if line.endswith(ENDS[which])]
    if len(lines) != 1:
        raise SystemExit(f"README.md has {len(lines)} lines 'python3 -m venv ... {ENDS[which]}', it should have one")
    return str(lines[0])


def parts(which: str, python: str = "python3", venv: str = ".venv") -> list[str]:
    """The command cut at its &&, with another interpreter and another folder."""
    line = command(which)
    first, *rest = (part.strip() for part in line.split("&&"))
    if first != "python3 -m venv .venv" or not all(part.startswith(".venv/bin/") for part in rest):
        raise SystemExit(f"README.md: cannot follow the command {line!r}")
    return [f"{python} -m venv {venv}", *(venv + part.removeprefix(".venv") for part in rest)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=list(ENDS))
    parser.add_argument("--python", default="python3")
    parser.add_argument("--venv", default=".venv")
    given = parser.parse_args()
    print("\n".join(parts(given.which, given.python, given.venv)))
