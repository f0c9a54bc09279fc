"""What is read off a model: contexts by kernel, predictions, and the graph behind them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_varinit.analysis.engine import Variances
from keras_varinit.analysis.propagation import Prediction, propagate
from keras_varinit.analysis.reader import Graph
from keras_varinit.analysis.rules import Role, Weights
from keras_varinit.context import LayerContext


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What `analyze` found: contexts by the path of the kernel, and what it could not know."""

    contexts: dict[str, LayerContext]
    notes: tuple[str, ...]
    by_variable: dict[int, LayerContext] = dataclasses.field(repr=False)
    unknown: tuple[tuple[str, str], ...] = ()
    left_alone: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)
    tables: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)
    predicted: dict[str, Prediction] = dataclasses.field(default_factory=dict)

    def __contains__(self, path: object) -> bool:
        """Whether a kernel of that path was read."""
        return path in self.contexts

    def context_of(self, variable: Any) -> LayerContext | None:
        """The context of a kernel's variable, or None."""
        return self.by_variable.get(id(variable))

    def reason_to_leave(self, variable: Any) -> str | None:
        """Why a variable is not to be drawn (quantized, or with LoRA), or None."""
        return self.left_alone.get(id(variable))

    def reason_listed(self, variable: Any) -> str | None:
        """Why a weight is listed though it is not a kernel, or None."""
        return self.tables.get(id(variable))

    def extended(self, other: "Analysis") -> "Analysis":
        """This analysis with what only the other one saw."""
        return Analysis(
            {**other.contexts, **self.contexts},
            (*self.notes, *other.notes),
            {**other.by_variable, **self.by_variable},
            (*self.unknown, *other.unknown),
            {**other.left_alone, **self.left_alone},
            {**other.tables, **self.tables},
            self.predicted,
        )

    def with_gains(self, predictions: Mapping[int, Prediction]) -> "Analysis":
        """This analysis with the `signal_gain` of the kernels that are predicted."""
        by_variable = {
            key: dataclasses.replace(context, signal_gain=_rounded(predictions[key].gain))
            if key in predictions
            else context
            for key, context in self.by_variable.items()
        }
        contexts = {context.path: context for context in by_variable.values()}
        return dataclasses.replace(self, contexts=contexts, by_variable=by_variable)

    def __str__(self) -> str:
        lines = [
            f"{'kernel':<40} depth  fan-in fan-out  activation  pooling    tau  gamma"
            "   forward  backward"
        ]
        for path, c in self.contexts.items():
            pooling = "-" if c.pooling is None else f"{c.pooling} {c.pool_size}"
            predicted = self.predicted.get(path, Prediction())
            lines.append(
                f"{path:<40} {c.depth:>5} {c.mean_fan_in:>7.5g} {c.mean_fan_out:>7.5g}  "
                f"{c.activation or '-':<10}  {pooling:<9} {c.forward_gain:>5.3f}  "
                f"{c.backward_gain:>5.3f}  {_shown(predicted.forward):>8}  "
                f"{_shown(predicted.backward):>8}"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    """Ten digits, which are the same on every machine; None where there is no positive gain."""
    return None if value is None or value <= 0 else float(f"{value:.10g}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """The graph of a model with the role of each node."""

    graph: Graph
    roles: tuple[Role, ...]

    def behind(self, variable: Any) -> set[int]:
        """The `id` of each variable of kernels that read, near or far, what a kernel puts out."""
        reached: set[int] = set()
        found: set[int] = set()
        for node, role in zip(self.graph.nodes, self.roles, strict=True):
            own = {id(k.variable) for k in role.kernels} if isinstance(role, Weights) else set()
            if reached.intersection(node.inputs):
                reached.update(node.outputs)
                found |= own
            elif id(variable) in own:
                reached.update(node.outputs)
                found |= own - {id(variable)}
        return found

    def predict(
        self,
        variance_of: Variances,
        *,
        input_mean: float = 0.0,
        input_variance: float = 1.0,
        backward: bool = True,
    ) -> tuple[dict[int, Prediction], list[str]]:
        """What the signal engine says of every kernel, by the `id` of its variable; notes."""
        return propagate(
            self.graph,
            self.roles,
            variance_of,
            input_mean=input_mean,
            input_variance=input_variance,
            backward=backward,
        )
