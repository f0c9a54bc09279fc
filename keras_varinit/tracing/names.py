"""Names of kernels: the path that users see, and the random stream."""

import re
from collections import Counter
from collections.abc import Iterable

from keras_varinit.keras_private import layers_of, own_variables
from keras_varinit.typing import Model


def snake_case(name: str) -> str:
    """`HardSigmoid` as `hard_sigmoid`, and `ReLU` as `relu`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReLU", "Relu")).lower()


def variable_names(model: Model) -> dict[int, tuple[str, str, str]]:
    """Path, layer name and stream, by `id`, of every variable that a layer of the model created.

    A stream's name consists of the layer's name without the counter that Keras adds, the variable's
    name, and the rank of that counter among the model's layers of that name. So it does not depend
    on what else the process built, nor on how the model is nested, saved or loaded.
    """
    names: dict[int, tuple[int, str, str, str]] = {}
    for layer in [model, *layers_of(model)]:
        counted = re.search(r"_(\d+)$", layer.name)
        plain = layer.name if counted is None else layer.name[: counted.start()]
        counter = 0 if counted is None else int(counted[1])
        for variable in own_variables(layer):
            stream = f"{plain}/{variable.name}"
            names.setdefault(id(variable), (counter, variable.path, stream, layer.name))
    paths = _numbered((key, path) for key, (_, path, _, _) in names.items())
    by_counter = sorted(names.items(), key=lambda item: item[1][0])
    streams = _numbered((key, stream) for key, (_, _, stream, _) in by_counter)
    return {
        key: (
            path if paths[key] == 1 else f"{path}#{paths[key]}",
            layer,
            f"{stream}#{streams[key]}",
        )
        for key, (_, path, stream, layer) in names.items()
    }


def _numbered(items: Iterable[tuple[int, str]]) -> dict[int, int]:
    """For each key, the number of occurrences of its name so far."""
    seen = Counter[str]()
    numbers = {}
    for key, name in items:
        seen[name] += 1
        numbers[key] = seen[name]
    return numbers
