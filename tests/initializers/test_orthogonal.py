"""`distribution="orthogonal"`: orthogonality to 1e-5, the variance, and E u² in real layers."""

import math

import keras
import numpy as np
import pytest
from scipy import stats

import keras_varinit as kv
from tests.gradients import vector_jacobian
from tests.initializers.test_depth import context

L = keras.layers
SCHEMES = {
    "asv_forward": lambda **k: kv.ASVForward("orthogonal", **k),
    "asv_backward": lambda **k: kv.ASVBackward("orthogonal", **k),
    "signal_preserving": lambda **k: kv.SignalPreserving("orthogonal", **k),
}
schemes = pytest.mark.parametrize("scheme", SCHEMES)


def numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")).astype(np.float64)


def assert_semi_orthogonal(matrix, stddev):
    """W of r rows and c columns, W Wᵀ or WᵀW = σ²·max(r, c)·I, to 1e-5 of its scale."""
    rows, columns = matrix.shape
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    scale = stddev**2 * max(rows, columns)
    np.testing.assert_allclose(gram / scale, np.eye(len(gram)), atol=1e-5)


@schemes
@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (33, 33), (5, 1), (1, 5), (7,), (3, 4, 8)])
def test_without_context_it_is_all_axes_but_the_last_by_the_last(scheme, shape):
    initializer = SCHEMES[scheme](seed=3)
    kernel = numpy(initializer(shape))
    stddev = initializer.stddev(shape)
    assert_semi_orthogonal(kernel.reshape(-1, shape[-1]), stddev)
    assert np.mean(kernel**2) == pytest.approx(stddev**2, rel=1e-5)


def built(layer, shape):
    """A model of one layer on inputs of that shape, drawn with a context by `initialize`."""
    inputs = keras.Input(shape)
    arguments = (inputs, inputs) if isinstance(layer, L.MultiHeadAttention) else (inputs,)
    return keras.Model(inputs, layer(*arguments))


def windowless(*row_axes):
    """Axes that are summed; the others are filters."""

    def matrices(kernel):
        size = math.prod(kernel.shape[axis] for axis in row_axes)
        yield np.moveaxis(kernel, row_axes, range(len(row_axes))).reshape(size, -1)

    return matrices


def by_index(axis):
    """A matrix of the two remaining axes for each index of one."""
    return lambda kernel: np.moveaxis(kernel, axis, 0)


def gates(count):
    return lambda kernel: np.split(kernel, count, axis=1)


def einsum(equation, output):
    return L.EinsumDense(equation, output)


# Layer, shape of its input, and for each of its kernels its matrices of summed axes by filters.
MATRICES = {
    "dense": (lambda: L.Dense(24), (40,), [windowless(0)]),
    "wide dense": (lambda: L.Dense(40), (24,), [windowless(0)]),
    "einsum, heads behind": (
        lambda: einsum("abc,cde->abde", (None, 4, 6)),
        (5, 32),
        [windowless(0)],
    ),
    "einsum, heads in front": (
        lambda: einsum("abcd,cde->abe", (None, 30)),
        (5, 4, 6),
        [windowless(0, 1)],
    ),
    "einsum, output first": (lambda: einsum("abc,dc->abd", (None, 12)), (5, 32), [windowless(1)]),
    "einsum, a matrix per head": (
        lambda: einsum("abhc,hcd->abhd", (None, 3, 8)),
        (5, 3, 16),
        [by_index(0)],
    ),
    "attention": (
        lambda: L.MultiHeadAttention(3, 8),
        (5, 16),
        [windowless(0)] * 3 + [windowless(0, 1)],
    ),
    "LSTM": (lambda: L.LSTM(8), (5, 12), [gates(4), gates(4)]),
    "GRU": (lambda: L.GRU(12), (5, 8), [gates(3), gates(3)]),
    "simple RNN": (lambda: L.SimpleRNN(12), (5, 8), [windowless(0), windowless(0)]),
}


def kernels_of(model):
    return [v for v in model.trainable_variables if "kernel" in v.path]


@schemes
@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_of_summed_axes_by_filters(scheme, name):
    make, shape, ways = MATRICES[name]
    model = built(make(), shape)
    report = kv.initialize(model, SCHEMES[scheme](), seed=2)
    for variable, matrices in zip(kernels_of(model), ways, strict=True):
        kernel, stddev = numpy(variable), report[variable.path].stddev
        assert np.mean(kernel**2) == pytest.approx(stddev**2, rel=1e-5)
        for matrix in matrices(kernel):
            assert_semi_orthogonal(matrix, stddev)


def split(count):
    """The groups of a convolution: contiguous blocks of its filters."""
    return lambda centre: np.split(centre, count, axis=-1)


def whole(centre):
    return [centre]


# Layer, shape of its input, and the matrices at the central tap.
CONVOLUTIONS = {
    "1D": (lambda: L.Conv1D(24, 5), (12, 16), whole),
    "2D": (lambda: L.Conv2D(24, 3, padding="same"), (9, 9, 16), whole),
    "2D, fewer filters": (lambda: L.Conv2D(16, (3, 5)), (9, 9, 24), whole),
    "2D, even": (lambda: L.Conv2D(24, (4, 2), padding="same"), (8, 8, 16), whole),
    "2D, 1×1": (lambda: L.Conv2D(24, 1, strides=2), (8, 8, 16), whole),
    "3D, strides": (lambda: L.Conv3D(8, 3, strides=2, padding="same"), (6, 6, 6, 4), whole),
    "grouped": (lambda: L.Conv2D(24, 3, groups=4), (9, 9, 16), split(4)),
    "depthwise": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), (9, 9, 6), by_index(0)),
    "square depthwise": (lambda: L.DepthwiseConv1D(3, depth_multiplier=6), (9, 6), by_index(0)),
    "transposed": (lambda: L.Conv2DTranspose(24, 3, padding="same"), (6, 6, 16), whole),
}


@schemes
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_has_the_matrix_at_its_central_tap_alone(scheme, name):
    make, shape, matrices = CONVOLUTIONS[name]
    layer = make()
    model = built(layer, shape)
    report = kv.initialize(model, SCHEMES[scheme](), seed=2)
    (variable,) = kernels_of(model)
    kernel, stddev = numpy(variable), report[variable.path].stddev
    window = kernel.shape[:-2]
    centre = tuple((n - 1) // 2 for n in window)
    assert np.mean(kernel**2) == pytest.approx(stddev**2, rel=1e-5)
    for matrix in matrices(kernel[centre]):
        if isinstance(layer, L.DepthwiseConv1D | L.DepthwiseConv2D):
            matrix = matrix[None]
        assert_semi_orthogonal(matrix, stddev * math.sqrt(math.prod(window)))
    kernel[centre] = 0
    assert not kernel.any()


def apply_layer(layer, x):
    return numpy(layer(x))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("channels", "filters"), [(6, 40), (40, 6)])
@pytest.mark.parametrize("strides", [1, 2])
def test_the_second_moment_is_that_of_independent_taps(padding, channels, filters, strides):
    """With borders too: ASV's variance for independent taps makes up for what they cut off."""
    rng = np.random.default_rng(0)
    moments = {}
    for distribution in ("normal", "orthogonal"):
        layer = L.Conv2D(filters, 3, strides=strides, padding=padding)
        model = built(layer, (8, 8, channels))
        scheme = kv.ASVForward(distribution)
        rows = []
        for seed in range(60):
            kv.initialize(model, scheme, seed=seed)
            x = rng.standard_normal((16, 8, 8, channels)).astype("float32")
            rows.append(np.mean(apply_layer(layer, x) ** 2))
        moments[distribution] = np.mean(rows), np.std(rows, ddof=1) / math.sqrt(len(rows))
    for mean, error in moments.values():
        assert error < 0.02
        assert abs(mean - 1) < 4 * error, moments


def test_asv_backward_keeps_the_gradient_through_strides_and_borders():
    layer = L.Conv2D(24, 3, strides=2, padding="same")
    model = built(layer, (8, 8, 16))
    rng, rows = np.random.default_rng(0), []
    x = np.zeros((8, 8, 8, 16), "float32")
    for seed in range(60):
        kv.initialize(model, kv.ASVBackward("orthogonal"), seed=seed)
        g = rng.standard_normal((8, 4, 4, 24)).astype("float32")
        rows.append(np.mean(vector_jacobian(layer, x, g) ** 2))
    error = np.std(rows, ddof=1) / math.sqrt(len(rows))
    assert abs(np.mean(rows) - 1) < 4 * error
    assert error < 0.02


def convolutions(shape):
    """Border effects, a stride, a depthwise layer and average pooling."""
    inputs = keras.Input(shape)
    x = L.ReLU()(L.Conv2D(32, 3, padding="same")(inputs))
    x = L.AveragePooling2D(2)(L.ReLU()(L.Conv2D(48, 3, padding="same")(x)))
    x = L.ReLU()(L.DepthwiseConv2D(3, padding="same")(x))
    x = L.ReLU()(L.Conv2DTranspose(48, 3, padding="same")(x))
    x = L.ReLU()(L.Conv2D(48, 3, strides=2, padding="same")(x))
    return keras.Model(inputs, L.Conv2D(48, 2)(x))


@pytest.mark.once
@pytest.mark.slow
def test_the_engine_predicts_delta_kernels_forward_and_backward():
    model = convolutions((8, 8, 16))
    convs = [layer for layer in model.layers if layer.weights]
    inside = keras.Model(model.inputs[0], [layer.output for layer in convs])
    scheme = kv.SignalPreserving("orthogonal")
    rng, forward, backward = np.random.default_rng(0), [], []
    draws = 400
    for seed in range(draws):
        kv.initialize(model, scheme, seed=seed)
        x = rng.standard_normal((8, 8, 8, 16)).astype("float32")
        forward.append([np.mean(numpy(u) ** 2) for u in inside(x)])
        g = rng.standard_normal((8, *model.output_shape[1:])).astype("float32")
        backward.append(np.mean(vector_jacobian(model, x, g) ** 2))
    analysis = kv.analyze(model)
    predicted = [p.forward for p in analysis.predicted.values()]
    np.testing.assert_allclose(predicted, 1, rtol=1e-6)
    mean, error = np.mean(forward, axis=0), np.std(forward, axis=0, ddof=1) / math.sqrt(draws)
    assert np.all(error < 0.03)
    assert np.all(np.abs(mean - 1) < np.maximum(4 * error, 0.03)), mean  # widths count as large
    # The gradient at the input is that at the first kernel's output, once more through the kernel.
    first = next(iter(analysis.predicted.values())).backward
    kernel = numpy(convs[0].kernel)
    want = first * np.mean(kernel**2) * 9 * 32
    error = np.std(backward, ddof=1) / math.sqrt(draws)
    assert error < 0.05 * want
    assert abs(np.mean(backward) - want) < max(4 * error, 0.04 * want), (np.mean(backward), want)


def test_the_law_is_uniform_over_all_orthogonal_matrices():
    """Rotations by uniform angles, as many reflections: the signs of R are taken out of Q."""
    kernels = [numpy(kv.ASVForward("orthogonal", seed=seed)((2, 2))) for seed in range(400)]
    angles = np.array([math.atan2(k[1, 0], k[0, 0]) for k in kernels])
    assert stats.kstest(angles / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-3
    reflections = sum(np.linalg.det(k) < 0 for k in kernels)
    assert abs(reflections - 200) < 4 * 10  # standard deviation √(400/4)
    # A depthwise kernel with one filter per channel is a sign per channel.
    model = built(L.DepthwiseConv2D(3, padding="same"), (4, 4, 400))
    kv.initialize(model, kv.ASVForward("orthogonal"), seed=0)
    centre = numpy(kernels_of(model)[0])[1, 1, :, 0]
    np.testing.assert_allclose(np.abs(centre), 1, rtol=1e-6)
    assert abs(np.sum(centre > 0) - 200) < 4 * 10


# Drawn with independent entries, as documented.
INDEPENDENT = {
    "transposed, strides": (lambda: L.Conv2DTranspose(24, 4, strides=2), (6, 6, 16)),
    "einsum of unclear groups": (lambda: einsum("abhc,hcd->abhd", (None, 16, 16)), (5, 16, 8)),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_has_no_orthogonal_form_is_drawn_normal_with_the_variance(name):
    make, shape = INDEPENDENT[name]
    model = built(make(), shape)
    report = kv.initialize(model, kv.ASVForward("orthogonal"), seed=1)
    (variable,) = kernels_of(model)
    kernel, stddev = numpy(variable).ravel(), report[variable.path].stddev
    assert np.all(kernel)
    assert stats.kstest(kernel / stddev, "norm").pvalue > 1e-3
    assert stddev == kv.ASVForward(context=report[variable.path].context).stddev(variable.shape)


@schemes
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(scheme, dtype):
    initializer = SCHEMES[scheme](seed=1)
    kernel = initializer((32, 24), dtype=dtype)
    assert keras.backend.standardize_dtype(kernel.dtype) == dtype
    rounded = keras.ops.cast(initializer((32, 24), dtype="float32"), dtype)
    np.testing.assert_array_equal(numpy(kernel), numpy(rounded))


def test_wrappers_scale_the_matrix_as_a_whole_or_filter_by_filter():
    base, placed = SCHEMES["asv_forward"](), context(depth=3)
    for wrapper in (
        kv.DepthScaled(base, base=16.0, seed=1, context=placed),
        kv.ResidualScaled(base, seed=1, context=context(branches=4, branch_end=True)),
    ):
        assert_semi_orthogonal(numpy(wrapper((64, 48))), wrapper.stddev((64, 48)))
    enhanced = numpy(kv.Enhanced(base, seed=1, context=placed)((64, 48)))
    norms = np.linalg.norm(enhanced, axis=0)
    np.testing.assert_allclose((enhanced / norms).T @ (enhanced / norms), np.eye(48), atol=1e-5)
    # Squared norms are σ²·64·g, g ~ χ²(1); σ² = 1/64 for an input of second moment 1.
    assert stats.kstest(norms**2, stats.chi2(1).cdf).pvalue > 1e-3


def test_a_delta_kernel_in_a_wrapper_is_predicted_as_one():
    model = built(L.Conv2D(32, 3, padding="same"), (6, 6, 16))
    kv.initialize(model, kv.DepthScaled(kv.ASVForward("orthogonal"), base=2.0), seed=0)
    (prediction,) = kv.analyze(model).predicted.values()
    assert prediction.forward == pytest.approx(1.0, rel=1e-6)  # log_2(1 + 1)


def test_a_frozen_delta_kernel_is_known_by_its_values():
    model = built(L.Conv2D(32, 3, padding="same"), (6, 6, 16))
    kv.initialize(model, kv.ASVForward("orthogonal"), seed=0)
    kernel = model.layers[1].kernel
    model.layers[1].trainable = False
    path = kernel.path
    assert kv.analyze(model).predicted[path].forward == pytest.approx(1.0, rel=1e-5)
    # Of other values the engine assumes independent taps, some of which read the padding.
    kernel.assign(kv.ASVForward(seed=1)((3, 3, 16, 32)))
    # Along an axis 16 taps lie inside the map, over 6 outputs.
    expected = np.mean(np.square(numpy(kernel))) * 16 * (16 / 6) ** 2
    assert kv.analyze(model).predicted[path].forward == pytest.approx(expected, rel=1e-5)


def test_inject_draws_delta_kernels_once():
    made = [L.Conv2D(16, 3, kernel_initializer=SCHEMES["asv_forward"](seed=1)) for _ in range(2)]
    model = keras.Sequential([keras.Input((9, 9, 16)), *made])
    assert len(kv.inject(model).drawn) == 2
    first, second = (numpy(layer.kernel) for layer in made)
    assert not np.any(first[1, 1] == second[1, 1])
    assert kv.inject(model).drawn == ()
    assert kv.lint(model) == []


def test_a_builtin_copy_stays_orthogonal_where_keras_can():
    layers = [L.Conv2D(8, 3), L.Flatten(), L.Dense(16)]
    model = keras.Sequential([keras.Input((6, 6, 4)), *layers])
    report = kv.initialize(model, SCHEMES["asv_backward"](seed=1))
    copy = kv.to_builtin(model)
    names = [type(copy.layers[n].kernel_initializer).__name__ for n in (0, 2)]
    assert names == ["RandomNormal", "Orthogonal"]
    redrawn = numpy(copy.layers[2].kernel_initializer((128, 16)))
    assert_semi_orthogonal(redrawn, report[model.layers[2].kernel.path].stddev)


def test_no_entries():
    assert tuple(kv.ASVForward("orthogonal")((4, 0)).shape) == (4, 0)
