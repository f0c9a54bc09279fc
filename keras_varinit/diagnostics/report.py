"""The report of `measure_signal`: rows of plain values, findings, and their text."""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

from keras_varinit.arguments import Arguments
from keras_varinit.diagnostics.plotting import Figure, plot_report
from keras_varinit.results import Results, Row
from keras_varinit.running.statistics import Histogram
from keras_varinit.tables import Column

_VANISHED = 1e-2  # ratio of second moments below which a signal vanishes; above 1/this it explodes

_SMALLEST, _LARGEST = 1e-4, 1e4  # second moments of the first layer, which has no reference

_SATURATED = 0.5

_DEAD = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class SignalRow(Row):
    """The signal at one call of a layer or operation, over all examples, positions and channels.

    For a layer with kernels, `mean`, `variance` and `second_moment` describe the pre-activation:
    the kernel's output plus bias, before the layer's own `activation`. `output_mean` and
    `output_variance` describe its output. For every other operation, and for layers that apply
    activations internally (recurrent cells, attention), all of them describe the output.

    Attributes:
        name: The layer's name; "name#2" at its second call.
        path: The kernel's path if there is one, otherwise the name.
        operation: The class, such as "Conv2D".
        kind: "weights", "activation" or "other".
        shape: The signal's shape for one example.
        activation: Name of the layer's activation, or of the function if the operation is one; None
            otherwise.
        gradient_second_moment: Mean square of the derivative of one example's loss with respect to
            an entry of the signal; None if gradients were not measured.
        dead_fraction: Fraction of channels whose activation had no slope (below 1e-6 of its
            largest) for all examples and positions, such as a ReLU whose output was always 0. None
            without activation.
        saturated_fraction: Fraction of entries at which a bounded activation has less than 1/100 of
            its largest slope, such as a tanh beyond ±0.995. None for unbounded activations.
        nonfinite_count: Number of infinite or NaN entries; moments exclude them.
        gradient_nonfinite_count: Number of infinite or NaN entries of the gradient.
        predicted_second_moment, predicted_gradient_second_moment: Predictions of `analyze`; None if
            it predicts nothing, or another quantity than the one measured here.
        histogram: Histogram of the output.
        gradient_histogram: Histogram of the gradient with respect to the signal.
        normalized: Whether it is an embedding followed by a normalization before any other layer
            with kernels, so that its scale and its gradient's scale are irrelevant.
    """

    name: str
    path: str
    operation: str
    kind: str
    activation: str | None
    mean: float
    variance: float
    second_moment: float
    shape: tuple[int, ...]
    output_mean: float
    output_variance: float
    gradient_second_moment: float | None
    dead_fraction: float | None
    saturated_fraction: float | None
    nonfinite_count: int
    gradient_nonfinite_count: int
    predicted_second_moment: float | None
    predicted_gradient_second_moment: float | None
    histogram: Histogram = dataclasses.field(repr=False)
    gradient_histogram: Histogram | None = dataclasses.field(repr=False)
    normalized: bool = False

    @property
    def has_units(self) -> bool:
        """Whether it is, or ends with, an element-wise activation."""
        return self.activation not in (None, "softmax", "log_softmax", "sparsemax")

    @property
    def gradient_norm(self) -> float:
        """The mean squared norm of one example's gradient; NaN if it was not measured."""
        if self.gradient_second_moment is None:
            return math.nan
        return self.gradient_second_moment * math.prod(self.shape)


@dataclasses.dataclass(frozen=True, repr=False)
class SignalReport(Results[SignalRow]):
    """Rows in the order in which the model computes; see `Results` for what all reports share.

    A row is found by its name and by its kernel's path.

    Attributes:
        rows: A `SignalRow` for each call of a layer or operation.
        examples: Number of examples.
        gradients: What was back-propagated: "loss", "noise" for unit white noise at the outputs,
            or None.
        input_second_moment: E x² of the model's floating-point inputs, None without any.
        notes: Explanations of what was not measured or predicted.
    """

    rows: tuple[SignalRow, ...]
    examples: int
    gradients: str | None
    input_second_moment: float | None = None
    notes: tuple[str, ...] = ()

    _row: ClassVar[type[Row]] = SignalRow
    _columns: ClassVar[tuple[Column, ...]] = (
        Column("layer", kind="path"),
        Column("operation"),
        Column("mean", kind="number"),
        Column("second moment", "E u² of the output before the layer's activation", "number"),
        Column("(predicted)", "", "number", is_optional=True),
        Column("gradient", "second moment of the gradient with respect to u", "number", True),
        Column("(predicted)", "", "number", is_optional=True),
        Column("dead", "channels whose activation had no slope anywhere", "number", True),
        Column("saturated", "entries where it has less than 1/100 of its slope", "number", True),
        Column("non-finite", "entries that are infinite or NaN", "number", is_optional=True),
    )
    _main: ClassVar[str] = "layers with kernels"
    _others: ClassVar[str] = "other layers and operations"
    _names: ClassVar[str] = "Names"

    @property
    def weight_rows(self) -> tuple[SignalRow, ...]:
        """The rows of layers with kernels; all rows if there are none."""
        return tuple(row for row in self.rows if row.kind == "weights") or self.rows

    @property
    def _compared_rows(self) -> tuple[SignalRow, ...]:
        """The rows that findings compare: those whose scale matters."""
        rows = self.weight_rows
        return tuple(row for row in rows if not row.normalized) or rows

    def worst(self, n: int = 1) -> tuple[SignalRow, ...]:
        """The `n` rows whose signals are farthest from unit second moment.

        Rows with non-finite entries come first, then those with non-finite gradients, then layers
        with kernels by |log second moment|, forward or backward, whichever is larger. Gradients of
        a loss are taken relative to the last layer's, since they have no natural unit.
        """
        Arguments("SignalReport.worst").count("n", n)
        unit = self._gradient_unit()
        nonfinite = [row for row in self.rows if _nonfinite(row)]
        nonfinite.sort(key=lambda row: row.nonfinite_count == 0)
        finite = [row for row in self.weight_rows if not _nonfinite(row)]
        finite.sort(key=lambda row: -_distance(row, unit))
        return (*nonfinite, *finite)[:n]

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Plots signals and gradients by layer, and histograms of activations and gradients.

        Top: for the layers with kernels, second moments of the signal and squared norms of one
        example's gradient (its second moment would fall with the size of the map), measured and,
        where available, predicted. Bottom: normalized histograms of activations and of
        back-propagated gradients, as in figures 6 and 7 of Glorot & Bengio (2010).

        Args:
            path: File to save the figure to, or None.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed; it is in the extra `plot`.
        """
        return plot_report(self, path)

    def findings(self) -> tuple[str, ...]:
        """Sentences on where signals are not finite, vanish, explode, saturate or die."""
        sentences = [
            *self._nonfinite_findings(),
            *self._forward_findings(),
            *self._backward_findings(),
            *_first_over(self.rows, "saturated_fraction", _SATURATED, "entries are saturated"),
            *_first_over(self.rows, "dead_fraction", _DEAD, "units are dead"),
        ]
        return tuple(sentences) or ("No layer's signal vanishes, explodes or saturates.",)

    def _nonfinite_findings(self) -> list[str]:
        forward = next((row for row in self.rows if row.nonfinite_count), None)
        if forward is not None:
            count = forward.nonfinite_count
            return [f"{forward.name} is the first layer with non-finite entries: {count}."]
        backward = [row for row in self.rows if row.gradient_nonfinite_count]
        if backward:
            count = backward[-1].gradient_nonfinite_count
            return [f"{backward[-1].name} is the last layer with non-finite gradients: {count}."]
        return []

    def _forward_findings(self) -> list[str]:
        rows = [row for row in self._compared_rows if math.isfinite(row.second_moment)]
        sentences = []
        if rows and not _SMALLEST <= rows[0].second_moment <= _LARGEST:
            value = rows[0].second_moment
            verb = "vanishes" if value < _SMALLEST else "explodes"
            text = f"is the first layer, and its signal {verb}: second moment {value:.2g}."
            sentences.append(f"{rows[0].name} {text}")
        rows = _without_zeroed_branches(rows, "second_moment")
        for verb in ("vanishes", "explodes"):
            for row, first in _with_reference(rows):
                if _change(row.second_moment, first.second_moment) == verb:
                    moments = row.second_moment, first.second_moment
                    sentences.append(_sentence(row.name, verb, *moments, first.name))
                    break
        return sentences

    def _backward_findings(self) -> list[str]:
        """Compares squared norms of gradients, which do not depend on the size of a map."""
        rows = [row for row in reversed(self._compared_rows) if math.isfinite(row.gradient_norm)]
        rows = _without_zeroed_branches(rows, "gradient_norm")
        sentences = []
        for verb in ("vanishes", "explodes"):
            for row, last in _with_reference(rows):
                norms = row.gradient_norm, last.gradient_norm
                if _change(*norms) == verb:
                    sentences.append(
                        f"{row.name} is the first layer, from the output, whose gradient {verb}: "
                        f"squared norm {norms[0]:.2g} ({_ratio(*norms, last.name)})."
                    )
                    break
        return sentences

    def _gradient_unit(self) -> float:
        """The gradient second moment that others are relative to."""
        if self.gradients != "loss":
            return 1.0
        moments = [row.gradient_second_moment for row in self.weight_rows]
        return next((m for m in reversed(moments) if m and math.isfinite(m)), 1.0)

    def _keys(self, row: SignalRow) -> tuple[str, ...]:
        return row.name, row.path

    def _cells(self, row: SignalRow) -> tuple[str, ...]:
        operation = row.operation
        if row.activation is not None and row.kind == "weights":
            operation += f"+{row.activation}"
        nonfinite = row.nonfinite_count + row.gradient_nonfinite_count
        return (
            row.name,
            operation,
            _number(row.mean),
            _number(row.second_moment),
            _predicted(row.predicted_second_moment),
            _number(row.gradient_second_moment),
            _predicted(row.predicted_gradient_second_moment),
            _percent(row.dead_fraction),
            _percent(row.saturated_fraction),
            str(nonfinite) if nonfinite else "",
        )

    def _is_main(self, row: SignalRow) -> bool:
        return row.kind == "weights"

    def _label(self, row: SignalRow) -> str:
        return row.operation

    def _summary(self) -> tuple[str, ...]:
        sources = {
            "loss": "gradients of one example's loss",
            "noise": "gradients relative to unit white noise at the outputs",
            None: "no gradients",
        }
        return (f"{self.examples} examples; {sources[self.gradients]}.", *self.findings())


def _nonfinite(row: SignalRow) -> bool:
    return row.nonfinite_count > 0 or row.gradient_nonfinite_count > 0


def _distance(row: SignalRow, gradient_unit: float) -> float:
    moments = [row.second_moment]
    if row.gradient_second_moment is not None:
        moments.append(row.gradient_second_moment / gradient_unit)
    return max(abs(math.log(m)) if m > 0 and math.isfinite(m) else math.inf for m in moments)


def _without_zeroed_branches(rows: Sequence[SignalRow], value: str) -> list[SignalRow]:
    """The rows without those exactly 0 that others follow which are not, by other paths.

    A residual branch that ends in a kernel of zeros, as `ResidualScaled` draws it, is meant to.
    """
    values = [getattr(row, value) for row in rows]
    last = max((n for n, each in enumerate(values) if each != 0), default=-1)
    return [row for n, row in enumerate(rows) if values[n] != 0 or n > last]


def _with_reference(rows: Sequence[SignalRow]) -> Iterator[tuple[SignalRow, SignalRow]]:
    """Each row with the first one of the same rank: a mean from map to vector may shrink it."""
    first: dict[int, SignalRow] = {}
    for row in rows:
        yield row, first.setdefault(len(row.shape), row)


def _change(value: float, reference: float) -> str:
    if reference <= 0 or not math.isfinite(reference):
        return ""
    if value < _VANISHED * reference:
        return "vanishes"
    return "explodes" if value > reference / _VANISHED else ""


def _sentence(name: str, verb: str, value: float, reference: float, other: str) -> str:
    ratio = _ratio(value, reference, other)
    return f"{name} is the first layer whose signal {verb}: second moment {value:.2g} ({ratio})."


def _ratio(value: float, reference: float, other: str) -> str:
    """The ratio in words, such as "1/3100 of conv2d's" or "12 times conv2d's"."""
    if value == 0:
        return f"0 of {other}'s"
    if value < reference:
        return f"1/{_round(reference / value)} of {other}'s"
    return f"{_round(value / reference)} times {other}'s"


def _round(ratio: float) -> str:
    return f"{float(f'{ratio:.2g}'):.0f}" if ratio < 1e6 else f"{ratio:.1e}"


def _first_over(
    rows: Sequence[SignalRow], attribute: str, limit: float, what: str
) -> Iterator[str]:
    for row in rows:
        fraction = getattr(row, attribute)
        if fraction is not None and fraction > limit:
            yield f"{row.name} is the first layer where {what}: {fraction:.0%}."
            return


def _number(value: float | None) -> str:
    if value is None:
        return ""
    size = abs(value)
    return f"{value:.3f}" if 0.01 <= size < 1000 or value == 0 else f"{value:.2e}"


def _predicted(value: float | None) -> str:
    return "" if value is None else f"({_number(value)})"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"
