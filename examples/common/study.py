"""A study: many trainings that can be stopped, resumed and read afterwards.

A folder holds `results.json` (settings, versions, hardware, one record for each finished training),
`history.csv` (a row for each epoch) and, while a training runs, `unfinished/`. The same command
given again does what is missing, within a training from its last whole epoch.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

import keras_varinit as kv
from common import progress
from common.batches import SeededBatches
from common.errors import UserError

#: What tells the trainings of a study apart: initializer, seed, optimizer and so on.
Settings = Mapping[str, str | int | float]
#: By metric, a value for each epoch.
History = dict[str, list[float]]


def study_cases(seeds: int, **choices: Iterable[str | int | float]) -> list[Settings]:
    """The settings of all trainings: each combination of the choices with each seed.

    Seeds go outside, so that a study that is stopped early has all combinations in it.
    """
    combinations = list(itertools.product(*(dict.fromkeys(c) for c in choices.values())))
    return [
        {**dict(zip(choices, chosen, strict=True)), "seed": seed}
        for seed in range(seeds)
        for chosen in combinations
    ]


class Study:
    """The records of a folder.

    Args:
        name: The study's name.
        out: Its folder, made if it is not there.
        options: What all trainings share: data, model, epochs, command line.
        restart: Drop the records of an earlier call.

    Raises:
        UserError: The folder cannot be written to, or holds another study or other options.
    """

    def __init__(
        self, name: str, out: pathlib.Path, options: Mapping[str, Any], restart: bool = False
    ) -> None:
        self.out = out
        self._path = out / "results.json"
        self._head = {
            "study": name,
            "backend": keras.config.backend(),
            "options": json.loads(json.dumps(dict(options), default=str)),
        }
        self.records: list[dict[str, Any]] = []
        try:
            out.mkdir(parents=True, exist_ok=True)
            if restart:
                shutil.rmtree(out / "unfinished", ignore_errors=True)
            elif self._path.exists():
                self._read()
                return
            self._write()
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written to: {error.strerror}.") from error

    def run(
        self,
        cases: Sequence[Settings],
        train: Callable[[Settings, pathlib.Path], dict[str, Any]],
    ) -> None:
        """Trains what is not in the records yet; after each training the files are whole.

        Args:
            cases: The settings of each training.
            train: Does one; gets its settings and a folder for what it needs to go on after a
                stop. Returns what to record: `history` by metric, and what else there is.
        """
        missing = [case for case in cases if self.find(case) is None]
        if len(missing) < len(cases):
            print(f"{len(cases) - len(missing)} of {len(cases)} trainings are in {self.out}.")
        with progress.overall_bar(len(missing)) as bar:
            for number, case in enumerate(missing, start=1):
                started = time.perf_counter()
                folder = self.out / "unfinished" / _file_name(case)
                folder.mkdir(parents=True, exist_ok=True)
                record = {"settings": dict(case), **train(case, folder)}
                record["seconds"] = round(time.perf_counter() - started, 2)
                self.records.append(record)
                self._write()
                shutil.rmtree(folder)
                bar.update()
                bar.write(f"[{number}/{len(missing)}] {_line(record)}")
        if not any((self.out / "unfinished").glob("*")):
            shutil.rmtree(self.out / "unfinished", ignore_errors=True)

    def find(self, case: Settings) -> dict[str, Any] | None:
        """The record of a training, or None."""
        return next((r for r in self.records if r["settings"] == dict(case)), None)

    def _read(self) -> None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            trainings = found["trainings"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--out {self.out}: its results.json is not that of a study. Name another folder, "
                "or replace it with --restart."
            ) from error
        differences = list(_differences({key: found.get(key) for key in self._head}, self._head))
        if differences:
            raise UserError(
                f"--out {self.out}: holds results with other settings ({'; '.join(differences)}). "
                "Name another folder, or drop them with --restart."
            )
        self.records = [_with_nan(record) for record in trainings]

    def _write(self) -> None:
        content = {**self._head, "machine": machine(), "trainings": self.records}
        _replace(self._path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
        settings = list(dict.fromkeys(k for r in self.records for k in r["settings"]))
        metrics = list(dict.fromkeys(k for r in self.records for k in r["history"]))
        path = self.out / "history.csv.new"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*settings, "epoch", *metrics])
            for record in self.records:
                cells = [record["settings"].get(key, "") for key in settings]
                columns = [record["history"][metric] for metric in metrics]
                for epoch, values in enumerate(zip(*columns, strict=True), start=1):
                    writer.writerow([*cells, epoch, *(f"{value:.6g}" for value in values)])
        path.replace(self.out / "history.csv")


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What differs, setting by setting: "epochs: 12 and not 20"."""
    for key in dict.fromkeys((*wanted, *found)):
        there, here = found.get(key), wanted.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here)
        elif there != here:
            yield f"{key}: {there} and not {here}"


def fit(
    model: keras.Model,
    batches: SeededBatches,
    *,
    label: str,
    epochs: int,
    validation: tuple[np.ndarray, np.ndarray],
    folder: pathlib.Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> History:
    """Trains a compiled model, from where an interrupted call stopped.

    Args:
        model: Built and compiled.
        batches: What to train on.
        label: What the progress bar shows.
        epochs: In all.
        validation: Images and labels. Where devices share the batches, those at the end are left
            out that not every device gets one of.
        folder: Where the state of each whole epoch is kept.
        callbacks: More of them.

    Returns:
        By metric a value for each epoch, those before the stop too. Fewer than `epochs` where the
        loss stopped being a finite number.
    """
    state = _State(folder)
    state.load(model)
    if not state.finished(epochs):
        devices = _devices()
        if (size := len(batches[0][1])) % devices:
            raise UserError(f"A batch of {size} cannot be shared by {devices} devices.")
        whole = len(validation[1]) // devices * devices
        # Keras may fetch the first batches before it calls any callback.
        batches.start_epoch(state.epochs)
        model.fit(
            batches,
            epochs=epochs,
            initial_epoch=state.epochs,
            # The batches shuffle themselves; Keras would shuffle them again, out of a generator
            # whose state no file keeps.
            shuffle=False,
            validation_data=tuple(part[:whole] for part in validation),
            validation_batch_size=512 // devices * devices,
            callbacks=[
                _EpochOrder(batches),
                progress.EpochBar(label, epochs),
                state,
                *callbacks,
            ],
            verbose=0,
        )
    return state.history


def _devices() -> int:
    """How many share a batch."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        return distribution.device_mesh.devices.size
    if keras.config.backend() == "tensorflow":
        strategy = importlib.import_module("tensorflow").distribute.get_strategy()
        return strategy.num_replicas_in_sync
    return 1


class _EpochOrder(keras.callbacks.Callback):
    """Tells the batches which epoch it is, for a training may begin with any."""

    def __init__(self, batches: SeededBatches) -> None:
        super().__init__()
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Sets the order of that epoch."""
        self._batches.start_epoch(epoch)


class _State(keras.callbacks.Callback):
    """Weights, optimizer, random states and metrics of the last whole epoch, in its own folder.

    A folder gets its name when it is whole, so that a process may end at any moment. A training
    whose loss is not a finite number ends after that epoch: no later one differs from it.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self._folder = folder
        self._generators: list[list[int]] = []
        self.history: History = {}

    @property
    def epochs(self) -> int:
        """How many there are."""
        return max(map(len, self.history.values()), default=0)

    def finished(self, epochs: int) -> bool:
        """Whether there is nothing left to train."""
        return self.epochs >= epochs or not np.isfinite(self.history.get("loss", [0])[-1])

    def load(self, model: keras.Model) -> None:
        """Gives a compiled model the state, if there is one."""
        for folder in self._whole()[-1:]:
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            model.load_weights(str(folder / "model.weights.h5"))
            found = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            self.history = found["history"]
            for variable, value in zip(_random_states(model), found["random"], strict=True):
                variable.assign(np.array(value, variable.dtype))
            self._generators = found["generators"]

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Sets generators last, for `fit` itself draws from them before its first epoch."""
        _set_generators(self._generators)
        self._generators = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Keeps the state, and drops that of the epoch before."""
        for metric, value in logs.items():
            self.history.setdefault(metric, []).append(float(value))
        new = self._folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        self.model.save_weights(str(new / "model.weights.h5"))
        random = [keras.ops.convert_to_numpy(v).tolist() for v in _random_states(self.model)]
        state = {"history": self.history, "random": random, "generators": _generators()}
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        older = self._whole()
        new.rename(self._folder / f"epoch-{epoch + 1:06}")
        for folder in older:
            shutil.rmtree(folder)
        if not np.isfinite(logs["loss"]):
            self.model.stop_training = True

    def _whole(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("epoch-*"))


def _random_states(model: keras.Model) -> list[keras.Variable]:
    """Those of dropout and the like, which files of weights leave out."""
    return [v for v in model.variables if v.path.endswith("seed_generator_state")]


def _generators() -> list[list[int]]:
    """States of PyTorch's own generators, which dropout without a seed draws from there."""
    if keras.config.backend() != "torch":
        return []
    torch = importlib.import_module("torch")
    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return [state.tolist() for state in states]


def _set_generators(states: Sequence[Sequence[int]]) -> None:
    if not states:
        return
    torch = importlib.import_module("torch")
    cpu, *cuda = (torch.tensor(state, dtype=torch.uint8) for state in states)
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(cuda)


def machine() -> dict[str, str]:
    """Versions and hardware, for the record."""
    backend = keras.config.backend()
    module = __import__(backend)
    return {
        "keras_varinit": kv.__version__,
        "keras": keras.__version__,
        backend: module.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": f"{os.cpu_count()} × {_processor()}",
        "devices": ", ".join(_device_names()),
        "precision": keras.config.dtype_policy().name,
    }


def _device_names() -> list[str]:
    if keras.config.backend() == "torch":
        torch = importlib.import_module("torch")
        return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] or ["cpu"]
    return keras.distribution.list_devices() or ["cpu"]


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _file_name(case: Settings) -> str:
    text = "-".join(f"{key}={value}" for key, value in case.items())
    return re.sub(r"[^\w=.-]+", "_", text)


def _line(record: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    last = ", ".join(f"{k} {v[-1]:.4g}" for k, v in record["history"].items() if v)
    return f"{settings}: {last} ({record['seconds']:.0f} s)"


def _plain(value: Any) -> Any:
    """NaN and infinities, which JSON does not have, as None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it was: its history has numbers alone."""
    history = {
        metric: [math.nan if value is None else value for value in values]
        for metric, values in record["history"].items()
    }
    return {**record, "history": history}


def _replace(path: pathlib.Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
