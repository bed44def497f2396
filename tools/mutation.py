"""Mutation testing: change the code in small ways, one at a time, and see that a test fails each time.

    python tools/mutation.py functional selection callback

Needs cosmic-ray, which makes most of the mutants (`pip install cosmic-ray`), and a system that forks. torch and Lightning
are imported once; each mutant is tested in a fork, in a copy of the project. Prints the survivors and the score.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
COPIED = ("lightning_gc", "tests", "pyproject.toml", "README.md")
WARM = ("torch", "lightning.pytorch", "torchmetrics", "numpy", "pytest", "jsonargparse")
# pytest cannot rewrite the assertions of plugins that the warm-up imported.
IGNORED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")

# The tests that a module's mutants are run against: its own, then those that train with it.
TESTS = {
    "functional": ["tests/test_functional.py", "tests/test_sparse.py", "tests/stores", "lightning_gc/functional.py"],
    "selection": ["tests/test_selection.py", "tests/test_layouts.py", "lightning_gc/selection.py", "tests/test_plan.py"],
    "callback": ["tests/test_callback.py", "lightning_gc/callback.py", "tests/test_fit.py"],
    "fit": ["tests/test_fit.py", "tests/test_remarks.py", "tests/test_targets_update.py"],
    "targets": ["tests/test_targets.py", "tests/test_targets_update.py"],
}
OPERATORS = (
    "AddNot", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceFalseWithTrue", "ReplaceTrueWithFalse", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
    "ZeroIterationForLoop", "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not",
    "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Div_Mul", "ReplaceBinaryOperator_FloorDiv_Mul", "ReplaceBinaryOperator_Mod_Mul",
    "ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq", "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_LtE_Lt", "ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is",
)  # fmt: skip


def mutants(source: str) -> Iterator[str]:
    """All distinct mutants of a module that differ in more than annotations."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    seen = {_essence(source)}
    candidates = list(_without_one_statement(source))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        occurrence = 0
        while (mutant := mutate_code(source, operator, occurrence)) is not None:
            candidates.append(mutant)
            occurrence += 1
    for mutant in candidates:
        try:
            essence = _essence(mutant)
        except SyntaxError:
            continue
        if essence not in seen:
            seen.add(essence)
            yield mutant


def _without_one_statement(source: str) -> Iterator[str]:
    lines = source.splitlines(keepends=True)
    simple = (ast.Expr, ast.Assign, ast.AugAssign, ast.Return, ast.Raise)
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                if isinstance(node, simple) and not docstring:
                    indent = " " * node.col_offset
                    yield "".join([*lines[: node.lineno - 1], f"{indent}pass\n", *lines[node.end_lineno :]])


def _essence(source: str) -> str:
    """The syntax tree without annotations, which nothing evaluates."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def run_tests(copy: Path, tests: list[str], timeout: float) -> bool:
    """Whether the tests pass in the copy of the project, in a fork."""
    pid = os.fork()
    if pid:
        deadline = time.monotonic() + timeout
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) == 0
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return False
            time.sleep(0.05)
    code = 1
    try:
        output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        import pytest

        found = [path for path in tests if (copy / path).exists()]
        markers = ["-m", "not slow and not distributed"]
        code = int(pytest.main(["-x", "-q", "--tb=line", "-p", "no:cacheprovider", *IGNORED, *markers, *found]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def test_module(name: str, workers: int, timeout: float) -> tuple[int, list[str]]:
    """How many mutants of a module there are, and the diffs of those that survived."""
    path = Path("lightning_gc") / f"{name}.py"
    source = (ROOT / path).read_text()
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for worker in range(workers):
            copy = Path(folder) / str(worker)
            for what in COPIED:
                original = ROOT / what
                if original.is_dir():
                    shutil.copytree(original, copy / what, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    copy.mkdir(exist_ok=True)
                    shutil.copy(original, copy / what)
            copies.put(copy)

        def survives(mutant: str) -> bool:
            copy = copies.get()
            (copy / path).write_text(mutant)
            shutil.rmtree(copy / path.parent / "__pycache__", ignore_errors=True)
            try:
                return run_tests(copy, TESTS[name], timeout)
            finally:
                copies.put(copy)

        if not survives(source):
            outputs = "".join(output.read_text() for output in Path(folder).glob("*/output.txt"))
            raise SystemExit(f"The tests of {name} fail without a mutation:\n{outputs}")
        every = list(mutants(source))
        survivors = []
        with ThreadPoolExecutor(workers) as pool:
            for number, (mutant, survived) in enumerate(zip(every, pool.map(survives, every), strict=True), 1):
                if survived:
                    diff = unified_diff(source.splitlines(), mutant.splitlines(), str(path), "mutant", lineterm="", n=0)
                    survivors.append("\n".join(list(diff)[2:]))
                    print(f"{name} {number}/{len(every)} survived\n{survivors[-1]}", flush=True)
                elif number % 20 == 0:
                    print(f"{name} {number}/{len(every)}", flush=True)
        return len(every), survivors


def main() -> None:
    """Test the modules named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", choices=TESTS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    # An editable install of the project must not be found before the copy.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    for module in WARM:
        importlib.import_module(module)
    total = alive = 0
    for name in arguments.modules:
        count, survivors = test_module(name, arguments.workers, arguments.timeout)
        print(f"{name}: {count - len(survivors)} of {count} mutants killed ({1 - len(survivors) / count:.1%})", flush=True)
        total, alive = total + count, alive + len(survivors)
    print(f"all: {total - alive} of {total} mutants killed ({1 - alive / total:.1%})")


if __name__ == "__main__":
    main()
