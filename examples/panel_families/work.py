"""The trainings of one setting, and their file.

A file has one line of JSON for each finished training, so that a stopped panel loses one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from common import schemes
from common.errors import UserError
from common.population import Population

import keras_varinit as kv
from panel_families.settings import RATE_SEEDS, SETTINGS, Setting

#: The model as Keras builds it.
DEFAULT = "default"
#: How often in a training the metric is taken.
POINTS = 10
#: Schemes for what is not a kernel, and for heads.
VECTOR_IDS = ("fan_in_bias", "chrono_bias", "branch_end_zeros", "zero_head")

Record = dict[str, Any]
#: What tells trainings of one setting apart: scheme, learning rate, seed.
Case = tuple[str, float, int]


def check_scheme(name: str) -> None:
    """Checks the name of a scheme: `default`, one for kernels, one for vectors, or both with "+".

    Raises:
        UserError: There is no such scheme.
    """
    kernels, plus, vectors = name.partition("+")
    if plus and (vectors not in VECTOR_IDS or kernels in VECTOR_IDS):
        raise UserError(
            f"--schemes {name}: write KERNELS+VECTORS, with {', '.join(VECTOR_IDS)} for VECTORS."
        )
    if kernels not in (DEFAULT, *VECTOR_IDS):
        schemes.make(kernels)


def apply_scheme(model: keras.Model, name: str, seed: int) -> None:
    """Redraws the weights of a model.

    Args:
        model: Built.
        name: As `check_scheme` takes it.
        seed: Of the draws.
    """
    for part in name.split("+"):
        if part == "zero_head":
            _empty_heads(model)
        elif part in VECTOR_IDS:
            _draw_vectors(model, part, seed)
        elif part != DEFAULT:
            kv.initialize(model, schemes.make(part), seed=seed)


def _empty_heads(model: keras.Model) -> None:
    contexts = kv.analyze(model).contexts
    for variable in model.trainable_variables:
        context = contexts.get(variable.path)
        if context is not None and context.role == "head":
            variable.assign(keras.ops.zeros(variable.shape))


def _draw_vectors(model: keras.Model, identifier: str, seed: int) -> None:
    cls = type(keras.initializers.get(identifier))
    seeds = {"seed": seed} if "seed" in keras.initializers.get(identifier).get_config() else {}
    contexts = kv.analyze(model).vectors
    for variable in model.trainable_variables:
        context = contexts.get(variable.path)
        if context is not None and context.kind in cls.kinds:
            variable.assign(cls(**seeds, context=context)(variable.shape))


def read(path: pathlib.Path, setting: Setting) -> list[Record]:
    """The finished trainings of a setting.

    Raises:
        UserError: They are of a setting with other sizes, or the file is not the panel's.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:  # Stopped while it was being written.
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = _with_nan(json.loads(line))
            sizes, _, _ = record["sizes"], key(record), record["test"][-1]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path}, line {number}: is not the record of a training. Name another --out, or "
                "drop the trainings with --restart."
            ) from error
        if sizes != _sizes(setting):
            raise UserError(
                f"{path}: holds trainings with other sizes ({sizes}, not {_sizes(setting)}). Name "
                "another --out, or drop them with --restart."
            )
        records.append(record)
    return records


def lines(path: pathlib.Path) -> int:
    """How many trainings are in a file that may be growing."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def key(record: Record) -> Case:
    """What tells a training apart."""
    return record["scheme"], record["rate"], record["seed"]


def candidates(
    setting: Setting, scheme: str, records: Sequence[Record], seeds: int
) -> tuple[float, ...] | None:
    """The two learning rates that are best over the first `RATE_SEEDS` seeds, or None as yet.

    Args:
        setting: Of the trainings.
        scheme: Its name.
        records: Trainings, perhaps of other schemes too.
        seeds: How many there are in all.
    """
    scores = _scores(setting, scheme, records, setting.rates, min(seeds, RATE_SEEDS))
    return None if scores is None else tuple(sorted(scores, key=lambda r: -scores[r])[:2])


def best_rate(setting: Setting, scheme: str, records: Sequence[Record], seeds: int) -> float | None:
    """The learning rate with the best mean on validation data at the end, or None as yet.

    Args:
        setting: Of the trainings.
        scheme: Its name.
        records: Trainings, perhaps of other schemes too.
        seeds: How many there are, all of which decide among the two candidates.
    """
    two = candidates(setting, scheme, records, seeds)
    scores = None if two is None else _scores(setting, scheme, records, two, seeds)
    return None if scores is None else max(scores, key=lambda rate: scores[rate])


def _scores(
    setting: Setting, scheme: str, records: Sequence[Record], rates: Sequence[float], seeds: int
) -> dict[float, float] | None:
    """For each learning rate the mean over seeds on validation data; more is better."""
    of_case = {key(record): record["validation"][-1] for record in records}
    cases = {rate: [(scheme, rate, seed) for seed in range(seeds)] for rate in rates}
    if not all(case in of_case for tried in cases.values() for case in tried):
        return None
    sign = 1 if setting.task().higher_is_better else -1
    return {
        rate: sign * statistics.fmean(of_case[case] for case in tried)
        for rate, tried in cases.items()
    }


def total(setting: Setting, names: Sequence[str], seeds: int) -> int:
    """How many trainings there are."""
    first = min(seeds, RATE_SEEDS)
    return len(names) * (first * len(setting.rates) + 2 * (seeds - first))


def finished(setting: Setting, names: Sequence[str], seeds: int, records: Sequence[Record]) -> int:
    """How many of them are done."""
    done = set(map(key, records))
    return sum(case in done for case in _known(setting, names, seeds, records))


def missing(
    setting: Setting, names: Sequence[str], seeds: int, records: Sequence[Record]
) -> list[Case]:
    """The trainings that can be done next: first those that decide on learning rates.

    Seeds go outside, so that a stopped panel has all schemes in it.
    """
    done = set(map(key, records))
    left = [case for case in _known(setting, names, seeds, records) if case not in done]
    return [case for case in left if case[2] < RATE_SEEDS] or left


def _known(
    setting: Setting, names: Sequence[str], seeds: int, records: Sequence[Record]
) -> list[Case]:
    """All trainings that are known to be needed."""
    first = min(seeds, RATE_SEEDS)
    two = {name: candidates(setting, name, records, seeds) or () for name in names}
    return [(n, r, s) for s in range(first) for n in names for r in setting.rates] + [
        (n, r, s) for s in range(first, seeds) for n in names for r in two[n]
    ]


def find_setting(name: str, preset: str, data_dir: str | None = None) -> Setting:
    """A setting by its name.

    Args:
        name: Of the setting.
        preset: `"smoke"`, `"cpu"` or `"gpu"`.
        data_dir: A folder of images, or None for the data of the setting.
    """
    setting = next(setting for setting in SETTINGS if setting.name == name)
    if data_dir is not None:
        setting = setting.large(data_dir) if preset == "gpu" else setting.on_images(data_dir)
    return setting.tiny() if preset == "smoke" else setting


def train(setting: Setting, names: Sequence[str], seeds: int, path: pathlib.Path) -> None:
    """Does the trainings of a setting that are not in its file.

    Args:
        setting: What to train.
        names: Of the schemes.
        seeds: Trainings of each, with 0 to `seeds - 1`.
        path: The file.
    """
    records = read(path, setting)
    do = _trainer(setting) if missing(setting, names, seeds, records) else None
    with path.open("a", encoding="utf-8") as file:
        while do is not None and (cases := missing(setting, names, seeds, records)):
            for case in cases:
                records.append(do(*case))
                file.write(json.dumps(_plain(records[-1]), allow_nan=False) + "\n")
                file.flush()


def _trainer(setting: Setting) -> Callable[[str, float, int], Record]:
    """What does a training: scheme, learning rate, seed."""
    trained = population(setting)

    @functools.lru_cache(maxsize=1)
    def weights(scheme: str, seed: int) -> list[np.ndarray]:
        model = _build(setting, seed)
        apply_scheme(model, scheme, seed)
        return model.get_weights()  # type: ignore[no-any-return]

    def do(scheme: str, rate: float, seed: int) -> Record:
        start = weights(scheme, seed)
        began = time.perf_counter()
        history = trained.train(start, rate, seed)
        return {
            **{"scheme": scheme, "rate": rate, "seed": seed},
            **dataclasses.asdict(history),
            "seconds": round(time.perf_counter() - began, 3),
            "sizes": _sizes(setting),
        }

    return do


def population(setting: Setting) -> Population:
    """What trains a setting, with whatever weights, learning rate and order of data."""
    return Population(
        _build(setting, 0),
        setting.make_optimizer(),
        setting.task(),
        batch_size=setting.batch_size,
        steps=setting.steps,
        points=min(POINTS, setting.steps),
        warmup=setting.warmup,
    )


def _build(setting: Setting, seed: int) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    return setting.build()


def _sizes(setting: Setting) -> Record:
    names = ("depth", "width", "optimizer", "steps", "batch_size", "warmup", "clip")
    return {"task": setting.task().name, **{name: getattr(setting, name) for name in names}}


def _plain(record: Record) -> Record:
    """NaN, which JSON does not have, as None."""
    losses = [None if math.isnan(loss) else loss for loss in record["loss"]]
    return {**record, "loss": losses}


def _with_nan(record: Record) -> Record:
    return {**record, "loss": [math.nan if loss is None else loss for loss in record["loss"]]}
