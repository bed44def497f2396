"""Mutation testing: change the code in small ways, one at a time, and see that a test fails each time.

    python tools/mutation.py equation/projection equation/blocks engines/tensors

Needs cosmic-ray, which makes most of the mutants (`pip install cosmic-ray`), Python 3.11 and a system that forks. The tests
are collected once; each mutant is tested in a fork, where the code of the functions that it changes is exchanged.
Mutants outside of functions (constants, decorators, defaults) are not made. Prints the survivors and the score.
"""

from __future__ import annotations

import argparse
import ast
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from types import CodeType, FunctionType

import pytest

ROOT = Path(__file__).parents[1]

# What a verdict of the graph rests on, the quickest first.
GRAPH = [
    "tests/selection/graph/test_layers.py",
    "tests/selection/test_readings.py",
    "tests/training/test_reading.py",
    "tests/selection/graph/test_equations.py",
]
# The tests that a module's mutants are run against: its own, then those that train with it.
TESTS = {
    "selection/graph/read": GRAPH,
    "selection/graph/nodes": GRAPH,
    "selection/graph/alone": GRAPH,
    "selection/graph/axes": ["tests/selection/graph/test_axes.py", *GRAPH],
    "selection/graph/states": GRAPH,
    "selection/graph/after": GRAPH,
    "selection/graph/views": GRAPH,
    "selection/readings": ["tests/selection/test_readings.py", "tests/training/test_reading.py"],
    "training/reading": ["tests/training/test_reading.py"],
    "equation/projection": [
        "tests/equation/test_projection.py",
        "tests/equation/test_blocks.py",
        "lightning_gc/equation/projection.py",
        "tests/equation/test_sparse.py",
        "tests/engines",
        "tests/equation/test_properties.py",
        "tests/training/test_precision.py",
    ],
    "equation/blocks": ["tests/equation/test_blocks.py", "tests/equation/test_projection.py", "tests/engines"],
    "equation/traits": ["tests/equation/test_traits.py", "tests/equation/test_projection.py", "tests/engines"],
    "engines/tensors": ["tests/engines", "tests/training/test_logged_means.py"],
    "measuring/measurement": [
        "tests/measuring/test_measurement.py",
        "tests/engines",
        "tests/measuring/test_metrics.py",
        "tests/training/test_logged_means.py",
    ],
    "selection/selection": [
        "tests/selection/test_selection.py",
        "lightning_gc/selection/selection.py",
        "tests/selection/test_filters.py",
        "tests/steps/test_plan.py",
        "tests/selection/test_layouts.py",
        "tests/test_callback.py",
    ],
    "callback": [
        "tests/test_callback.py",
        "lightning_gc/callback.py",
        "tests/training/test_remarks.py",
        "tests/training/test_fit.py",
        "tests/training/test_strategies.py",
    ],
    "steps/steps": [
        "tests/steps/test_attach.py",
        "tests/steps/test_targets_update.py",
        "tests/steps/test_targets_clipped_gradient.py",
        "tests/training/test_logged_steps.py",
        "tests/training/test_remarks.py",
    ],
    "steps/attach": ["tests/steps/test_attach.py", "lightning_gc/steps/attach.py"],
    "training/fit": [
        "tests/training/test_fit.py",
        "tests/training/test_remarks.py",
        "tests/steps/test_targets_update.py",
    ],
    "steps/hooks": ["tests/steps/test_hooks.py", "tests/steps/test_targets_update.py"],
}
SLOW = ("optax", "memory", "transformers", "gradcheck")  # tests with one of these in their names come last
OPERATORS = (
    "AddNot", "ExceptionReplacer", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd",
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
    """The bodies of all functions, by name: what a mutant may change."""
    tree = ast.parse(source)
    return "\n".join(
        f"{node.name} {[ast.dump(statement) for statement in node.body]}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )


class Mutate:
    """A pytest plugin: instead of running the collected tests once, run them once for each mutant of a module."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.workers, self.timeout = name, options.workers, options.timeout
        self.verbose, self.only = options.verbose, options.only
        self.path = ROOT / "lightning_gc" / f"{name}.py"
        self.source = self.path.read_text()
        self.count = 0
        self.survivors: list[str] = []
        self.terminal = os.dup(1)  # pytest captures the other
        self._running: dict[int, tuple[int, str, float]] = {}

    def pytest_configure(self) -> None:
        """Draw the same examples for each mutant; that one of them fails is enough."""
        from hypothesis import Phase, settings  # pytest is to import its plugin first

        settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Run what is quick first: most mutants fail in it."""
        items.sort(key=lambda item: any(word in item.nodeid.lower() for word in SLOW))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fork for each mutant."""
        self.functions = functions_of(self.path)
        self._start(session, self.source, 0)
        self._wait(limit=1)
        if not self.survivors:
            raise pytest.UsageError(f"The tests of {self.name} fail without a mutation.")
        self.survivors.clear()
        for number, mutant in enumerate(mutants(self.source), 1):
            if self.only and number not in self.only:
                continue
            self.count += 1
            self._start(session, mutant, number)
            self._wait(limit=self.workers)
        self._wait(limit=1)
        return True

    def _start(self, session: pytest.Session, mutant: str, number: int) -> None:
        pid = os.fork()
        if pid:
            self._running[pid] = number, mutant, time.monotonic() + self.timeout
            return
        code = 1
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            session.config.pluginmanager.unregister(name="terminalreporter")
            exchange(self.functions, compile(mutant, str(self.path), "exec"))
            session.config.option.maxfail = 1
            failed = _first_failure(session)
            code = 1 if failed else 0
            if failed and (self.verbose or not number):
                os.write(self.terminal, f"{self.name} {number} killed by {failed}\n".encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _wait(self, limit: int) -> None:
        """Wait until fewer than `limit` mutants are being tested."""
        while len(self._running) >= limit:
            time.sleep(0.02)
            for pid, (number, mutant, deadline) in list(self._running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if not done and time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    done, status = os.waitpid(pid, 0)
                if done:
                    del self._running[pid]
                    if status == 0:
                        self._survived(number, mutant)

    def _survived(self, number: int, mutant: str) -> None:
        diff = unified_diff(self.source.splitlines(), mutant.splitlines(), lineterm="", n=0)
        self.survivors.append("\n".join(list(diff)[2:]))
        if number:
            os.write(self.terminal, f"{self.name} {number} survived\n{self.survivors[-1]}\n".encode())


def _first_failure(session: pytest.Session) -> str:
    for index, item in enumerate(session.items):
        following = session.items[index + 1] if index + 1 < len(session.items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return item.nodeid
    return ""


def functions_of(path: Path) -> list[FunctionType]:
    """All functions that were defined in the file at `path`."""
    found = [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename == str(path)]
    assert found, "no function of the module was found"
    return found


def exchange(functions: list[FunctionType], mutant: CodeType) -> None:
    """Give these functions the code that they have in the mutant."""
    codes = {code.co_qualname: code for code in _codes(mutant)}
    for function in functions:
        code = codes.get(function.__code__.co_qualname)
        if code is not None and code.co_freevars == function.__code__.co_freevars:
            function.__code__ = code


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def main() -> None:
    """Test the modules named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", choices=TESTS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant")
    parser.add_argument("--verbose", action="store_true", help="name the test that kills each mutant")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of the mutants to test, such as survivors")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    name = arguments.modules[0]
    if len(arguments.modules) > 1:  # each in a process of its own: the tests that are collected differ
        for name in arguments.modules:
            pid = os.fork()
            if not pid:
                sys.argv[1:] = [name, *(word for word in sys.argv[1:] if word not in TESTS)]
                main()
                os._exit(0)
            os.waitpid(pid, 0)
        return
    plugin = Mutate(name, arguments)
    markers = ["-m", "not slow and not distributed"]
    code = pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", *markers, *TESTS[name]], plugins=[plugin])
    if not plugin.count:
        raise SystemExit(f"No mutant of {name} was tested: pytest exited with {code}.")
    killed = plugin.count - len(plugin.survivors)
    sys.stdout.write(f"{name}: {killed} of {plugin.count} mutants killed ({killed / plugin.count:.1%})\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
