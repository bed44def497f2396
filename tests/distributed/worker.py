"""One of several processes: runs the checks of a module, each by name, and reports what failed.

``python -m tests.distributed.worker MODULE RANK WORLD_SIZE DIRECTORY [CHECK ...]``
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path


def main(module: str, rank: int, world_size: int, directory: str, *wanted: str) -> None:
    import torch.distributed as dist

    checks = importlib.import_module(module).CHECKS[world_size]
    names = list(wanted) or list(checks)
    references = {}
    for name in names:  # in one process, before there are several
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                references[name] = checks[name].reference()
        except Exception:
            references[name] = traceback.format_exc()
    # As torchrun does: Lightning then starts no processes of its own.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        ROLE_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        ROLE_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",
        TORCHELASTIC_RUN_ID="tests",
        CUDA_VISIBLE_DEVICES="",
    )
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=180), rank=rank, world_size=world_size)
    results = {}
    for name in names:
        start = time.perf_counter()
        try:
            if isinstance(references[name], str):
                raise AssertionError(f"the reference failed:\n{references[name]}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                checks[name].run(references[name])
            error = ""
        except Exception:
            error = traceback.format_exc()
        failed: list[str | None] = [None] * world_size
        dist.all_gather_object(failed, error)
        results[name] = {"errors": failed, "seconds": time.perf_counter() - start}
        Path(directory, f"results-{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
