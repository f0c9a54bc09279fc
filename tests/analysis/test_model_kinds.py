"""Models of every kind: nested in each other, shared layers, several inputs, own weights.

Each is read, redrawn by `initialize` and `inject`, and left without a trace of the reading.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit import keras_private
from tests.models import arrays, assert_equal, weights

L = keras.layers


def dense(units=8, **options):
    return L.Dense(units, kernel_initializer=kv.ASVForward(seed=3), **options)


class Wrapped(keras.Model):
    """A model with a `call` of its own around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return ops.relu(self.inner(x))

    def compute_output_shape(self, shape):
        return self.inner.compute_output_shape(shape)


def subclassed(inner):
    model = Wrapped(inner)
    model(np.ones((2, 8), "float32"))
    return model


def functional(inner):
    inputs = keras.Input((8,))
    return keras.Model(inputs, ops.relu(inner(inputs)))


def sequential(inner):
    return keras.Sequential([keras.Input((8,)), inner, L.ReLU()])


def lazy_sequential(inner):
    """Built by what it is called on."""
    model = keras.Sequential([inner, L.ReLU()])
    model(np.ones((2, 8), "float32"))
    return model


KINDS = (subclassed, functional, sequential, lazy_sequential)


def trace_of(model):
    """All that a call on symbolic tensors may leave behind."""
    layers = [model, *keras_private.layers_of(model)]
    nodes = [(len(each._inbound_nodes), len(each._outbound_nodes)) for each in layers]
    names = dict(keras_private.global_state.get_global_attribute("object_name_uids"))
    built = [each.built for each in layers]
    held = [sorted(vars(each)) for each in layers]
    return nodes, built, held, len(model.losses), names, [v.path for v in model.variables]


def reading_leaves_no_trace(model):
    before, values = trace_of(model), weights(model)
    analysis = kv.analyze(model)
    kv.lint(model)
    assert trace_of(model) == before
    assert_equal(weights(model), values)
    return analysis


def redrawn(model):
    """Paths of the kernels that `inject` and `initialize` draw: the same values."""
    by_path = {variable.path: variable for variable in model.variables}
    injected = [row.path for row in kv.inject(model).drawn]
    values = arrays(by_path[path] for path in injected)
    report = kv.initialize(model, kv.ASVForward(seed=3))
    assert [row.path for row in report.drawn if row.context is not None] == injected
    assert_equal(arrays(by_path[path] for path in injected), values)
    return injected


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(KINDS, KINDS)))
def test_every_kind_in_every_other(outer, inner):
    model = outer(inner(dense(name="a")))
    head = keras.Sequential([keras.Input((8,)), model, dense(name="b")])
    analysis = reading_leaves_no_trace(head)
    a, b = analysis.contexts.values()
    assert analysis.notes == ()
    assert (a.layer, a.depth, a.activation) == ("a", 1, "relu")
    assert (b.layer, b.depth, b.forward_gain) == ("b", 2, pytest.approx(0.5))
    assert len(redrawn(head)) == 2


@pytest.mark.parametrize("kinds", [KINDS[:3], KINDS[2::-1]])
def test_three_kinds_in_each_other(kinds):
    outer, middle, inner = kinds
    model = outer(middle(inner(dense(name="a"))))
    (context,) = reading_leaves_no_trace(model).contexts.values()
    assert (context.layer, context.activation) == ("a", "relu")
    assert len(redrawn(model)) == 1


@pytest.mark.parametrize("outer", KINDS)
def test_attention_and_time_distributed_inside_nested_models(outer):
    def inner():
        inputs = keras.Input((8,))
        x = L.Reshape((4, 2))(inputs)
        x = L.MultiHeadAttention(2, 3, kernel_initializer="asv_forward")(x, x)
        x = L.TimeDistributed(subclassed_sequence())(x)
        return keras.Model(inputs, L.Flatten()(x))

    def subclassed_sequence():
        model = Wrapped(dense(2))
        model(np.ones((1, 2), "float32"))
        return model

    analysis = reading_leaves_no_trace(outer(inner()))
    assert analysis.notes == ()
    assert [c.depth for c in analysis.contexts.values()] == [1, 1, 1, 2, 3]


class Siamese(keras.Model):
    """One tower for both entries of a dictionary, which `call` returns another of."""

    def __init__(self):
        super().__init__()
        self.tower = keras.Sequential([dense(8, name="tower"), L.ReLU()])
        self.head = dense(2, name="head")

    def call(self, inputs):
        one, two = self.tower(inputs["one"]), self.tower(inputs["two"])
        return {"distance": self.head(ops.abs(one - two)), "one": one}


def siamese_functional():
    inputs = {"one": keras.Input((5,), name="one"), "two": keras.Input((5,), name="two")}
    tower = keras.Sequential([keras.Input((5,)), dense(8, name="tower"), L.ReLU()])
    one, two = (tower(tensor) for tensor in inputs.values())
    head = dense(2, name="head")(ops.abs(one - two))
    return keras.Model(inputs, {"distance": head, "one": one})


def siamese_subclassed():
    model = Siamese()
    model({"one": np.ones((2, 5), "float32"), "two": np.ones((2, 5), "float32")})
    return model


@pytest.mark.parametrize("make", [siamese_functional, siamese_subclassed])
def test_shared_tower_with_dictionaries_of_inputs_and_outputs(make):
    model = make()
    analysis = reading_leaves_no_trace(model)
    tower, head = analysis.contexts.values()
    assert analysis.notes == ()
    assert (tower.layer, tower.depth, tower.activation) == ("tower", 1, "relu")
    assert (head.layer, head.depth, tower.total_depth) == ("head", 2, 2)
    assert len(redrawn(model)) == 2


def test_layers_shared_by_two_models_are_one_kernel_in_each():
    shared, inputs = dense(8, name="shared"), keras.Input((8,))
    first = keras.Model(inputs, shared(inputs))
    second = keras.Model(inputs, dense(2, name="head")(shared(shared(inputs))))
    assert len(reading_leaves_no_trace(first).contexts) == 1
    found = {c.layer: c.depth for c in reading_leaves_no_trace(second).contexts.values()}
    assert found == {"shared": 1, "head": 3}
    assert len(redrawn(second)) == 2


class TwoArguments(keras.Model):
    def __init__(self):
        super().__init__()
        self.left, self.right = dense(4, name="left"), dense(3, name="right")

    def call(self, a, b=None):
        return self.right(self.left(a) + b)


def test_a_model_of_two_arguments_is_read_as_the_error_says():
    """Keras does not keep the second argument's shape."""
    model = TwoArguments()
    model(np.ones((2, 5), "float32"), b=np.ones((2, 4), "float32"))
    analysis = kv.analyze(model)
    assert r"keras.Model(inputs, model(inputs)) is one, with" in analysis.notes[0]
    assert [c.layer for c in analysis.contexts.values()] == ["left", "right"]
    a, b = keras.Input((5,)), keras.Input((4,))
    whole = keras.Model([a, b], model(a, b))
    assert [c.layer for c in reading_leaves_no_trace(whole).contexts.values()] == ["left", "right"]
    assert len(redrawn(whole)) == 2


def test_list_of_inputs():
    class Joined(keras.Model):
        def __init__(self):
            super().__init__()
            self.left, self.right = dense(4, name="left"), dense(3, name="right")

        def call(self, inputs):
            a, b = inputs
            return [self.right(ops.concatenate([self.left(a), b], axis=-1)), b]

    model = Joined()
    model([np.ones((2, 5), "float32"), np.ones((2, 4), "float32")])
    left, right = reading_leaves_no_trace(model).contexts.values()
    assert (left.fan_in, right.fan_in, right.depth) == (5, 8, 2)


class Noisy(keras.Model):
    """Random numbers, a loss of its own and a counter: what a variational autoencoder has."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = dense(4, name="encoder"), dense(5, name="decoder")
        self.generator = keras.random.SeedGenerator(1)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def build(self, shape):
        self.encoder.build(shape)
        self.decoder.build((*shape[:-1], 4))

    def call(self, x):
        self.calls.assign_add(1.0)
        code = self.encoder(x)
        self.add_loss(ops.mean(code**2))
        code = code + keras.random.normal(ops.shape(code), seed=self.generator)
        return self.decoder(code)


@pytest.mark.parametrize("shape", [(2, 5), (None, 5)])
def test_losses_random_numbers_and_counters_do_not_stop_the_reading(shape):
    model = Noisy()
    if None in shape:
        model.build(shape)
    else:
        model(np.ones(shape, "float32"))
    seed = ops.convert_to_numpy(model.generator.state)
    found = reading_leaves_no_trace(model)
    assert [c.layer for c in found.contexts.values()] == ["encoder", "decoder"]
    assert len(redrawn(model)) == 2
    np.testing.assert_array_equal(ops.convert_to_numpy(model.generator.state), seed)


def test_noisy_layer_inside_a_functional_model():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, dense(2, name="head")(Noisy()(inputs)))
    analysis = reading_leaves_no_trace(model)
    assert analysis.notes == ()
    assert [c.depth for c in analysis.contexts.values()] == [1, 2, 3]


class Auxiliary(keras.Model):
    """A second head in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.extra = dense(name="body"), dense(2), dense(3, name="extra")

    def build(self, shape):
        self.body.build(shape)
        self.head.build((*shape[:-1], 8))

    def call(self, x, training=False):
        x = ops.relu(self.body(x))
        return (self.head(x), self.extra(x)) if training else self.head(x)


def test_head_of_training_alone_is_read_once_it_exists():
    model = Auxiliary()
    model(np.ones((2, 8), "float32"))
    assert len(reading_leaves_no_trace(model).contexts) == 2
    assert not model.extra.built
    model(np.ones((2, 8), "float32"), training=True)
    analysis = reading_leaves_no_trace(model)
    assert analysis.notes == ()
    assert {c.layer: c.depth for c in analysis.contexts.values()}["extra"] == 2
    assert len(redrawn(model)) == 3


def test_reading_builds_no_layer():
    """`model.build` marks a model as built whose layers are not, says Keras's own warning."""
    model = Wrapped(dense(name="inner"))
    with pytest.warns(UserWarning, match="looks like it has unbuilt state"):
        model.build((None, 8))
    before = trace_of(model)
    text = "layer 'inner' is not built; call the model on data once"
    assert text in kv.analyze(model).notes[0]
    with pytest.raises(ValueError, match=text):
        kv.initialize(model, "he_normal")
    assert trace_of(model) == before
    model(np.ones((2, 8), "float32"))
    assert len(redrawn(model)) == 1


@pytest.mark.parametrize("nested", [False, True])
def test_the_first_call_is_the_one_that_keras_runs_first(nested):
    """Outputs name the later call first, as a decoder that shares the encoder's embedding."""
    shared = dense(name="shared")
    long, short = keras.Input((6, 8)), keras.Input((3, 8))
    deep = ops.relu(dense()(ops.relu(shared(long))))
    late = shared(short)
    model = keras.Model([short, long], [late, deep])
    if nested:  # called on other shapes, so that it is traced anew
        inputs = [keras.Input((3, 8)), keras.Input((6, 8), batch_size=5)]
        model = keras.Model(inputs, model(inputs))
    lengths = []
    call = type(shared).call
    shared.call = lambda x: lengths.append(x.shape[1]) or call(shared, x)
    model([np.ones((5, 3, 8), "float32"), np.ones((5, 6, 8), "float32")])
    del shared.call
    first = kv.analyze(model).contexts["shared/kernel"]
    assert first.input_size == 8 * lengths[0]
