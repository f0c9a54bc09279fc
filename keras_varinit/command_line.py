"""The command line: what `analyze`, `lint`, `recommend` and `initialize` say of a saved model."""

import argparse
import importlib
import json
import logging
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit.analysis import analyze
from keras_varinit.apply.initialize import initialize
from keras_varinit.apply.lint import RULES, Findings, lint
from keras_varinit.apply.recommend import recommend
from keras_varinit.results import Results
from keras_varinit.startup import COMMAND

FINE, FOUND, FAILED, STOPPED = 0, 1, 2, 130

_EPILOG = f"""\
exit codes:
  {FINE}    done; lint: no findings
  {FOUND}    lint: findings
  {FAILED}    a wrong argument, a model that cannot be loaded or read
  {STOPPED}  stopped by the user

examples:
  {COMMAND} lint model.keras --ignore wrong-fans
  {COMMAND} analyze model.keras --json > analysis.json
  {COMMAND} recommend model.keras --import my_layers
  {COMMAND} initialize model.keras --scheme signal_preserving --seed 0 --out new.keras

KERAS_BACKEND chooses the backend, as for any Keras program.
"""


class CommandError(Exception):
    """A mistake that the user can fix; shown in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Those after the program's name. Defaults to the process's.

    Returns:
        The exit code: 0, 1 if `lint` found something, 2 after an error, 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    code: int = FINE
    try:
        results, code = options.run(options)
        print(_shown(results, options))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        print(f"{COMMAND} {options.command}: error: {_one_line(error)}", file=sys.stderr)
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Reads the weight initialization of a saved Keras model, or redraws it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add(commands, "analyze", _analyze, "what each kernel's surroundings and predicted signal are")
    command = _add(commands, "lint", _lint, "what is wrong with a model's initialization")
    command.add_argument(
        "--ignore", nargs="+", default=[], choices=RULES, metavar="RULE",
        help=f"rules to leave out: {', '.join(RULES)}",
    )  # fmt: skip
    _add(commands, "recommend", _recommend, "what initialize would draw for each weight, and why")
    command = _add(commands, "initialize", _initialize, "redraw the weights, into another file")
    command.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="FILE",
        help="where the redrawn model goes; it must not exist",
    )  # fmt: skip
    command.add_argument(
        "--scheme", default="recommended", metavar="ID",
        help="a string id of keras_varinit or Keras (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, metavar="N", help="the same weights at every call")
    command.add_argument(
        "--layers", nargs="+", metavar="NAME", help="only these layers and the layers inside them"
    )
    command.add_argument("--include-frozen", action="store_true", help="frozen layers too")
    return parser


def _add(commands: Any, name: str, run: Any, description: str) -> argparse.ArgumentParser:
    """Adds a command with the options that all have."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description, allow_abbrev=False
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model", type=pathlib.Path, metavar="MODEL", help="a model saved as .keras or .h5"
    )
    output = command.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument(
        "--all", action="store_true", help="print every row, however long the model is"
    )
    command.add_argument(
        "--import", nargs="+", dest="modules", default=[], metavar="MODULE",
        help="modules that register the model's own layers, imported before it is loaded",
    )  # fmt: skip
    command.add_argument(
        "--unsafe", action="store_true",
        help="load Lambda layers too, which runs code from the file (safe_mode=False)",
    )  # fmt: skip
    command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return command


def _analyze(options: argparse.Namespace) -> tuple[Results[Any], int]:
    return analyze(_loaded(options)), FINE


def _recommend(options: argparse.Namespace) -> tuple[Results[Any], int]:
    return recommend(_loaded(options)), FINE


def _lint(options: argparse.Namespace) -> tuple[Results[Any], int]:
    rows = lint(_loaded(options))
    findings = Findings(tuple(row for row in rows if row.rule not in options.ignore))
    return findings, FOUND if len(findings) else FINE


def _initialize(options: argparse.Namespace) -> tuple[Results[Any], int]:
    out: pathlib.Path = options.out
    if out.suffix not in (".keras", ".h5"):
        raise CommandError(f"--out must end with .keras or .h5. Received: {out}")
    if out.exists():
        raise CommandError(f"--out {out} exists already, and is not overwritten. Name another file")
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}")
    model = _loaded(options, compiled=True)
    report = initialize(
        model,
        options.scheme,
        seed=options.seed,
        layers=options.layers,
        include_frozen=options.include_frozen,
        reset_optimizer=getattr(model, "optimizer", None) is not None,
    )
    # Written under another name first, so that no half a file has the name asked for.
    partial = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    try:
        model.save(partial)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {out}", file=sys.stderr)
    return report, FINE


def _loaded(options: argparse.Namespace, *, compiled: bool = False) -> keras.Model:
    path: pathlib.Path = options.model
    if not path.exists():
        raise CommandError(f"there is no file {path}")
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise CommandError(f"{path} is not a model saved as .keras or .h5")
    if options.modules and os.getcwd() not in sys.path:  # the console script does not look there
        sys.path.insert(0, os.getcwd())
    for module in options.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CommandError(f"--import {module}: {error}") from error
    try:
        with warnings.catch_warnings():
            # Of a model that was saved before its first step; its optimizer is as good as new.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            model = keras.saving.load_model(path, compile=compiled, safe_mode=not options.unsafe)
    except Exception as error:  # Keras, h5py and zipfile raise what they like
        raise CommandError(
            f"{path} cannot be loaded: {_one_line(error)}{_remedy(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise CommandError(f"{path} holds a {type(model).__name__}, not a Keras model")
    return model


def _remedy(error: Exception) -> str:
    text = str(error)
    if "safe_mode" in text or "unsafe" in text.lower():
        return " --unsafe loads it anyway, which runs code from the file."
    if "deserializ" in text or "Unknown" in text or "register" in text:
        return " If it has layers of its own, name the module that registers them with --import."
    return ""


def _one_line(error: BaseException) -> str:
    """The first paragraph of a message, in one line."""
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    return text or type(error).__name__


def _shown(results: Results[Any], options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(results.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
    return results.to_text() if options.all else str(results)
