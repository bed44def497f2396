"""Start several gloo processes once and let tests ask how each check went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 1500.0


@cache
def run(module: str, world_size: int) -> dict[str, dict]:
    """Run all checks of `module` for this many processes; what came of each, by name."""
    with tempfile.TemporaryDirectory() as directory:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        processes = []
        for rank in range(world_size):
            with open(Path(directory, f"output-{rank}.txt"), "w") as output:
                command = [sys.executable, "-m", "tests.distributed.worker", module, str(rank), str(world_size)]
                processes.append(
                    subprocess.Popen([*command, directory], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
                )
        hung = False
        try:
            for process in processes:
                process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            for process in processes:
                process.kill()
                process.wait()
        found = Path(directory, "results-0.json")
        results = json.loads(found.read_text()) if found.exists() else {}
        outputs = "\n".join(
            f"--- rank {rank}\n{Path(directory, f'output-{rank}.txt').read_text()[-3000:]}"
            for rank in range(world_size)
        )
    results["__outputs__"] = {"text": ("a rank hung\n" if hung else "") + outputs}
    return results


def expect(module: str, world_size: int, name: str) -> None:
    """Fail as the check of this name failed, on whichever rank."""
    results = run(module, world_size)
    assert name in results, f"{name} did not finish: {results['__outputs__']['text']}"
    errors = {rank: error for rank, error in enumerate(results[name]["errors"]) if error}
    assert not errors, "\n".join(f"--- rank {rank}\n{error}" for rank, error in errors.items())
