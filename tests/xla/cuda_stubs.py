"""Let a CUDA build of torch be imported without CUDA: one library that stands in for all of NVIDIA's.

``python tests/xla/cuda_stubs.py path/to/site-packages/torch/lib``, on Linux, needs gcc and binutils.

torch_xla takes one version of torch only, of which the package index has no CPU build. The libraries of a CUDA build
name some gigabytes of NVIDIA's libraries, without which they cannot be loaded, and of which a CPU calls next to
nothing. The stub defines each function that they ask for, and stands next to them under the name of every library
that was not found.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# What torch's libraries are loaded with, directly or not.
ENTRY = "libtorch_python.so"
STUB = "libcuda_stub.so"

OF_NVIDIA = re.compile(r"_*(cu|nccl|pnccl|nvrtc|nvshmem)")

# What functions return: cudaErrorNoDevice where devices are counted, success where code is registered as libraries are
# loaded, and cudaErrorUnknown from everything that should not be called.
NO_DEVICE, SUCCESS, UNKNOWN = 100, 0, 999


def main(libraries: Path) -> None:
    """Write the stub, unless nothing is missing."""
    for tool in ("gcc", "ldd", "nm"):
        if shutil.which(tool) is None:
            sys.exit(f"cuda_stubs.py needs {tool}: install gcc and binutils, for example with `apt-get install gcc`.")
    if not (libraries / ENTRY).is_file():
        sys.exit(f"cuda_stubs.py: there is no {ENTRY} in {libraries}. Give the folder torch/lib of an installed torch.")
    missing = not_found(libraries)
    if not missing:
        print("All libraries that torch needs are there.")
        return
    symbols = wanted_symbols(libraries)
    compile_stub(symbols, libraries / STUB)
    for name in missing:
        (libraries / name).unlink(missing_ok=True)
        (libraries / name).symlink_to(STUB)
    still_missing = not_found(libraries)
    if still_missing:
        sys.exit(f"cuda_stubs.py: {', '.join(still_missing)} could not be found after they were written.")
    print(f"{STUB}, with {sum(map(len, symbols.values()))} functions, stands in for {', '.join(missing)}.")


def not_found(libraries: Path) -> list[str]:
    """The names of the libraries that are needed and not there."""
    return sorted(set(re.findall(r"(\S+) => not found", read("ldd", libraries / ENTRY))))


def wanted_symbols(libraries: Path) -> dict[str, set[str]]:
    """NVIDIA's functions that torch's libraries call, by version; "" for those without one."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for library in libraries.glob("*.so"):
        for line in read("nm", "--dynamic", "--undefined-only", library).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            if OF_NVIDIA.match(symbol):
                wanted[version].add(symbol)
    return wanted


def compile_stub(symbols: dict[str, set[str]], stub: Path) -> None:
    """Compile a library of functions that do nothing."""
    functions = sorted(set().union(*symbols.values()))
    versions = [f"{v} {{ {' '.join(f'{s};' for s in sorted(found))} }};" for v, found in symbols.items() if v]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stub.c"), Path(folder, "stub.map")
        source.write_text("".join(f"long {name}() {{ return {returned(name)}; }}\n" for name in functions))
        script.write_text("\n".join(versions))
        read("gcc", "-shared", "-fPIC", "-w", f"-Wl,--version-script={script}", "-o", stub, source)


def returned(function: str) -> int:
    """What a function of the stub returns."""
    if function == "cudaGetDeviceCount":
        return NO_DEVICE
    return SUCCESS if function.startswith("__cuda") or function == "cudaGetLastError" else UNKNOWN


def read(*command: object) -> str:
    """What a command prints."""
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
