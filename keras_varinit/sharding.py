"""Arrays of which a host holds parts: shards on a mesh of devices, or the whole.

A layout is what `keras.distribution` places a variable by: a `TensorLayout` of Keras, or a
`jax.sharding.Sharding`. Only JAX has such variables; elsewhere every array is whole. The variables
of `tf.distribute` are mirrored, and what is assigned to them is, by TensorFlow itself.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_varinit.typing import AnyArray, ArrayLike, FloatArray

Layout: TypeAlias = Any

# Entries of what may be gathered from other hosts.
_SMALL = 2**16

# Bytes.
_ALIGNMENT = 64

# Start and stop along each axis.
Index: TypeAlias = tuple[tuple[int, int], ...]

Parts: TypeAlias = Mapping[Index, AnyArray]


def whole(shape: Sequence[int]) -> Index:
    """The index of a whole array."""
    return tuple((0, int(n)) for n in shape)


def shape_of(index: Index) -> tuple[int, ...]:
    """The shape of a part."""
    return tuple(stop - start for start, stop in index)


def checked_layout(owner: str, layout: Layout | None) -> Layout | None:
    """A layout as a sharding over actual devices; None for an array on one device.

    Keras passes initializers a sharding over an abstract mesh, whose devices are those of the mesh
    that it has set.

    Raises:
        ValueError: the backend is not JAX, or no devices are known.
        TypeError: it is not a layout.
    """
    if layout is None:
        return None
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"{owner}: `layout` is for the JAX backend, the only one on which keras.distribution "
            f"lays weights out. Received: layout={layout!r} on {keras.backend.backend()!r}."
        )
    import jax

    if isinstance(layout, keras.distribution.TensorLayout):
        layout = layout.backend_layout
    if not isinstance(layout, jax.sharding.Sharding):
        raise TypeError(
            f"{owner}: `layout` must be a keras.distribution.TensorLayout, a jax.sharding.Sharding "
            f"or None. Received: layout={layout!r}."
        )
    if isinstance(getattr(layout, "mesh", None), jax.sharding.AbstractMesh):
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            raise ValueError(
                f"{owner}: `layout` is over an abstract mesh, so it does not name its devices. "
                f"Call within jax.set_mesh(mesh). Received: layout={layout!r}."
            )
        layout = jax.sharding.NamedSharding(mesh, layout.spec)
    return layout


def layout_of(value: ArrayLike) -> Layout | None:
    """The layout of a tensor that lies on several devices; None for any other."""
    if keras.backend.backend() != "jax":
        return None
    sharding = getattr(value, "sharding", None)
    return sharding if len(getattr(sharding, "device_set", ())) > 1 else None


def indices(layout: Layout | None, shape: Sequence[int]) -> list[Index]:
    """The parts that devices of this host hold, each once."""
    if layout is None:
        return [whole(shape)]
    slices = layout.addressable_devices_indices_map(tuple(shape)).values()
    return list(dict.fromkeys(_index(each, shape) for each in slices))


def is_replicated(layout: Layout | None) -> bool:
    """Whether every device holds the whole array."""
    return layout is None or bool(layout.is_fully_replicated)


def parts_of(value: ArrayLike) -> dict[Index, AnyArray]:
    """The parts of a tensor that this host holds, not copied if they are in its memory.

    Read them immediately: they may change with the variable that the tensor is of.
    """
    if layout_of(value) is None:
        entries = on_host(value)
        return {whole(entries.shape): entries}
    found: dict[Index, AnyArray] = {}
    for shard in value.addressable_shards:
        index = _index(shard.index, value.shape)
        if index not in found:
            found[index] = _read(shard.data)
    return found


def counted_parts(value: ArrayLike) -> list[AnyArray]:
    """The parts that this host holds, of which no host holds a copy that is counted too."""
    if layout_of(value) is None:
        return [on_host(value)]
    return [_read(each.data) for each in value.addressable_shards if each.replica_id == 0]


def replicas_of(value: ArrayLike) -> dict[Index, list[AnyArray]]:
    """All copies of each part that devices of this host hold; none of what is on one device.

    The value may be a variable that `tf.distribute` mirrors.
    """
    copies: dict[Index, list[AnyArray]] = {}
    if layout_of(value) is not None:
        for shard in value.addressable_shards:
            copies.setdefault(_index(shard.index, value.shape), []).append(_read(shard.data))
    elif isinstance(getattr(value, "values", None), tuple):
        copies[whole(value.shape)] = [np.asarray(each) for each in value.values]
    return copies


def on_host(value: ArrayLike) -> AnyArray:
    """The entries of a tensor, not copied if they are in host memory.

    Of a tensor that other hosts have parts of, only a small one, such as a bias, is gathered.

    Raises:
        RuntimeError: JAX's, for a large one.
    """
    if _is_elsewhere(value) and math.prod(value.shape) <= _SMALL:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    if keras.backend.backend() != "torch" or not keras.ops.is_tensor(value):
        return _read(value)
    if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
        import torch  # NumPy's bfloat16 is unknown to it

        bits = value.detach().cpu().view(torch.int16)
        return np.asarray(bits.numpy().view(np.dtype("bfloat16")))
    return np.asarray(keras.ops.convert_to_numpy(value))


def _read(value: ArrayLike) -> AnyArray:
    """The entries of what this host holds whole, without a copy that stays.

    JAX keeps what NumPy reads off an accelerator as long as the array lives, so that a model would
    be in host memory too once it has been looked at.
    """
    if keras.backend.backend() == "jax" and not is_in_host_memory(value):
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS may leave the CPU out
            value = to_host(value)
    return np.asarray(value)


def is_in_host_memory(value: ArrayLike) -> bool:
    """Whether NumPy can read a tensor of JAX where it is."""
    devices = getattr(getattr(value, "sharding", None), "device_set", ())
    return all(device.platform == "cpu" for device in devices)


def to_host(value: ArrayLike) -> ArrayLike:
    """A tensor of JAX in host memory.

    Raises:
        RuntimeError: JAX runs without its CPU.
    """
    import jax

    return jax.device_put(value, jax.local_devices(backend="cpu")[0])


def empty(shape: Sequence[int], dtype: str) -> AnyArray:
    """An array without values, in memory that tensors on a CPU can share: it is aligned."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def to_tensor(values: AnyArray) -> ArrayLike:
    """A tensor of the backend with an array's entries and type.

    It shares the array's memory if it can, so that nothing may be written there any more.
    """
    if keras.backend.backend() == "torch":
        import torch

        if values.dtype == "bfloat16":
            tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(values)
        return keras.ops.convert_to_tensor(tensor)
    if keras.backend.backend() == "tensorflow":
        return keras.ops.convert_to_tensor(_Shared(values), values.dtype.name)
    # Without a type, Keras on JAX makes float32 of bfloat16 where that is its floatx.
    return _copied(keras.ops.convert_to_tensor(values, values.dtype.name))


class _Shared:
    """Hides an array's type from TensorFlow, which copies arrays before it converts them."""

    def __init__(self, values: AnyArray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        """The array itself."""
        return self.values


def _copied(tensor: ArrayLike) -> ArrayLike:
    """A tensor once it has its entries: JAX copies them later, and arrays would wait for that."""
    if keras.backend.backend() == "jax":
        import jax

        if not isinstance(tensor, jax.core.Tracer):
            jax.block_until_ready(tensor)
    return tensor


def assembled(layout: Layout | None, shape: Sequence[int], parts: Parts) -> ArrayLike:
    """A tensor made of the parts that this host holds."""
    if layout is None:
        return to_tensor(parts[whole(shape)])
    import jax

    return _copied(
        jax.make_array_from_callback(
            tuple(shape), layout, lambda index: parts[_index(index, shape)]
        )
    )


def cut(values: AnyArray, layout: Layout) -> dict[Index, AnyArray]:
    """The parts of an array that devices of this host are to hold."""
    return {
        index: values[tuple(slice(start, stop) for start, stop in index)]
        for index in indices(layout, values.shape)
    }


def everywhere(holds: bool, values: Iterable[ArrayLike]) -> bool:
    """Whether something holds on every host that has a part of any of these tensors.

    All hosts must ask, in the same order.
    """
    if not any(_is_elsewhere(value) for value in values):
        return holds
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(holds)).all())


def summed(local: FloatArray, value: ArrayLike) -> FloatArray:
    """The sum of what each host that has parts of a tensor has counted in them."""
    return np.sum(gathered(local, value), axis=0)  # type: ignore[no-any-return]


def gathered(local: AnyArray, value: ArrayLike) -> AnyArray:
    """An array of the same shape and type from each host that has parts of a tensor, stacked."""
    if not _is_elsewhere(value):
        return local[None]
    from jax.experimental import multihost_utils

    sent = np.frombuffer(local.tobytes(), np.uint8)  # JAX would round float64
    received = np.asarray(multihost_utils.process_allgather(sent))
    return np.frombuffer(received.tobytes(), local.dtype).reshape(-1, *local.shape)


def check_same_on_all_hosts(owner: str, layout: Layout | None, entropy: int) -> None:
    """Raises an error on every host if hosts that share a weight would draw from different seeds.

    All hosts must ask, in the same order.
    """
    if layout is None or layout.is_fully_addressable:
        return
    from jax.experimental import multihost_utils

    seeds = multihost_utils.process_allgather(np.asarray(entropy % 2**31, np.int32))
    if len(set(np.ravel(seeds).tolist())) > 1:
        raise ValueError(
            f"{owner}: the hosts of this layout would draw from different seeds, so that copies of "
            "a weight would differ. Pass a `seed`, or call keras.distribution.initialize() or "
            "keras.utils.set_random_seed(n) on every host before the model is built."
        )


def _is_elsewhere(value: ArrayLike) -> bool:
    """Whether other hosts hold parts of a tensor."""
    return layout_of(value) is not None and not value.is_fully_addressable


def _index(slices: Sequence[slice], shape: Sequence[int]) -> Index:
    bounds = (each.indices(int(n)) for each, n in zip(slices, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)
