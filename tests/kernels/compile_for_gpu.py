"""Compile the kernel for a GPU that need not be there; print what it takes, aligned and not."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from lightning_gc.kernels.rows import centralize_rows

POINTERS = {
    "addresses": "*i64",
    "to_addresses": "*i64",
    "shapes": "*i64",
    "programs": "*i32",
    "before": "*fp32",
    "after": "*fp32",
    "squares": "*fp32",
}


def compiled(capability: int, aligned: bool, measure: bool = False, dtype: object = tl.float32) -> str:
    """The PTX of one variant."""
    flags = {
        "DTYPE": dtype,
        "ALIGNED": aligned,
        "HAS_TO": False,
        "WRITE": True,
        "MEANS": measure,
        "MEASURE": measure,
    }
    source = ASTSource(
        fn=centralize_rows,
        signature={**POINTERS, **dict.fromkeys(flags, "constexpr")},
        constexprs={(centralize_rows.arg_names.index(name),): value for name, value in flags.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place in range(len(POINTERS))},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]


def main(capability: int) -> None:
    """Print a line for each variant: vector loads, registers, and bytes spilled."""
    assembler = get_ptxas(capability).path
    for aligned in (True, False):
        ptx = compiled(capability, aligned)
        target = re.search(r"\.target (\S+)", ptx)[1]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.ptx"
            file.write_text(ptx)
            command = [assembler, "-v", f"-arch={target}", file, "-o", Path(folder) / "kernel.cubin"]
            log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers, spilled = re.search(r"Used (\d+) registers", log)[1], re.search(r"(\d+) bytes spill stores", log)[1]
        print(f"v4={len(re.findall(r'ld.global[^;]*v4', ptx))} registers={registers} spilled={spilled}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
