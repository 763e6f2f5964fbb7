"""Shared fixtures: where the real models and photographs are, if they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test says of its whole file, ``record_property("summary", ...)``, from whatever process it ran in."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", ()):
                if name == "summary" and report.when == "call":
                    terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real models and photos: FGCAM_TEST_DATA, or ../shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FGCAM_TEST_DATA", default))
    if not (folder / "models").is_dir():
        pytest.skip(f"no test data: {folder} has no models/ (set FGCAM_TEST_DATA)")
    return folder
