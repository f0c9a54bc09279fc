"""Does it help where people work? `python examples/panel.py --help`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common import study_options
from common.errors import UserError, require

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"seeds": 2, "schemes": ["recommended"], "workers": os.cpu_count() or 1},
    "cpu": {"seeds": 10, "schemes": ["recommended"], "workers": os.cpu_count() or 1},
    "gpu": {"seeds": 5, "schemes": ["recommended"], "workers": 1},
}
EPILOG = """\
examples:
  python examples/panel.py --out results/panel
  python examples/panel.py --families vit unet --schemes recommended mimetic --out results/few
  python examples/panel.py --suite choice --seeds 4 --schemes he_normal --out results/choice
  python examples/panel.py --suite deep --baseline he_normal --schemes asv_forward --out results/f

Each family has two settings, of other sizes and mostly other data. Rules were chosen on one half
and are reported on the other. The suite "deep" has families of its own. All trainings of a network
share one compiled step, so the panel needs JAX.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the panel; see `study_options.main`."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=pathlib.Path(__file__).name,
        description="Trains families of networks with Keras's default initializers and with "
        "others, with equal seeds and the best learning rate of each, and says who wins.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="cpu",
        help="smoke: seconds, every part runs, nothing is learned; cpu: what two cores do in an "
        "evening; gpu: four times as wide, ten times as long, on the images of --data-dir. Options "
        "beside it win (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--families", nargs="+", metavar="NAME", help="(default: all)")
    parser.add_argument(
        "--schemes", nargs="+", metavar="ID",
        help="what is compared: recommended, an id of keras_varinit or Keras, "
        "residual_scaled:RULE[:BASE], signal_preserving:1/L, depth_scaled:SCHEDULE:VARIANCE, "
        "fan_in_bias, chrono_bias, branch_end_zeros, zero_head, or one for kernels and one of the "
        "last four with a + between them",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", default="default", metavar="ID",
        help="what it is compared with: default, the model as Keras builds it, or another scheme "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", metavar="DIR",
        help="images of 32×32 as train/<class>/*.png (or .jpg) and val/ or test/ alike, such as "
        "those of CIFAR-10, for --preset gpu or --suite deep",
    )  # fmt: skip
    parser.add_argument(
        "--suite", choices=("report", "choice", "deep"), default="report",
        help="report: the settings that nothing was chosen on; choice: the others; deep: ResNet-56 "
        "and 110, F34 and F50, 54 dense layers (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help="trainings with 0 to N-1")
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="processes, each with one core and one network (default: as many as there are cores; "
        "one with --preset gpu)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="DIR",
        help="folder of the trainings, the tables and the plot; given again, a stopped panel goes "
        "on",
    )  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="drop the trainings in --out")
    return parser


def run(options: argparse.Namespace) -> None:
    """Trains what is missing, then prints and plots.

    Raises:
        UserError: An option, a package or the data is wrong.
    """
    for package in ("matplotlib", "tqdm", "scipy", "jax"):
        require(package, package, "for the panel")
    require("sklearn", "scikit-learn", "for the panel's data")
    from panel_families import start

    start.import_keras()
    keras = require("keras", "keras", "for the panel")

    if keras.config.backend() != "jax":
        raise UserError(
            f"KERAS_BACKEND={keras.config.backend()}: all trainings of a network share one step "
            "compiled by JAX. Set KERAS_BACKEND=jax, or leave it out."
        )
    if options.preset == "gpu" and options.data_dir is None:
        raise UserError(
            "--preset gpu trains on images of your own, which --data-dir names. For CIFAR-10 lay "
            "them out as train/<class>/*.png and test/<class>/*.png."
        )
    if options.data_dir is not None and options.preset == "cpu" and options.suite != "deep":
        raise UserError(
            f"--data-dir {options.data_dir}: these settings have data that comes with Python and "
            "scikit-learn. Add --preset gpu or --suite deep, or leave it out."
        )
    for name in ("seeds", "workers"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be 1 or more.")
    from panel_families import report, settings, work

    every = [setting for setting in settings.SETTINGS if setting.suite == options.suite]
    names = list(dict.fromkeys(setting.family for setting in every))
    families = options.families or names
    if unknown := [name for name in families if name not in names]:
        raise UserError(f"--families {unknown[0]}: no such family. There are: {', '.join(names)}.")
    schemes = list(dict.fromkeys([options.baseline, *options.schemes]))
    for name in schemes:
        work.check_scheme(name)
    chosen = [
        work.find_setting(f"{family}-{options.suite}", options.preset, options.data_dir)
        for family in dict.fromkeys(families)
    ]
    paths = {s.name: options.out / "trainings" / f"{s.name}.jsonl" for s in chosen}
    try:
        (options.out / "trainings").mkdir(parents=True, exist_ok=True)
        for path in paths.values() if options.restart else ():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written to: {error.strerror}.") from error
    totals = {s.name: work.total(s, schemes, options.seeds) for s in chosen}
    there = {
        s.name: work.finished(s, schemes, options.seeds, work.read(paths[s.name], s))
        for s in chosen
    }
    if any(there.values()):
        total = sum(totals.values())
        print(f"{sum(there.values())} of {total} trainings are in {options.out}.")
    jobs = [
        (s, schemes, options.seeds, paths[s.name]) for s in chosen if there[s.name] < totals[s.name]
    ]
    if jobs:
        _train(jobs, min(options.workers, len(jobs)), totals, there)
    everything = {s.name: work.read(paths[s.name], s) for s in chosen}
    report.write(chosen, everything, schemes, options)


def _train(
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    totals: Mapping[str, int],
    there: Mapping[str, int],
) -> None:
    """Trains in processes of their own, and shows how far they are."""
    import tqdm
    from panel_families import start, work

    # A new process, for JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = {job[0].name: work.lines(job[-1]) for job in jobs}
    bar = tqdm.tqdm(
        total=sum(totals.values()), initial=sum(there.values()), unit="training", disable=None,
        dynamic_ncols=True,
    )  # fmt: skip
    with context.Pool(workers, start.in_new_process, (workers,)) as pool, bar:
        pending = {job[0].name: pool.apply_async(work.train, job) for job in jobs}
        while pending:
            time.sleep(0.2)
            for name in [name for name, result in pending.items() if result.ready()]:
                pending.pop(name).get()
                if bar.disable:
                    print(f"{name}: done, {len(pending)} networks to go", flush=True)
            new = sum(work.lines(job[-1]) - before[job[0].name] for job in jobs)
            bar.update(sum(there.values()) + new - bar.n)


if __name__ == "__main__":
    sys.exit(main())
