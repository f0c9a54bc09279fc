"""Results of reading a model: `Analysis` for users, `Reading` within the package."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar

from keras_varinit.analysis.predict import Prediction, propagate
from keras_varinit.analysis.propagate import Deltas, Scales, Variances, no_delta, no_scale
from keras_varinit.analysis.residual import BranchEnds
from keras_varinit.context import LayerContext
from keras_varinit.results import Results, Row
from keras_varinit.signals.roles import Role, Weights
from keras_varinit.tables import Column
from keras_varinit.tracing.reader import Graph
from keras_varinit.typing import Config, Variable


@dataclasses.dataclass(frozen=True)
class AnalysisRow(Row):
    """What `analyze` says of one kernel.

    Args:
        path: Path of the kernel's variable.
        context: Its surroundings.
        forward: Predicted E u² of the kernel's output u, None if unknown.
        backward: Predicted E (dL/du)², None if unknown.
    """

    path: str
    context: LayerContext
    forward: float | None
    backward: float | None


@dataclasses.dataclass(frozen=True, repr=False)
class Analysis(Results[AnalysisRow]):
    """The result of `analyze`; see `Results` for what all reports share.

    Args:
        contexts: The context of every kernel by its path, in the order of the graph.
        vectors: The context of every bias and normalization scale by its path.
        predicted: A `Prediction` for every kernel by its path.
        notes: Explanations of unknown quantities.
        unknown: (name, reason) of each layer or weight whose use is not known.
        paths: The path of every kernel by the `id` of its variable.
    """

    contexts: dict[str, LayerContext]
    predicted: dict[str, Prediction] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    paths: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)
    vectors: dict[str, LayerContext] = dataclasses.field(default_factory=dict, repr=False)

    _row: ClassVar[type[Row]] = AnalysisRow
    _columns: ClassVar[tuple[Column, ...]] = (
        Column("kernel", kind="path"),
        Column("depth", "weight layers from the input to this one", "number"),
        Column("fan-in", "mean inputs per output", "number"),
        Column("fan-out", "mean outputs per input", "number"),
        Column("activation"),
        Column("pooling", "kind and entries in a window"),
        Column("tau", "second moment of the input, after a stage of unit variance", "number"),
        Column("gamma", "fraction of gradient variance that the stage passes back", "number"),
        Column("forward", "predicted E u² of the kernel's output u", "number"),
        Column("backward", "predicted second moment of the gradient with respect to u", "number"),
    )
    _main: ClassVar[str] = "kernels"

    @property
    def rows(self) -> tuple[AnalysisRow, ...]:
        """An `AnalysisRow` for each kernel, in the order of the graph."""
        predictions = ((path, self.predicted.get(path, Prediction())) for path in self.contexts)
        return tuple(
            AnalysisRow(path, self.contexts[path], prediction.forward, prediction.backward)
            for path, prediction in predictions
        )

    def context_of(self, variable: Variable) -> LayerContext | None:
        """The context of a kernel's variable, or None."""
        return self.contexts.get(self.paths.get(id(variable), ""))

    def to_dict(self) -> Config:
        """JSON primitives: kernels in `rows`, other weights in `vectors`, and what is unknown."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "vectors": {path: context.to_dict() for path, context in self.vectors.items()},
            "unknown": [list(item) for item in self.unknown],
            "notes": list(self.notes),
        }

    def _cells(self, row: AnalysisRow) -> tuple[str, ...]:
        c = row.context
        return (
            *(row.path, str(c.depth), f"{c.mean_fan_in:.5g}", f"{c.mean_fan_out:.5g}"),
            c.activation or "-",
            "-" if c.pooling is None else f"{c.pooling} {c.pool_size}",
            *(f"{c.forward_gain:.3f}", f"{c.backward_gain:.3f}"),
            *(_shown(row.forward), _shown(row.backward)),
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    """Rounds to ten digits, which are reproducible across machines; None if not positive."""
    return None if value is None or value <= 0 else float(f"{value:.10g}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """A model's graph, the role of each operation and the context of each kernel.

    Args:
        graph: The operations and tensors.
        roles: The role of each node of the graph.
        depths: The depth of each tensor: the number of kernels on the longest path to it.
        by_variable: Contexts by the `id` of the kernel's variable, in the order of the graph.
        notes: Explanations of unknown quantities.
        unknown: (name, reason) of each layer or weight whose use is not known.
        left_alone: Why a variable must not be drawn (quantized, or with LoRA), by its `id`.
        tables: Why a weight that is not a kernel is listed, by its `id`.
        vectors: Contexts of biases and normalization scales, by the `id` of the variable.
        branch_ends: For each residual addition, what ends its branches.
    """

    graph: Graph
    roles: tuple[Role, ...] = ()
    depths: tuple[int, ...] = ()
    by_variable: dict[int, LayerContext] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    left_alone: dict[int, str] = dataclasses.field(default_factory=dict)
    tables: dict[int, str] = dataclasses.field(default_factory=dict)
    vectors: dict[int, LayerContext] = dataclasses.field(default_factory=dict)
    branch_ends: tuple[BranchEnds, ...] = ()

    @property
    def contexts(self) -> dict[str, LayerContext]:
        """The contexts by path."""
        return {context.path: context for context in self.by_variable.values()}

    def context_of(self, variable: Variable) -> LayerContext | None:
        """The context of a kernel's variable, or None."""
        return self.by_variable.get(id(variable))

    def vector_of(self, variable: Variable) -> LayerContext | None:
        """The context of a bias or of a normalization's scale, or None."""
        return self.vectors.get(id(variable))

    def surroundings_of(self, variable: Variable) -> LayerContext | None:
        """The context of a kernel, bias or scale, or None."""
        return self.context_of(variable) or self.vector_of(variable)

    def reason_to_leave(self, variable: Variable) -> str | None:
        """Why a variable must not be drawn, or None."""
        return self.left_alone.get(id(variable))

    def reason_listed(self, variable: Variable) -> str | None:
        """Why a weight that is not a kernel is listed, or None."""
        return self.tables.get(id(variable))

    def preferring(self, other: "Reading") -> "Reading":
        """Merges two readings; entries of `other` take precedence."""
        return dataclasses.replace(
            self,
            by_variable={**self.by_variable, **other.by_variable},
            notes=(*other.notes, *self.notes),
            unknown=(*other.unknown, *self.unknown),
            left_alone={**self.left_alone, **other.left_alone},
            tables={**self.tables, **other.tables},
            vectors={**self.vectors, **other.vectors},
        )

    def with_gains(
        self, gains: Mapping[int, float | None], branch_gains: Mapping[int, float]
    ) -> "Reading":
        """Sets the `signal_gain` and `branch_gain` of kernels, and the latter of scales."""

        def completed(contexts: Mapping[int, LayerContext]) -> dict[int, LayerContext]:
            fields: dict[int, dict[str, float | None]] = {key: {} for key in contexts}
            for name, values in (("signal_gain", gains), ("branch_gain", branch_gains)):
                for key in contexts.keys() & values.keys():
                    fields[key][name] = _rounded(values[key])
            return {key: c.with_role(**fields[key]) for key, c in contexts.items()}

        return dataclasses.replace(
            self, by_variable=completed(self.by_variable), vectors=completed(self.vectors)
        )

    def with_predictions(
        self, predictions: Mapping[int, Prediction], notes: Iterable[str]
    ) -> Analysis:
        """The `Analysis` of this reading, with predictions and further notes."""
        return Analysis(
            self.contexts,
            {c.path: predictions.get(key, Prediction()) for key, c in self.by_variable.items()},
            tuple(dict.fromkeys((*self.notes, *notes))),
            self.unknown,
            {key: context.path for key, context in self.by_variable.items()},
            {context.path: context for context in self.vectors.values()},
        )

    def behind(self, variable: Variable) -> set[int]:
        """The `id` of each kernel variable that reads, directly or not, a kernel's output."""
        reached: set[int] = set()
        readers: set[int] = set()
        for node, role in zip(self.graph.nodes, self.roles, strict=True):
            own = {id(k.variable) for k in role.kernels} if isinstance(role, Weights) else set()
            if reached.intersection(node.inputs):
                reached.update(node.outputs)
                readers |= own
            elif id(variable) in own:
                reached.update(node.outputs)
                readers |= own - {id(variable)}
        return readers

    def predict(
        self,
        variance_of: Variances,
        *,
        input_mean: float = 0.0,
        input_variance: float = 1.0,
        backward: bool = True,
        is_delta: Deltas = no_delta,
        scale_of: Scales = no_scale,
        watched: dict[int, float] | None = None,
    ) -> tuple[dict[int, Prediction], list[str]]:
        """Predictions for every kernel, by the `id` of its variable, and notes."""
        return propagate(
            self.graph,
            self.roles,
            variance_of,
            input_mean=input_mean,
            input_variance=input_variance,
            backward=backward,
            is_delta=is_delta,
            scale_of=scale_of,
            watched=watched,
        )
