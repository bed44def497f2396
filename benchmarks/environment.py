"""Where a benchmark ran."""

from __future__ import annotations

import importlib.metadata
import platform
from importlib.util import find_spec
from pathlib import Path

import torch


def describe(device: torch.device) -> list[str]:
    """The device, threads and versions, one line each."""
    return [
        f"device: {_name(device)}",
        f"threads: {torch.get_num_threads()}",
        f"python {platform.python_version()}, " + ", ".join(_versions()),
    ]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return f"CPU, {_cpu()}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in info.read_text().splitlines() if ":" in line
    )
    isa = max((i for i in ("avx2", "avx512f") if i in fields.get("flags", "").split()), key=len, default="")
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.machine())} ({family}{', ' + isa if isa else ''})"


def _versions() -> list[str]:
    wanted = ("torch", "lightning", "triton", "pytorch_optimizer", "optax", "jax")
    return [f"{package} {importlib.metadata.version(package)}" for package in wanted if find_spec(package)]
