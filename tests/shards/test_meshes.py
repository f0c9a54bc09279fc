"""Same seed, same weights: on one device, on any mesh of eight, and on two hosts of two."""

import socket

import keras
import pytest

import keras_varinit as kv
from tests import fresh_process
from tests.models import FAMILIES, arrays
from tests.shards.models import SCHEMES, agree, network

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
MESHES = ((2, 4),)
LAYOUTS = [
    ((64, 72), ("a", "b")),
    ((64, 72), ()),
    ((3, 3, 16, 64), (None, None, None, "b")),
    ((250, 320), (None, ("b", "a"))),
]
DTYPES = ("float32", "bfloat16")

ON_EIGHT = """
import json
import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import keras_varinit as kv
from tests.models import FAMILIES
from tests.shards import models
from tests.shards.test_meshes import DTYPES, LAYOUTS, MESHES

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
draws = {}
for name, make in FAMILIES.items():
    draws[name] = []
    for shape, axes in LAYOUTS:
        layout = NamedSharding(mesh, PartitionSpec(*axes))
        for dtype in DTYPES if "orthogonal" not in name else DTYPES[:1]:
            drawn = make(3)(shape, dtype=dtype, layout=layout)
            alone = make(3)(shape, dtype=dtype)
            same = np.array_equal(np.asarray(drawn), np.asarray(alone))
            draws[name].append(bool(same and drawn.sharding == layout and drawn.dtype == dtype))

found = {}
for rows, columns in MESHES:
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    keras.distribution.set_distribution(models.model_parallel(rows, columns))
    model = models.network()
    places = models.shards_of(model)
    found[str((rows, columns))] = {
        "steps": {name: [parts, told] for name, parts, told in models.steps(model)},
        "sharded": sum(not place.is_fully_replicated for place in places),
        "stayed": models.shards_of(model) == places,
    }

# Laid out after it was built; then one entry of one shard changes.
keras.distribution.set_distribution(None)
keras.utils.clear_session()
keras.utils.set_random_seed(1)
model = models.network()
distribution = models.model_parallel(2, 4)
for variable in model.weights:
    variable._layout = distribution.get_variable_layout(variable)
    variable.assign(variable.value)
kernel = model.layers[1].kernel
kernel.assign(kernel.value.at[0, 0, 0, 7].add(1))
report = kv.inject(model)
found["after"] = {"statuses": models.statuses(report), "injected": models.digests(model)}

# Shards that are alike, copies that are not, and weights that nobody drew.
def rules(change):
    keras.utils.clear_session()
    keras.distribution.set_distribution(models.model_parallel(2, 4))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    kernel = model.layers[0].kernel
    indices = kernel.value.sharding.addressable_devices_indices_map((8, 16))
    values = np.array(kernel.value)
    copies = [change(number, values[index]) for number, index in enumerate(indices.values())]
    placed = [jax.device_put(copy, device) for copy, device in zip(copies, indices, strict=True)]
    sharding = kernel.value.sharding
    kernel.assign(jax.make_array_from_single_device_arrays((8, 16), sharding, placed))
    return [finding.rule for finding in kv.lint(model)]

def replicas(change):
    keras.utils.clear_session()
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    kernel = model.layers[0].kernel
    values, devices = np.array(kernel.value), jax.devices()
    placed = [jax.device_put(change(number, values), devices[number]) for number in range(8)]
    sharding = kernel.value.sharding
    kernel.assign(jax.make_array_from_single_device_arrays((8, 16), sharding, placed))
    return [finding.rule for finding in kv.lint(model)]

one = np.random.default_rng(0).standard_normal((4, 4)).astype("float32") / 3
rules_found = {
    "healthy": rules(lambda number, shard: shard),
    "one seed on every device": rules(lambda number, shard: one),
    "zeros": rules(lambda number, shard: 0 * shard),
    "healthy replicas": replicas(lambda number, copy: copy),
    "replicas of their own": replicas(lambda number, copy: copy + (number == 5)),
}
print(json.dumps({"draws": draws, "models": found, "rules": rules_found}))
"""

HOST = """
import json
import sys
import tracemalloc
import jax

rank, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, rank)

import keras
import numpy as np
import keras_varinit as kv
from keras_varinit import keras_private
from tests.shards import models

keras.utils.set_random_seed(1)
keras.distribution.set_distribution(models.model_parallel(1, 4))
model = models.network()
found = {"steps": {name: [parts, told] for name, parts, told in models.steps(model)}}

found["lint"] = [(finding.rule, finding.path) for finding in kv.lint(model)]
found["predicted"] = {path: each.forward for path, each in kv.analyze(model).predicted.items()}

kv.initialize(model, kv.ASVForward(seed=1))
kernel = model.layers[1].kernel
kernel.assign(jax.jit(lambda value: value.at[0, 0, 0, 7].add(1))(kernel.value))
before, original, calls = models.digests(model), keras_private.assign, iter(range(100))

def assign(variable, value):
    original(variable, value)
    if next(calls) == 5:
        raise MemoryError

keras_private.assign = assign
try:
    kv.initialize(model, "glorot_uniform", seed=1)
except MemoryError:
    found["put back"] = models.digests(model) == before
keras_private.assign = original

keras.utils.clear_session()
other = models.network()
changed = other.layers[1].kernel
changed.assign(jax.jit(lambda value: value.at[0, 0, 0, 7].add(1))(changed.value))
found["statuses"] = models.statuses(kv.inject(other))

try:
    kv.ASVForward(seed=rank)((8, 16), layout=kernel.value.sharding)
except ValueError as error:
    found["seeds"] = str(error)

layout = jax.sharding.NamedSharding(kernel.value.sharding.mesh, jax.sharding.PartitionSpec("model"))
shape = (4096, 1024)
kv.ASVForward(seed=1)((64, 64), layout=layout)
tracemalloc.start()
drawn = kv.ASVForward(seed=1)(shape, layout=layout)
found["share of memory"] = tracemalloc.get_traced_memory()[1] / (4 * 4096 * 1024)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def alone(backend):
    """The weights of one device after each step."""
    if backend != "jax":
        pytest.skip("keras.distribution lays weights out on JAX alone")
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    model = network()
    found = {"built": arrays(model.weights)}
    kv.inject(model)
    found["injected"] = arrays(model.weights)
    for scheme in SCHEMES:
        kv.initialize(model, scheme, seed=3)
        found[scheme] = arrays(model.weights)
    found["lint"] = [[finding.rule, finding.path] for finding in kv.lint(model)]
    found["predicted"] = {path: each.forward for path, each in kv.analyze(model).predicted.items()}
    return found


@pytest.fixture(scope="module")
def on_eight(alone):
    return fresh_process.result(fresh_process.start(ON_EIGHT, **EIGHT), timeout=900)


@pytest.fixture(scope="module")
def on_two_hosts(alone):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    hosts = [fresh_process.start(HOST, rank, port, **flags) for rank in range(2)]
    return [fresh_process.result(host, timeout=900) for host in hosts]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_shards_of_a_call_are_those_of_the_whole_draw(family, on_eight):
    found = on_eight["draws"][family]
    assert len(found) >= len(LAYOUTS)
    assert all(found)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("step", ["built", "injected", *SCHEMES])
def test_a_mesh_of_eight_has_the_weights_of_one_device(step, mesh, on_eight, alone):
    found = on_eight["models"][str(mesh)]
    parts, statuses = found["steps"][step]
    assert found["sharded"] == 11
    assert found["stayed"]
    assert agree(parts, alone[step])
    if step == "injected":
        assert set(statuses) == {"skipped: already drawn for this context"}
    elif step != "built":
        assert set(statuses) == {"drawn"}


@pytest.mark.slow
def test_a_model_laid_out_after_it_was_built_is_injected_shard_by_shard(on_eight, alone):
    found = on_eight["models"]["after"]
    changed = "skipped: trained, loaded or set since it was drawn"
    assert found["statuses"].count(changed) == 1
    assert found["statuses"].count("drawn") == len(found["statuses"]) - 1
    assert agree(found["injected"][1:], alone["injected"][1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rules"),
    {
        "healthy": [],
        "one seed on every device": ["equal-shards"],
        "zeros": ["never-drawn", "vanishing-scale"],
        "healthy replicas": [],
        "replicas of their own": ["unequal-replicas"],
    }.items(),
)
def test_lint_compares_shards_and_copies(what, rules, on_eight):
    assert on_eight["rules"][what] == rules


@pytest.mark.slow
@pytest.mark.parametrize("step", ["built", "injected", *SCHEMES])
def test_two_hosts_have_the_weights_of_one_device(step, on_two_hosts, alone):
    """Nothing is gathered: JAX refuses to read an array that other hosts have parts of."""
    for host in on_two_hosts:
        assert agree(host["steps"][step][0], alone[step])
    places = [{place for each in host["steps"][step][0] for place in each} for host in on_two_hosts]
    assert places[0] != places[1]
    assert on_two_hosts[0]["steps"][step][1] == on_two_hosts[1]["steps"][step][1]


@pytest.mark.slow
def test_hosts_decide_alike_although_one_alone_sees_a_change(on_two_hosts):
    """The changed entry is on the second host's last device."""
    first, second = (host["statuses"] for host in on_two_hosts)
    assert first == second
    assert first.count("skipped: trained, loaded or set since it was drawn") == 1


@pytest.mark.slow
def test_hosts_analyze_and_lint_as_one_device_does(on_two_hosts, alone):
    for host in on_two_hosts:
        assert host["lint"] == alone["lint"]
        assert host["predicted"].keys() == alone["predicted"].keys()
        for path, forward in host["predicted"].items():
            assert forward == pytest.approx(alone["predicted"][path], rel=1e-9)


@pytest.mark.slow
def test_a_failure_on_two_hosts_changes_nothing(on_two_hosts):
    assert [host["put back"] for host in on_two_hosts] == [True, True]


@pytest.mark.slow
def test_hosts_with_different_seeds_are_refused(on_two_hosts):
    for host in on_two_hosts:
        assert (
            "ASVForward: the hosts of this layout would draw from different seeds" in host["seeds"]
        )


@pytest.mark.slow
def test_a_host_draws_no_more_than_it_holds(on_two_hosts):
    """Half of the kernel, and blocks of 2^16 entries in which threads draw."""
    for host in on_two_hosts:
        assert 0.5 <= host["share of memory"] < 0.6


def test_a_layout_is_refused_where_keras_has_none(backend):
    if backend == "jax":
        with pytest.raises(
            TypeError, match=r"`layout` must be a keras\.distribution\.TensorLayout"
        ):
            kv.ASVForward()((4, 4), layout="model")
    else:
        with pytest.raises(ValueError, match="`layout` is for the JAX backend"):
            kv.ASVForward()((4, 4), layout="model")


def test_keras_recognizes_that_ours_take_a_layout():
    import inspect

    from keras_varinit.initializers.base import registered_names

    for cls in set(registered_names.values()):
        assert "layout" in inspect.signature(cls.__call__).parameters
