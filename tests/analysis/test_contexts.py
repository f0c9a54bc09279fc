"""What `analyze` reads off models: depth, activation, pooling and gains, by hand for each model."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv

L = keras.layers
pytestmark = [pytest.mark.prerelease, pytest.mark.once]
RELU = (0.5, 0.5)
TANH = (0.3942944904, 0.4644029025)  # ∫ tanh² φ and ∫ (1 - tanh²)² φ, by SciPy


def conv(name, filters=4, window=3, **options):
    return L.Conv2D(filters, window, padding="same", name=name, **options)


def image():
    return keras.Input((16, 16, 3))


def head(x):
    return L.Dense(10, name="head")(L.Flatten()(x))


def contexts_of(inputs, outputs):
    analysis = kv.analyze(keras.Model(inputs, outputs))
    return {c.layer: c for c in analysis.contexts.values()}, analysis.notes


def chain(*layers):
    """A stage between the kernels `a` and `head`."""
    x = inputs = image()
    x = conv("a")(x)
    for layer in layers:
        x = layer(x)
    return contexts_of(inputs, head(x))


# What stands between two kernels: activation, pooling, T, and the gains (τ for the reader, γ).
STAGES = {
    "nothing": ([], None, None, 1, 1.0, 1.0),
    "relu layer": ([L.ReLU], "relu", None, 1, *RELU),
    "activation layer": ([lambda: L.Activation("tanh")], "tanh", None, 1, *TANH),
    "raw relu": ([lambda: ops.relu], "relu", None, 1, *RELU),
    "function from activations": ([lambda: keras.activations.relu], "relu", None, 1, *RELU),
    "raw tanh": ([lambda: ops.tanh], "tanh", None, 1, *TANH),
    "raw maximum with 0": ([lambda: lambda x: ops.maximum(x, 0.0)], "maximum", None, 1, *RELU),
    "scale by a number": ([lambda: lambda x: x * 2.0], "multiply", None, 1, 4.0, 4.0),
    "number minus signal": ([lambda: lambda x: 0.0 - x], "subtract", None, 1, 1.0, 1.0),
    "leaky slope": ([lambda: L.LeakyReLU(negative_slope=0.1)], "leaky_relu", None, 1, 0.505, 0.505),
    "raw leaky": ([lambda: lambda x: ops.leaky_relu(x, 0.1)], "leaky_relu", None, 1, 0.505, 0.505),
    "prelu starts as relu": ([L.PReLU], "prelu", None, 1, *RELU),
    "prelu slope": (
        [lambda: L.PReLU(alpha_initializer=keras.initializers.Constant(0.1))],
        "prelu",
        None,
        1,
        0.505,
        0.505,
    ),
    "relu with slope": ([lambda: L.ReLU(negative_slope=0.1)], "relu", None, 1, 0.505, 0.505),
    "batch norm, relu": ([L.BatchNormalization, L.ReLU], "relu", None, 1, *RELU),
    "layer norm, relu": ([L.LayerNormalization, L.ReLU], "relu", None, 1, *RELU),
    "group norm": ([lambda: L.GroupNormalization(2), L.ReLU], "relu", None, 1, *RELU),
    "relu, dropout": ([L.ReLU, lambda: L.Dropout(0.5)], "relu", None, 1, *RELU),
    "relu, reshape": ([L.ReLU, lambda: L.Reshape((256, 4))], "relu", None, 1, *RELU),
    "relu, raw transpose": (
        [L.ReLU, lambda: lambda x: ops.transpose(x, (0, 2, 1, 3))],
        "relu",
        None,
        1,
        *RELU,
    ),
    "relu, zeros": ([L.ReLU, lambda: L.ZeroPadding2D(1)], "relu", None, 1, *RELU),
    "max": (
        [L.ReLU, lambda: L.MaxPooling2D(2)],
        "relu",
        "max",
        4,
        1.5437850116,
        (1 - 2**-4) / 4,
    ),
    "max in front of relu": (
        [lambda: L.MaxPooling2D(2), L.ReLU],
        "relu",
        "max",
        4,
        1.5437850116,
        (1 - 2**-4) / 4,
    ),
    "overlapping max": (
        [L.ReLU, lambda: L.MaxPooling2D(3, strides=2)],
        "relu",
        "max",
        9,
        2.5625591277,  # ∫ max(s, 0)² 9 φ Φ⁸, by SciPy
        (1 - 2**-9) / 9,
    ),
    "average": (
        [L.ReLU, lambda: L.AveragePooling2D(2)],
        "relu",
        "average",
        4,
        (1 + 3 / math.pi) / 8,
        0.5 / 16,
    ),
    "raw average": (
        [L.ReLU, lambda: lambda x: ops.average_pool(x, 2)],
        "relu",
        "average",
        4,
        (1 + 3 / math.pi) / 8,
        0.5 / 16,
    ),
    "global average": (
        [L.ReLU, L.GlobalAveragePooling2D],
        "relu",
        "average",
        256,
        (1 + 255 / math.pi) / 512,
        0.5 / 256**2,
    ),
    "raw mean over the map": (
        [L.ReLU, lambda: lambda x: ops.mean(x, axis=(1, 2))],
        "relu",
        "average",
        256,
        (1 + 255 / math.pi) / 512,
        0.5 / 256**2,
    ),
    "global max": ([L.ReLU, L.GlobalMaxPooling2D], "relu", "max", 256, None, 1 / 256),
}


@pytest.mark.parametrize("case", STAGES)
def test_stage_between_two_kernels(case):
    makers, activation, pooling, size, tau, gamma = STAGES[case]
    contexts, notes = chain(*[make() for make in makers])
    a, reader = contexts["a"], contexts["head"]
    assert notes == ()
    assert (a.activation, a.pooling, a.pool_size) == (activation, pooling, size)
    assert a.backward_gain == pytest.approx(gamma, rel=1e-5)  # raw operations run in float32
    assert (a.forward_gain, reader.backward_gain) == (1.0, 1.0)
    if tau is not None:
        assert reader.forward_gain == pytest.approx(tau, rel=1e-5)
    assert (a.depth, reader.depth, a.total_depth) == (1, 2, 2)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_pooling_layers_of_every_rank(rank, kind):
    shape = (8,) * rank + (2,)

    def context(pool):
        x = inputs = keras.Input(shape)
        x = getattr(L, f"Conv{rank}D")(4, 3, padding="same", activation="relu", name="a")(x)
        return contexts_of(inputs, head(pool(x)))[0]["a"]

    name = kind.lower()
    windowed = context(getattr(L, f"{kind}Pooling{rank}D")(3, strides=2))
    assert (windowed.pooling, windowed.pool_size) == (name, 3**rank)
    whole = context(getattr(L, f"Global{kind}Pooling{rank}D")())
    assert (whole.pooling, whole.pool_size) == (name, 8**rank)


def test_activation_inside_the_layer_and_as_a_layer_object_and_as_a_callable():
    for activation in ("tanh", keras.activations.tanh, L.Activation("tanh"), lambda x: ops.tanh(x)):
        x = inputs = image()
        x = conv("a", activation=activation)(x)
        contexts, _ = contexts_of(inputs, head(x))
        assert contexts["head"].forward_gain == pytest.approx(TANH[0], rel=1e-6)
        assert contexts["a"].backward_gain == pytest.approx(TANH[1], rel=1e-4)


def test_a_callable_that_is_no_function_of_one_entry_is_reported():
    x = inputs = keras.Input((8,))
    x = L.Dense(6, activation=keras.activations.glu, name="a")(x)
    _, notes = contexts_of(inputs, L.Dense(2, name="b")(x))
    assert any("activation 'glu' is not element-wise" in note for note in notes)


def test_output_activations_belong_to_the_loss():
    for activation in ("softmax", "sigmoid", None):
        inputs = keras.Input((8,))
        contexts, _ = contexts_of(inputs, L.Dense(2, activation=activation, name="a")(inputs))
        assert contexts["a"].backward_gain == pytest.approx(1.0)
        assert contexts["a"].activation == activation
    inputs = keras.Input((8,))
    contexts, _ = contexts_of(inputs, L.Dense(2, activation="tanh", name="a")(inputs))
    assert contexts["a"].backward_gain == pytest.approx(TANH[1], rel=1e-6)


def test_residual_block_after_activation():
    """conv-bn-relu-conv-bn-add-relu: both convolutions have the ReLU, the first also by itself."""
    inputs = image()
    x = conv("stem", activation="relu")(inputs)
    y = ops.relu(L.BatchNormalization()(conv("a")(x)))
    y = L.BatchNormalization()(conv("b")(y))
    x = ops.relu(x + y)
    contexts, _ = contexts_of(inputs, head(L.GlobalAveragePooling2D()(x)))
    depths = {name: c.depth for name, c in contexts.items()}
    assert depths == {"stem": 1, "a": 2, "b": 3, "head": 4}
    assert contexts["a"].backward_gain == pytest.approx(0.5)
    b = contexts["b"]
    assert (b.activation, b.pooling, b.pool_size) == ("relu", "average", 256)
    # The sum counts as a unit-variance pre-activation.
    assert contexts["head"].forward_gain == pytest.approx((1 + 255 / math.pi) / 512)


def test_residual_block_before_activation_follows_the_branch_nearest_to_a_kernel():
    inputs = image()
    x = conv("stem")(inputs)
    for name in ("a", "b"):
        y = conv(name)(L.ReLU()(L.BatchNormalization()(x)))
        x = L.Add()([x, y])
    contexts, _ = contexts_of(inputs, head(x))
    assert [contexts[n].activation for n in ("stem", "a", "b")] == ["relu", "relu", None]
    assert [contexts[n].forward_gain for n in ("a", "b", "head")] == pytest.approx([0.5, 0.5, 1])
    assert [contexts[n].depth for n in ("stem", "a", "b", "head")] == [1, 2, 3, 4]


def test_parting_prefers_fewest_operations_then_the_earlier_call():
    x = inputs = image()
    x = conv("a")(x)
    near = conv("near")(L.ReLU()(x))
    far = conv("far")(L.MaxPooling2D(2, 1, padding="same")(L.Activation("tanh")(x)))
    contexts, _ = contexts_of(inputs, head(L.Add()([far, near])))
    assert (contexts["a"].activation, contexts["a"].pooling) == ("relu", None)
    assert contexts["far"].forward_gain != contexts["near"].forward_gain

    x = inputs = image()
    x = conv("a")(x)
    first = conv("first")(L.ReLU()(x))
    second = conv("second")(L.Activation("tanh")(x))
    contexts, _ = contexts_of(inputs, head(L.Add()([first, second])))
    assert contexts["a"].activation == "relu"


def test_concatenation_has_the_mean_second_moment_of_its_channels():
    inputs = image()
    left = conv("left", filters=12, activation="relu")(inputs)
    right = conv("right", filters=4)(inputs)
    contexts, _ = contexts_of(inputs, head(L.Concatenate()([left, right])))
    assert contexts["head"].forward_gain == pytest.approx((12 * 0.5 + 4 * 1.0) / 16)


def test_several_inputs_and_outputs():
    one, two = keras.Input((8,), name="one"), keras.Input((6,), name="two")
    a = L.Dense(4, activation="relu", name="a")(one)
    b = L.Dense(4, activation="relu", name="b")(a)
    c = L.Dense(4, activation="tanh", name="c")(two)
    merged = L.Dense(4, name="merged")(L.Add()([b, c]))
    model = keras.Model({"one": one, "two": two}, {"b": b, "merged": merged})
    contexts = {c.layer: c for c in kv.analyze(model).contexts.values()}
    assert {n: c.depth for n, c in contexts.items()} == {"a": 1, "b": 2, "c": 1, "merged": 3}
    assert all(c.total_depth == 3 for c in contexts.values())
    assert contexts["c"].forward_gain == 1.0


def test_separable_convolution_counts_as_two_kernels():
    inputs = image()
    x = L.SeparableConv2D(8, 3, activation="relu", name="a")(inputs)
    model = keras.Model(inputs, head(x))
    depthwise, pointwise, last = kv.analyze(model).contexts.values()
    assert [c.depth for c in (depthwise, pointwise, last)] == [1, 2, 3]
    assert (depthwise.activation, depthwise.backward_gain) == (None, 1.0)
    assert (pointwise.activation, pointwise.backward_gain) == ("relu", pytest.approx(0.5))
    assert (depthwise.fan_in, pointwise.fan_in) == (9, 3)
    assert (depthwise.filter_axes, depthwise.spatial_axes) == ((2, 3), (0, 1))


def test_nested_models_are_opened_and_see_the_sizes_they_are_called_with():
    inner_in = keras.Input((None, None, 4))
    inner = keras.Model(inner_in, L.GlobalAveragePooling2D()(L.ReLU()(conv("inner")(inner_in))))
    block = keras.Sequential([L.ReLU(), conv("block")])
    inputs = image()
    x = block(conv("outer")(inputs))
    model = keras.Model(inputs, L.Dense(3, name="head")(inner(x)))
    analysis = kv.analyze(model)
    contexts = {c.layer: c for c in analysis.contexts.values()}
    assert analysis.notes == ()
    assert [contexts[n].depth for n in ("outer", "block", "inner", "head")] == [1, 2, 3, 4]
    assert (contexts["outer"].activation, contexts["inner"].pool_size) == ("relu", 256)
    assert contexts["inner"].connections is not None


def test_layer_called_twice_has_the_context_of_its_first_call():
    shared = L.Dense(8, name="shared")
    inputs = keras.Input((8,))
    x = shared(L.Activation("tanh")(shared(inputs)))
    contexts, _ = contexts_of(inputs, L.Dense(2, name="head")(x))
    assert (contexts["shared"].depth, contexts["shared"].activation) == (1, "tanh")
    assert contexts["head"].depth == 3


def test_kernels_of_one_path_are_told_apart():
    def tower():
        inputs = keras.Input((8,))
        return keras.Model(inputs, L.Dense(8, name="dense")(inputs))

    inputs = keras.Input((8,))
    model = keras.Model(inputs, L.Add()([tower()(inputs), tower()(inputs)]))
    contexts = kv.analyze(model).contexts
    assert list(contexts) == ["dense/kernel", "dense/kernel#2"]
    assert len({c.stream for c in contexts.values()}) == 2


def test_unknown_map_size_leaves_global_pooling_out_and_says_so():
    inputs = keras.Input((None, None, 3))
    x = L.GlobalAveragePooling2D()(conv("a", activation="relu")(inputs))
    contexts, notes = contexts_of(inputs, L.Dense(2, name="head")(x))
    assert (contexts["a"].pooling, contexts["a"].pool_size) == ("average", None)
    assert contexts["a"].backward_gain == pytest.approx(0.5)
    assert any("pooled has an unknown size" in note for note in notes)


def test_layers_without_a_rule_are_reported():
    class Mystery(L.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 4), name="w")

        def call(self, x):
            return ops.matmul(x, ops.tanh(self.w))  # the kernel is no variable any more

        def compute_output_shape(self, shape):
            return (*shape[:-1], 4)

    inputs = keras.Input((8,))
    x = L.Dense(8, activation="relu", name="a")(inputs)
    contexts, notes = contexts_of(inputs, L.Dense(2, name="b")(Mystery(name="m")(x)))
    assert "m/w: how it is used is not known" in notes
    assert contexts["b"].forward_gain == 1.0


def test_analysis_changes_nothing():
    inputs = image()
    x = L.Dropout(0.5)(L.BatchNormalization()(conv("a", activation="relu")(inputs)))
    model = keras.Model(inputs, head(x))
    before = [np.array(w) for w in model.get_weights()]
    config, operations = model.get_config(), len(model.operations)
    kv.analyze(model)
    assert model.get_config() == config
    assert len(model.operations) == operations
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_deep_chain_is_read_without_recursion():
    x = inputs = keras.Input((4,))
    for _ in range(300):  # Keras itself recurses when it records a graph
        x = L.Dense(4, activation="relu")(x)
    contexts = list(kv.analyze(keras.Model(inputs, x)).contexts.values())
    assert [c.depth for c in contexts] == list(range(1, 301))


def test_printed_analysis_names_every_kernel():
    contexts_model = keras.Sequential([image(), conv("a", activation="relu"), L.Flatten()])
    text = str(kv.analyze(contexts_model))
    assert "a/kernel" in text
    assert "relu" in text
