"""Shared fixtures: where the real models and photographs are, if they are there."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

# Matrices of which every run takes one case in so many, and the long run all. Which ones does not change from run to
# run: it is the name of the case that decides. A broken kernel, rule or network turns more than one of its cases red.
SAMPLED = {
    "test_architectures_light.py::test_alive": 3,
    "test_architectures_timm.py::test_network": 10,
    "test_architectures_torchvision.py::test_a_transformer_is_refused": 4,
    "test_architectures_torchvision.py::test_network": 10,
    "test_cuda_check.py::test_a_device_that_computes_something_else_is_refused": 2,
    "test_cuda_compile.py::test_a_variant_compiles_without_spilling": 8,
    "test_cuda_kernels.py": 8,
    "test_cuda_program.py::test_random_programs_do_what_numpy_defines": 3,
    "test_cupy.py": 8,
    "test_exported_forms.py::test_relevance_of_the_block": 6,
    "test_formulas.py::test_parameters_on_the_matrix": 4,
    "test_parity_cams.py::test_pytorch_grad_cam": 4,
    "test_parity_lrp.py": 6,
    "test_published_procedure.py::test_full_width_vgg": 5,
    "test_published_procedure.py::test_thin_vgg_on_onnxruntime": 4,
    "test_rows.py": 4,
    "test_rules_gradient.py::test_compiled_backends_agree_with_numpy": 2,
    "test_rules_invariants.py::test_dead_denominators_on_compiled_backends": 3,
    "test_rules_replica.py::test_compiled_backends_agree_with_numpy": 5,
    "test_stages.py::test_architecture": 4,
    "test_torch_autograd.py": 8,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what a run leaves out of the sampled matrices; before ``-m`` chooses."""
    for item in items:
        test = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        share = SAMPLED.get(test) or SAMPLED.get(item.path.name, 1)
        if hasattr(item, "callspec") and zlib.crc32(item.name.encode()) % share:
            item.add_marker(pytest.mark.slow)


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
