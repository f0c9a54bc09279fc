"""Names of kernels: the path that users see, and the stream that random numbers come from."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from keras_varinit.keras_private import layers_of, own_variables


def snake_case(name: str) -> str:
    """`HardSigmoid` as `hard_sigmoid`, and `ReLU` as `relu`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReLU", "Relu")).lower()


def variable_names(model: Any) -> dict[int, tuple[str, str, str]]:
    """Path, layer's name and stream, by `id`, of every variable that a layer of the model created.

    A stream's name is the layer's and the variable's name without the counter that Keras adds, and
    the rank of that counter among the model's layers of the name. So it does not depend on what
    else the process built, nor on how the model is nested, saved or loaded.
    """
    found: dict[int, tuple[int, str, str, str]] = {}
    for layer in [model, *layers_of(model)]:
        counted = re.search(r"_(\d+)$", layer.name)
        plain = layer.name if counted is None else layer.name[: counted.start()]
        counter = 0 if counted is None else int(counted[1])
        for variable in own_variables(layer):
            stream = f"{plain}/{variable.name}"
            found.setdefault(id(variable), (counter, variable.path, stream, layer.name))
    paths = _numbered((key, path) for key, (_, path, _, _) in found.items())
    by_counter = sorted(found.items(), key=lambda item: item[1][0])
    streams = _numbered((key, stream) for key, (_, _, stream, _) in by_counter)
    return {
        key: (
            path if paths[key] == 1 else f"{path}#{paths[key]}",
            layer,
            f"{stream}#{streams[key]}",
        )
        for key, (_, path, stream, layer) in found.items()
    }


def _numbered(items: Iterable[tuple[int, str]]) -> dict[int, int]:
    """For each key, how many times its name has occurred so far."""
    seen = Counter[str]()
    numbers = {}
    for key, name in items:
        seen[name] += 1
        numbers[key] = seen[name]
    return numbers
