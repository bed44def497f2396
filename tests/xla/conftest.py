"""XLA is there before any test runs; what the tests measured is printed after them."""

import pytest
import torch
import torch_xla

from tests.xla import cpu_plugin  # noqa: F401

# Autograd makes a queue for each kind of device at its first backward. After one on the CPU alone, XLA has none.
torch_xla.device()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests gave to `record_property`, one a line."""
    versions = f"torch {torch.__version__}, torch_xla {torch_xla.__version__}, PJRT's CPU plugin"
    terminalreporter.section(f"measured on {versions}")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {name}: {value}")
