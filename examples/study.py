"""Does Gradient Centralization help? A paired study: images, language, regression and fine-tuning, on CPU cores.

Each *setting* (task, optimizer, learning rate, schedule, ...) is trained in several *arms*: without Gradient
Centralization, with target "gradient", with target "update", and with parts of the network alone. A seed decides the
data, the initial weights and the order of the batches, and is the same in every arm, so that the arms can be compared
pairwise. Each run leaves one file; a run that has one is not trained again.

    python study.py                                  a look at the images, in under two minutes
    python study.py --task regression                a look at another task
    python study.py --full --workers 2               everything, 8 seeds: hours
    python study.py --full --settings sgd adamw      part of it
    python study.py --full --report-only             tables and plots of what is there

The results are summarised for the images in results.csv (each run), summary.csv (paired differences with confidence
intervals and p-values), summary.md and plots; for the other tasks in the same with tasks_ before the name; for all in
situations.md; and rule.csv and rule.md say whether what is logged in the first steps tells in advance what helps. Images
need Fashion-MNIST (fashion_mnist.py says where to get it), the other tasks nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fashion_mnist
from paired_study import report, runner
from paired_study.settings import ARMS, ARMS_AFTERWARDS, FIRST_STEPS, IMAGE_ARMS, SETTINGS, TASKS

QUICK_SETTINGS = {
    "images": ["sgd", "high-lr"],
    "language": ["language-adamw"],
    "regression": ["field-adamw", "burgers-adamw"],
    "fine-tuning": ["digits-all-adamw"],
}
QUICK_ARMS, QUICK_SEEDS = ["none", "gradient"], 3
QUICK_CHANGES = {"images": 2_000, "epochs": 2, "steps": 150, "head_steps": 100}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line's arguments, with what follows from --quick and --full filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="a look at the study: few settings, two arms, three seeds, short runs (the default)",
    )
    size.add_argument("--full", action="store_true", help="everything with 8 seeds, unless you choose less of it")
    size.add_argument(
        "--tune", action="store_true", help="without it, at 1/3, 1 and 3 of each learning rate, other seeds"
    )
    parser.add_argument("--task", nargs="+", choices=TASKS, help="default: images, or with --full and --tune all")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help=", ".join(SETTINGS))
    arms = list(dict.fromkeys([*IMAGE_ARMS, *ARMS, *ARMS_AFTERWARDS, FIRST_STEPS]))
    parser.add_argument("--arms", nargs="+", choices=arms, metavar="ARM", help=", ".join(arms))
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds, from 0 on")
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN_FOLDER, help="the IDX files' folder")
    parser.add_argument("--results", type=Path, help="default: study-results/full, /quick or /tune")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes, each of which trains on one core (default: 1)"
    )
    args = parser.parse_args(argv)
    tasks = args.task or ([*TASKS] if args.full or args.tune or args.settings else ["images"])
    names = [name for task in tasks for name in (TASKS[task] if args.full or args.tune else QUICK_SETTINGS[task])]
    args.settings = (
        [name for task in tasks for name in TASKS[task] if name in args.settings] if args.settings else names
    )
    args.arms = args.arms or (None if args.full else QUICK_ARMS)
    args.seeds = args.seeds or (8 if args.full else QUICK_SEEDS)
    args.results = args.results or Path("study-results") / ("full" if args.full else "tune" if args.tune else "quick")
    return args


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, and report."""
    args = parse_args(argv)
    if args.tune:
        grid = runner.make_tuning_grid(args.settings)
    else:
        grid = runner.make_grid(args.settings, args.arms, args.seeds, {} if args.full else QUICK_CHANGES)
    if not args.report_only:
        try:
            runner.run_all(grid, args.results, args.data, args.workers)
        except FileNotFoundError as error:
            sys.exit(str(error))
    if args.tune:
        table = report.tuning(args.results, args.settings)
        (args.results / "tuning.md").write_text(table + "\n")
        print(table)
    else:
        report.write_report(args.results, args.settings, args.arms, args.seeds)


if __name__ == "__main__":
    main()
