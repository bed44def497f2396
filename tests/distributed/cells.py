"""The table of docs/distributed.md, made of the checks themselves: ``python -m tests.distributed.cells`` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.distributed.checks import Check, Training
from tests.distributed.deepspeed_checks import Refused, Resumed
from tests.distributed.mixed import InSixteenBits, MastersInSixteenBits

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
BEGIN, END = "<!-- made by tests/distributed/cells.py: begin -->\n", "<!-- end -->\n"
TARGETS = ("gradient", "clipped_gradient", "update")
FLAT = ", `use_orig_params=False`"
IN_32_BITS, IN_16_BITS = (Check, Resumed), (InSixteenBits, MastersInSixteenBits)

# The row of a check, by how its name begins; the longest beginning counts.
ROWS = {
    "ddp": {"": "DDP"},
    "fsdp": {
        "full_shard": "FSDP `FULL_SHARD`",
        "shard_grad_op": "FSDP `SHARD_GRAD_OP`",
        "hybrid_shard": "FSDP `HYBRID_SHARD`",
        "no_shard": "FSDP `NO_SHARD`",
        "bf16-mixed": "FSDP, `bf16-mixed`",
        "bf16-true": "FSDP, `bf16-true`",
    },
    "dtensor": {
        "fsdp2": "FSDP2 (`ModelParallelStrategy`)",
        "fsdp2-offload": "FSDP2 with `CPUOffloadPolicy` ¹",
        "hybrid": "FSDP2 with copies (HSDP)",
        "tensor_parallel": "tensor parallel",
        "both": "tensor parallel and FSDP2",
        "fsdp2-bf16-mixed": "FSDP2, `bf16-mixed`",
        "fsdp2-bf16-true": "FSDP2, `bf16-true`",
        "tensor_parallel-bf16-mixed": "tensor parallel, `bf16-mixed`",
        "tensor_parallel-bf16-true": "tensor parallel, `bf16-true`",
    },
    "deepspeed": {
        "zero_0": "DeepSpeed without ZeRO",
        **{f"zero_{stage}": f"DeepSpeed ZeRO {stage}" for stage in (1, 2, 3)},
        **{f"zero_{stage}-round_robin": f"ZeRO {stage} with `round_robin_gradients`" for stage in (1, 2)},
        "zero_2-aligned": "ZeRO 2 with `parameter_alignment`",
        "zero_3-sub_groups": "ZeRO 3 with `sub_group_size`",
        **{f"zero_{stage}-offload": f"ZeRO {stage} with `offload_optimizer` on the CPU" for stage in (1, 2, 3)},
        "zero_3-offload_both": "ZeRO 3 with `offload_optimizer` and `offload_param` on the CPU",
        "zero_0-bf16": "DeepSpeed without ZeRO, `bf16-mixed`",
        **{f"zero_{stage}-bf16": f"ZeRO {stage}, `bf16-mixed`" for stage in (1, 2, 3)},
        **{f"zero_{stage}-fp16": f"ZeRO {stage}, `16-mixed` ²" for stage in (1, 2, 3)},
        "bf16_optimizer": "ZeRO 1, `bf16-mixed`, `grad_accum_dtype: fp32` (BF16_Optimizer)",
    },
}

# What is refused whatever the target, before training; the mark of its reason on the page, and the test that shows it.
NEVER_RUN = (
    "NVMe offload",
    "hpZ (`zero_hpz_partition_size`)",
    "MiCS",
    "ZenFlow",
    "SuperOffload",
    "Muon",
    "tensor parallelism (AutoTP)",
    "mixtures of experts",
    "`torch_autocast` in float16",
    "`legacy_fusion`",
    "LAMB in 16 bits without ZeRO",
)
REFUSED = {
    "FSDP with `cpu_offload`": ("³", "test_the_cpu_offload_of_fsdp_is_refused"),
    **{f"DeepSpeed: {what}": ("⁴", "test_what_was_never_run_with_deepspeed_is_refused_by_name") for what in NEVER_RUN},
    "any other strategy": ("⁵", "test_an_unknown_strategy_is_refused_before_anything_is_trained"),
}


@dataclass(frozen=True)
class Cell:
    """One check: where it stands in the table, and with which options."""

    row: str
    target: str
    check: Any
    test: str
    world_size: int

    @property
    def options(self) -> str:
        """Letters, as the page explains them."""
        if isinstance(self.check, Resumed):
            return "r"
        training = getattr(self.check, "training", Training())
        arguments = dict(training.gc or ())
        options = {
            "c": training.clip,
            "a": training.accumulate > 1,
            "g": "groups" in training.optimizer,
            "f": "include" in arguments or "exclude" in arguments,
            "4": self.world_size == 4,
        }
        return "".join(letter for letter, has_it in options.items() if has_it)


def cells() -> Iterator[Cell]:
    """Those of all engines; checks of costs and of single shards stand in no row."""
    for engine, rows in ROWS.items():
        for world_size, checks in import_module(f"tests.distributed.{engine}_checks").CHECKS.items():
            for name, check in checks.items():
                if isinstance(check, (*IN_32_BITS, *IN_16_BITS, Refused)):
                    row = rows[max((start for start in rows if name.startswith(start)), key=len)]
                    row += FLAT if name.endswith("-flat") else ""
                    yield Cell(row, target_of(check), check, f"test_{engine}[{world_size}-{name}]", world_size)


def target_of(check: Any) -> str:
    """What the check's callback centralizes."""
    arguments = getattr(check, "gc", None) or getattr(getattr(check, "training", None), "gc", None) or ()
    return dict(arguments).get("target", "gradient")


def table(kinds: tuple[type, ...], refused: bool) -> str:
    """The rows that have checks of these kinds."""
    found = list(cells())
    in_order = [row for rows in ROWS.values() for row in rows.values()]
    rows = sorted(
        {cell.row for cell in found if isinstance(cell.check, kinds)},
        key=lambda row: (in_order.index(row.split(FLAT)[0]), row),
    )
    lines = [
        "| engine | `gradient` | `clipped_gradient` | `update` |",
        "| --- | :-: | :-: | :-: |",
        *(
            f"| {row} | {' | '.join(mark([c for c in found if (c.row, c.target) == (row, t)]) for t in TARGETS)} |"
            for row in rows
        ),
    ]
    if refused:
        lines += [f"| {row} |{f' refused {reason} |' * 3}" for row, (reason, _) in REFUSED.items()]
    tests = [f"- {row}: {', '.join(f'`{c.test}`' for c in found if c.row == row)}" for row in rows]
    if refused:
        tests += [f"- refused {reason}: `{test}`" for reason, test in dict.fromkeys(REFUSED.values())]
    fold = ["", "<details><summary>The tests behind the marks</summary>", "", *tests, "", "</details>", ""]
    return "\n".join(lines + fold)


def mark(of_cell: list[Cell]) -> str:
    """A tick, and the letters of the options that it was tried with, each by itself or with others."""
    refused = [cell for cell in of_cell if isinstance(cell.check, Refused)]
    works = [cell for cell in of_cell if cell not in refused]
    letters = [letter for letter in "cagfr4" if any(letter in cell.options for cell in works)]
    said = [" ".join(["✓", *letters])] if works else []
    said += ["refused where clipped ⁶" for _ in refused]
    return "; ".join(said) or "not run"


def document() -> str:
    """What stands between the marks on the page."""
    return (
        "### In 32 bits\n\n"
        + table(IN_32_BITS, refused=True)
        + "\n### In 16 bits\n\n"
        + table(IN_16_BITS, refused=False)
    )


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + document() + END + rest.partition(END)[2])
