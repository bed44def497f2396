"""Lightning's XLA accelerator on PJRT's CPU plugin: import this before anything uses XLA."""

from __future__ import annotations

import os

from lightning.fabric.accelerators.xla import XLAAccelerator

os.environ["PJRT_DEVICE"] = "CPU"
# XLA says of each program that its way of sharding is to be replaced.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# XLA's passes run; those of LLVM after them would take a third of the time of these tests.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def devices_of_the_plugin() -> int:
    """As many as the plugin makes of one CPU."""
    return int(os.environ.get("CPU_NUM_DEVICES", "1"))


# Lightning counts TPU chips only, and says that there is no XLA device.
XLAAccelerator.auto_device_count = staticmethod(devices_of_the_plugin)
XLAAccelerator.is_available = staticmethod(lambda: True)
