"""Who wins: the panel's trainings as a table, curves, CSV and JSON."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from common import paired, study, summary

from panel_families.settings import RATE_SEEDS, Setting
from panel_families.work import Record, best_rate, key

Records = Mapping[str, Sequence[Record]]
WORDS = {"better": "won", "worse": "lost", "undecided": "even"}


@dataclasses.dataclass(frozen=True)
class Side:
    """The trainings of a scheme at its best learning rate.

    `at_edge` says that no larger, or no smaller, learning rate was tried.
    """

    rate: float
    at_edge: bool
    records: list[Record]

    def values(self, measure: str) -> list[float]:
        """On test data, for each seed: the metric at the `"end"`, or its `"mean"`."""
        rows = [record["test"] for record in self.records]
        return [row[-1] if measure == "end" else statistics.fmean(row) for row in rows]

    @property
    def lost(self) -> int:
        """Trainings whose loss stopped being a finite number."""
        return sum(record["is_lost"] for record in self.records)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A scheme against another one, by default the model as Keras builds it, on one setting.

    Differences are positive where the scheme is better, whatever the metric.
    """

    setting: Setting
    baseline: str
    scheme: str
    base: Side
    side: Side
    end: paired.Difference
    mean: paired.Difference

    @property
    def verdict(self) -> str:
        """`"won"`, `"lost"` or `"even"`: by the end, or by the mean where the end is undecided."""
        decisive = self.mean if self.end.verdict == "undecided" else self.end
        return WORDS[decisive.verdict]


def best_side(records: Sequence[Record], setting: Setting, scheme: str, seeds: int) -> Side:
    """The trainings at the learning rate that is best on validation data."""
    rate = best_rate(setting, scheme, records, seeds)
    if rate is None:
        raise ValueError(f"{setting.name}: some trainings of {scheme} are missing.")
    of_seed = {r["seed"]: r for r in records if (r["scheme"], r["rate"]) == (scheme, rate)}
    at_edge = rate in (min(setting.rates), max(setting.rates))
    return Side(rate, at_edge, [of_seed[seed] for seed in range(seeds)])


def compare(
    setting: Setting, records: Sequence[Record], scheme: str, seeds: int, baseline: str = "default"
) -> Comparison:
    """Compares a scheme with the baseline, pair by pair."""
    base, side = (best_side(records, setting, name, seeds) for name in (baseline, scheme))
    sign = 1 if setting.task().higher_is_better else -1
    differences = [
        paired.difference(*([sign * value for value in s.values(measure)] for s in (side, base)))
        for measure in ("end", "mean")
    ]
    return Comparison(setting, baseline, scheme, base, side, *differences)


def table(comparisons: Sequence[Comparison]) -> str:
    """A line for each setting, of one scheme."""
    header = (
        *("", "family", "network", "data", "metric", f"{comparisons[0].baseline} (rate)"),
        *(f"{comparisons[0].scheme} (rate)", "difference at the end", "of the mean"),
    )
    return summary.table(header, [_row(comparison) for comparison in comparisons])


def family_table(comparisons: Sequence[Comparison]) -> str:
    """A line for each scheme, of one setting."""
    c = comparisons[0]
    header = ("", f"{_network(c.setting)} (rate)", "difference at the end", "of the mean")
    rows = [("", f"{c.baseline}: {_side(c.base)}", "", "")]
    for c in comparisons:
        differences = (_difference(d) for d in (c.end, c.mean))
        rows.append((c.verdict, f"{c.scheme}: {_side(c.side)}", *differences))
    return summary.table(header, rows)


def _network(setting: Setting) -> str:
    task = setting.task()
    return f"{setting.family}, {setting.depth} × {setting.width}, {task.name}, {task.metric}"


def _row(c: Comparison) -> tuple[str, ...]:
    sizes = f"{c.setting.depth} × {c.setting.width}, {c.setting.optimizer}"
    task = c.setting.task()
    return (
        *(c.verdict, c.setting.family, sizes, task.name, task.metric),
        *(_side(side) for side in (c.base, c.side)),
        *(_difference(d) for d in (c.end, c.mean)),
    )


def _side(side: Side) -> str:
    values = side.values("end")
    text = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f} ({side.rate:g}"
    text += "*)" if side.at_edge else ")"
    return f"{text}, {side.lost} lost" if side.lost else text


def _difference(difference: paired.Difference) -> str:
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return f"{text} {WORDS[difference.verdict]}"


def count(comparisons: Sequence[Comparison]) -> str:
    """How many are won, lost and even."""
    verdicts = [comparison.verdict for comparison in comparisons]
    parts = ", ".join(f"{verdicts.count(word)} {word}" for word in WORDS.values())
    return (
        f"{comparisons[0].scheme} against {comparisons[0].baseline}: {parts}, of {len(verdicts)}."
    )


def write(
    settings: Sequence[Setting],
    records: Records,
    schemes: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Prints the tables and writes all files.

    Args:
        settings: Those that were trained.
        records: By the setting's name, all trainings.
        schemes: Names, the baseline first.
        options: From the command line.
    """
    out = options.out
    _write_csv(settings, records, out / "history.csv")
    if options.seeds < 2 or len(schemes) < 2:
        print(f"In {out}: history.csv. Intervals need two seeds and a scheme beside the baseline.")
        return
    every = {
        scheme: [compare(s, records[s.name], scheme, options.seeds, schemes[0]) for s in settings]
        for scheme in schemes[1:]
    }
    text = "\n\n".join([*_tables(every, len(settings)), _legend(options.seeds)])
    (out / "table.txt").write_text(f"{text}\n", encoding="utf-8")
    content = {
        "suite": options.suite,
        "seeds": options.seeds,
        "machine": study.machine(),
        "comparisons": [_as_json(c) for rows in every.values() for c in rows],
    }
    (out / "panel.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(every, out / "curves.png", options.seeds)
    print(f"\n{text}\nIn {out}: panel.json, history.csv, table.txt, curves.png")


def _tables(every: Mapping[str, Sequence[Comparison]], settings: int) -> list[str]:
    """A table for each scheme or, where there are more of these, for each setting."""
    if len(every) > settings:
        counts = "\n".join(count(rows) for rows in every.values())
        return [
            counts,
            *(family_table([rows[n] for rows in every.values()]) for n in range(settings)),
        ]
    return [f"{count(rows)}\n\n{table(rows)}" for rows in every.values()]


def _legend(seeds: int) -> str:
    return (
        f"± is the sample standard deviation over {seeds} seeds. Differences are paired by seed, "
        "with Student's 95 % interval; above 0 is better. The mean is that over\n"
        "ten points of the training. Learning rates are those with the best mean on validation "
        f"data (four with {min(seeds, RATE_SEEDS)} seeds, the best two with all), the figures are "
        "those on test data; *\nis the largest or smallest rate tried. "
        "Won or lost: the interval of the end does not hold zero or, where it does, that of the "
        f"mean. Keras {keras.__version__}."
    )


def _as_json(c: Comparison) -> dict[str, Any]:
    return {
        **{"setting": c.setting.name, "baseline": c.baseline, "scheme": c.scheme},
        "verdict": c.verdict,
        **{
            f"{name}_{measure}": side.values(measure)
            for name, side in (("baseline", c.base), ("scheme", c.side))
            for measure in ("end", "mean")
        },
        **{"baseline_rate": c.base.rate, "scheme_rate": c.side.rate},
        **{"end": dataclasses.asdict(c.end), "mean": dataclasses.asdict(c.mean)},
    }


def _write_csv(settings: Sequence[Setting], records: Records, path: pathlib.Path) -> None:
    columns = ("scheme", "rate", "seed")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["setting", *columns, "step", "loss", "validation", "test"])
        for setting in settings:
            for record in sorted(records[setting.name], key=key):
                points = len(record["test"])
                for n in range(points):
                    step = round(setting.steps * (n + 1) / points)
                    values = (record[name][n] for name in ("loss", "validation", "test"))
                    cells = [record[name] for name in columns]
                    row = [setting.name, *cells, step, *(f"{value:.6g}" for value in values)]
                    writer.writerow(row)


def plot(every: Mapping[str, Sequence[Comparison]], path: pathlib.Path, seeds: int) -> None:
    """Draws the metric by step, a panel for each setting: mean and range over seeds."""
    from common import study_plots
    from matplotlib import pyplot as plt

    first = next(iter(every.values()))
    columns = min(3, len(first))
    titles = [f"{c.setting.family}: {c.setting.task().name}" for c in first]
    figure, panels = study_plots.grid(-(-len(first) // columns), columns, titles, panel=(4.4, 2.7))
    for axes in panels.flat[len(first) :]:
        axes.remove()
    for n, axes in enumerate(panels.flat[: len(first)]):
        setting = first[n].setting
        sides = {first[n].baseline: first[n].base} | {s: rows[n].side for s, rows in every.items()}
        for line, (name, side) in enumerate(sides.items()):
            values = np.array([record["test"] for record in side.records])
            steps = setting.steps * np.arange(1, values.shape[1] + 1) / values.shape[1]
            study_plots.draw_range(axes, steps, values, name, line)
        if setting.task().metric == "error":
            axes.set_yscale("log")
        axes.set_ylabel(setting.task().metric)
    for axes in panels.flat[max(0, len(first) - columns) : len(first)]:
        axes.set_xlabel("step")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    title = "Test data, each scheme at its own best learning rate"
    figure.suptitle(summary.over_seeds(title, seeds), fontsize=13)
    figure.savefig(path, dpi=110)
    plt.close(figure)
