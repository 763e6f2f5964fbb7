"""Write docs/operators.md from the registry: python .ci/write_operators.py (with the package installed)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
MARK = "<!-- fgcam ops --markdown -->\n"

head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
table = subprocess.run([sys.executable, "-m", "fgcam_onnx", "ops", "--markdown"], stdout=subprocess.PIPE, check=True)
PAGE.write_text(head + MARK + table.stdout.decode(), encoding="utf-8")
