"""What must be settled before pytest imports anything."""

import os
from importlib.util import find_spec

import torch

# Triton's kernels are tested on a GPU or, without one, in its interpreter. It looks once, when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

collect_ignore_glob = [] if find_spec("triton") else ["lightning_gc/kernels/[!_]*"]
# These have an environment of their own: `make test-xla`.
collect_ignore_glob += [] if find_spec("torch_xla") else ["tests/xla", "tests/xla/*"]
