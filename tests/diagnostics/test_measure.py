"""`measure_signal` against numbers computed by hand, on models of every kind, without a trace."""

import json
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit.running import gradients, statistics

L = keras.layers


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def mlp(activation="tanh", widths=(6, 5), outputs=3, **options):
    layers = [L.Dense(n, activation=activation, **options) for n in widths]
    return keras.Sequential([keras.Input((4,)), *layers, L.Dense(outputs)])


def by_hand(model, x, targets):
    """Pre-activations, and gradients of Σ (output - target)² / outputs, of a tanh network."""
    kernels = [layer.get_weights() for layer in model.layers]
    signals, a = [], x.astype(np.float64)
    for number, (kernel, bias) in enumerate(kernels):
        signals.append(a @ kernel + bias)
        a = np.tanh(signals[-1]) if number < len(kernels) - 1 else signals[-1]
    gradients = [2 * (a - targets) / a.shape[1]]
    for (kernel, _), signal in zip(reversed(kernels[1:]), reversed(signals[:-1]), strict=True):
        gradients.insert(0, gradients[0] @ kernel.T * (1 - np.tanh(signal) ** 2))
    return signals, gradients


@pytest.mark.parametrize("batch_size", [1, 7, 32, 64])
def test_a_small_network_by_hand_whatever_the_batches(batch_size):
    model, x, y = mlp(bias_initializer="random_normal"), draw(40, 4), draw(40, 3, seed=1)
    signals, gradients = by_hand(model, x, y)
    report = kv.measure_signal(model, x, y, "mse", batch_size=batch_size)
    assert report.examples == 40
    assert report.gradients == "loss"
    assert [row.name for row in report] == [layer.name for layer in model.layers]
    for row, signal, gradient in zip(report, signals, gradients, strict=True):
        # float32 sums of a few hundred entries
        assert row.mean == pytest.approx(signal.mean(), rel=1e-4, abs=1e-6)
        assert row.variance == pytest.approx(signal.var(), rel=1e-4)
        assert row.second_moment == pytest.approx(np.mean(signal**2), rel=1e-4)
        assert row.gradient_second_moment == pytest.approx(np.mean(gradient**2), rel=1e-4)
        assert row.kind == "weights"
        assert row.nonfinite_count == row.gradient_nonfinite_count == 0
        assert report[row.path] is report[row.name] is row
    behind = np.tanh(signals[0])
    assert report.rows[0].output_mean == pytest.approx(behind.mean(), rel=1e-4, abs=1e-6)
    assert report.rows[0].output_variance == pytest.approx(behind.var(), rel=1e-4)
    assert report.input_second_moment == pytest.approx(np.mean(x.astype(np.float64) ** 2))


def test_white_noise_gradients_do_not_depend_on_the_batches_and_have_unit_size():
    model, x = mlp(outputs=500), draw(64, 4)
    one, many = (kv.measure_signal(model, x, batch_size=n) for n in (64, 5))
    assert one.gradients == "noise"
    for row, other in zip(one, many, strict=True):
        assert other.gradient_second_moment == pytest.approx(row.gradient_second_moment, rel=1e-4)
        assert other.second_moment == pytest.approx(row.second_moment, rel=1e-4)
    # 32000 squared normals: standard error √(2/32000) = 0.8 %
    assert one.rows[-1].gradient_second_moment == pytest.approx(1.0, abs=0.04)
    kernel = model.layers[-1].get_weights()[0].astype(np.float64)
    slope = 1 - np.tanh(by_hand(model, x, 0)[0][-2]) ** 2
    expected = np.mean(np.sum(kernel**2, axis=1) * slope**2)
    # 64·5 such sums, correlated: a tenth is five standard errors
    assert one.rows[-2].gradient_second_moment == pytest.approx(expected, rel=0.15)


def test_gradients_of_a_convolutional_network_by_finite_differences():
    inputs = keras.Input((6, 6, 2))
    first = L.Conv2D(3, 3, padding="same", activation="tanh", name="first")
    second = L.Conv2D(2, 3, strides=2, activation="softsign", name="second")
    x = second(L.AveragePooling2D(2, 1)(first(inputs)))
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)))
    x, y = draw(3, 6, 6, 2), draw(3, 2, seed=1)
    report = kv.measure_signal(model, x, y, "mse")
    # A bias moves one channel at all positions: its derivative is the sum of those of the entries.
    # An equal step of one entry alone is a 'valid' network behind the cut, run on that entry.
    cut = keras.Model(inputs, first.output)
    middle = ops.convert_to_numpy(cut(x)).astype(np.float64)
    rest_inputs = keras.Input(middle.shape[1:])
    rest = keras.Model(
        rest_inputs, model.layers[-1](L.Flatten()(second(L.AveragePooling2D(2, 1)(rest_inputs))))
    )
    step, size = 1e-2, middle[0].size
    before = np.arctanh(middle)
    total = 0.0
    for example in range(len(x)):
        moved = np.repeat(before[example][None], 2 * size, axis=0).reshape(2 * size, -1)
        moved[np.arange(size), np.arange(size)] += step
        moved[size + np.arange(size), np.arange(size)] -= step
        outputs = rest(np.tanh(moved).reshape(-1, *middle.shape[1:]).astype("float32"))
        losses = np.mean((ops.convert_to_numpy(outputs) - y[example]) ** 2, axis=1)
        derivatives = (losses[:size] - losses[size:]) / (2 * step)
        total += np.sum(derivatives.astype(np.float64) ** 2)
    expected = total / (len(x) * size)
    # float32 losses of order 1 differ by 1e-7/2e-2 around the derivative, which is about 0.05
    assert report["first"].gradient_second_moment == pytest.approx(expected, rel=5e-3)


def test_pooling_merges_and_raw_operations_have_rows():
    inputs = keras.Input((8,))
    x = L.Dense(8, name="dense")(inputs)
    x = ops.relu(x * 2.0 + inputs)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Concatenate(name="both")([x, inputs])))
    x = draw(32, 8)
    report = kv.measure_signal(model, x)
    operations = [row.operation for row in report]
    assert operations == ["Dense", "Multiply", "Add", "Relu", "Concatenate", "Dense"]
    kernel, bias = model.layers[1].get_weights()
    doubled = 2 * (x @ kernel + bias)
    relu = np.maximum(doubled + x, 0)
    assert report.rows[1].second_moment == pytest.approx(np.mean(doubled**2), rel=1e-4)
    assert report.rows[3].second_moment == pytest.approx(np.mean(relu**2), rel=1e-4)
    assert report.rows[3].dead_fraction == np.mean(np.all(relu == 0, axis=0))
    assert report["both"].mean == pytest.approx(np.concatenate([relu, x], 1).mean(), rel=1e-4)
    # A factor of two between them, forward and back.
    ratio = report["dense"].gradient_second_moment / report.rows[1].gradient_second_moment
    assert ratio == pytest.approx(4.0, rel=1e-4)


def test_planted_dead_units_saturation_and_infinities():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(8, activation="relu", name="dying"),
            L.Dense(10, activation="sigmoid", name="full"),
            L.Dense(5, activation="softsign", name="soft"),
            L.Dense(4, name="last"),
        ]
    )
    kernel = np.abs(draw(4, 8)) * 0.1
    model.get_layer("dying").set_weights([kernel, np.array([-100.0] * 2 + [1.0] * 6)])
    bias = np.array([50.0] * 3 + [-50.0] * 4 + [0.0] * 3)
    model.get_layer("full").set_weights([draw(8, 10) * 1e-3, bias])
    report = kv.measure_signal(model, draw(64, 4))
    assert report["dying"].dead_fraction == 0.25
    assert report["dying"].saturated_fraction is None
    assert report["full"].saturated_fraction == pytest.approx(0.7)
    assert report["full"].dead_fraction == pytest.approx(0.7)  # no gradient passes at ±50
    assert report["soft"].saturated_fraction == report["soft"].dead_fraction == 0.0
    assert report["last"].saturated_fraction is report["last"].dead_fraction is None
    assert "full is the first layer where entries are saturated: 70%." in str(report)
    assert "full is the first layer where units are dead: 70%." in str(report)

    values = model.get_layer("soft").get_weights()
    values[0][0, 0] = np.inf
    model.get_layer("soft").set_weights(values)
    report = kv.measure_signal(model, draw(64, 4))
    assert report["soft"].nonfinite_count == 64
    assert math.isfinite(report["soft"].second_moment)
    assert report.worst()[0].name == "soft"
    assert "soft is the first layer with non-finite entries: 64." in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_saturation_is_counted_where_glorot_and_bengio_see_it():
    grid = np.linspace(-20, 20, 4001).astype("float32")[:, None]
    for name, limit in (("tanh", 0.995), ("softsign", 0.9), ("sigmoid", 0.9975)):
        layer = L.Activation(name, name=name)
        report = kv.measure_signal(
            keras.Sequential([keras.Input((1,)), layer]), grid, batch_size=len(grid)
        )
        values = ops.convert_to_numpy(getattr(keras.activations, name)(grid))
        values = 1 - values if name == "sigmoid" else values
        low = 1 - limit if name == "sigmoid" else -limit
        expected = np.mean((values > limit) | (values < low))
        # Slopes are read off a grid of 0.01.
        assert report[name].saturated_fraction == pytest.approx(expected, abs=2e-3)
    for name in ("relu", "elu", "gelu", "linear"):
        layer = L.Activation(name, name=name)
        report = kv.measure_signal(
            keras.Sequential([keras.Input((1,)), layer]), grid, batch_size=len(grid)
        )
        assert report[name].saturated_fraction is None


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_moments_of_any_size(scale):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, use_bias=False, name="dense")])
    model.set_weights([draw(4, 3) * np.float32(scale)])
    x = draw(32, 4)
    report = kv.measure_signal(model, x)
    signal = x.astype(np.float64) @ draw(4, 3).astype(np.float64) * scale
    assert report["dense"].second_moment == pytest.approx(np.mean(signal**2), rel=1e-4)
    word = "vanishes" if scale < 1 else "explodes"
    assert f"dense is the first layer, and its signal {word}: second moment" in str(report)


def test_the_first_layer_that_vanishes_is_named_with_numbers():
    layers = [L.Dense(32, name=f"layer_{n}", use_bias=False) for n in range(1, 5)]
    model = keras.Sequential([keras.Input((32,)), *layers])
    eye = np.eye(32, dtype="float32")
    for layer, factor in zip(layers, (1.0, 0.5, 0.05, 1.0), strict=True):
        layer.set_weights([factor * eye])
    report = kv.measure_signal(model, draw(64, 32))
    moment = report["layer_3"].second_moment
    sentence = f"layer_3 is the first layer whose signal vanishes: second moment {moment:.2g} "
    assert sentence + "(1/1600 of layer_1's)." in str(report)
    assert (
        "layer_2 is the first layer, from the output, whose gradient vanishes: squared norm "
        in str(report)
    )
    distances = [
        max(abs(np.log(row.second_moment)), abs(np.log(row.gradient_second_moment)))
        for row in report.worst(4)
    ]
    assert distances == sorted(distances, reverse=True)
    assert report.worst(3) == report.worst(4)[:3]


def test_training_and_inference_differ_as_they_do_in_keras():
    model = keras.Sequential(
        [keras.Input((4,)), L.BatchNormalization(name="norm"), L.Dropout(0.5, name="drop")]
    )
    x = 3.0 + 2.0 * draw(64, 4)
    training, inference = (kv.measure_signal(model, x, training=t) for t in (True, False))
    assert training["norm"].mean == pytest.approx(0.0, abs=1e-3)
    assert inference["norm"].mean == pytest.approx(x.mean(), rel=1e-2)
    assert inference["drop"].second_moment == pytest.approx(inference["norm"].second_moment)
    # half of 256 entries, doubled: standard error of the ratio about 2·√(3/4/256)
    ratio = training["drop"].second_moment / training["norm"].second_moment
    assert ratio == pytest.approx(2.0, abs=0.6)
    unseeded = keras.Sequential([keras.Input((4,)), L.Dropout(0.5), L.Dense(2)])
    assert kv.measure_signal(unseeded, x).notes == ()


def test_final_softmax_and_sigmoid_belong_to_the_loss():
    for last in ("softmax", "sigmoid"):
        model = keras.Sequential([keras.Input((4,)), L.Dense(400, last, name="last")])
        row = kv.measure_signal(model, draw(32, 4))["last"]
        assert row.gradient_second_moment == pytest.approx(1.0, abs=0.1)
        inputs = keras.Input((4,))
        raw = keras.Model(inputs, getattr(ops, last)(L.Dense(400, name="last")(inputs)))
        row = kv.measure_signal(raw, draw(32, 4))["last"]
        assert row.gradient_second_moment == pytest.approx(1.0, abs=0.1)


def test_losses_of_every_form_give_the_gradient_of_one_example():
    model, x, y = mlp(), draw(24, 4), draw(24, 3, seed=1)

    def own(targets, outputs):
        return ops.mean(ops.square(targets - outputs), axis=-1)

    def of(loss=None):
        rows = kv.measure_signal(model, x, y, loss, batch_size=7)
        return [row.gradient_second_moment for row in rows]

    expected = of("mse")
    for loss in (
        keras.losses.MeanSquaredError(),
        keras.losses.MeanSquaredError(reduction="sum"),
        own,
    ):
        assert of(loss) == pytest.approx(expected, rel=1e-4)
    model.compile("sgd", "mse", loss_weights=2.0)
    assert of() == pytest.approx([4 * v for v in expected], rel=1e-4)
    model.compile("sgd", keras.losses.MeanSquaredError())
    assert of() == pytest.approx(expected, rel=1e-4)


def test_predictions_stand_beside_what_is_measured():
    model = keras.Sequential([keras.Input((300,))])
    for _ in range(3):
        model.add(L.Dense(300, activation="relu", kernel_initializer="he_normal"))
        model.add(L.Dropout(0.2))
    model.add(L.Dense(100, activation="softmax", name="head"))
    x = 0.5 + 2.0 * draw(100, 300)
    noise = kv.measure_signal(model, x)
    labels = np.zeros(100, "int32")
    loss = kv.measure_signal(model, x, labels, "sparse_categorical_crossentropy")
    for report in (noise, loss):
        kernels = [row for row in report if row.kind == "weights"]
        assert len(kernels) == 4
        for row in kernels:
            # Of one draw of weights; widths of 300 leave some per cent for each layer.
            assert row.predicted_second_moment == pytest.approx(row.second_moment, rel=0.25)
            gradient = row.gradient_second_moment
            assert row.predicted_gradient_second_moment == pytest.approx(gradient, rel=0.35)
        assert all(r.predicted_second_moment is None for r in report if r.kind != "weights")
    head = loss["head"]
    assert head.predicted_gradient_second_moment == pytest.approx(head.gradient_second_moment)
    assert str(noise).splitlines()[0].split().count("(predicted)") == 2


def test_histograms_count_every_sampled_entry():
    row = kv.measure_signal(mlp(), draw(40, 4), batch_size=40).rows[0]
    for histogram, count in ((row.histogram, 240), (row.gradient_histogram, 240)):
        assert histogram.counts.sum() + histogram.below + histogram.above == count
        area = np.sum(histogram.density * np.diff(histogram.edges))
        assert area == pytest.approx(1 - (histogram.below + histogram.above) / count)
    spread = math.sqrt(row.output_variance + row.output_mean**2)
    assert row.histogram.edges[-1] == pytest.approx(4 * spread, rel=1e-4)


def test_summaries_on_the_host_and_on_a_device_are_the_same():
    values = draw(3, 41, 7) * 1e-3 + 2e-3
    values[0, 0, :3] = np.inf, -np.inf, np.nan
    cases = [values, np.zeros((4, 5), "float32"), draw(50_000), np.full((3,), np.nan, "float32")]
    for array in cases:
        for scale in (0.0, 0.5):
            stride = statistics.stride_for(array.shape)
            tensor = ops.convert_to_tensor(array)
            device = ops.convert_to_numpy(
                gradients._summarizer()(tensor, np.float32(scale), stride)
            )
            host = statistics.summarize_on_host(array, scale, stride)
            np.testing.assert_allclose(device[:5], host[:5], rtol=1e-4, atol=1e-6)
            # An entry at the edge of two bins may fall into either.
            assert np.abs(device[5:] - host[5:]).sum() <= 4


def test_report_reads_as_one_aligned_table():
    report = kv.measure_signal(mlp("relu"), draw(8, 4))
    lines = str(report).splitlines()
    assert lines[0].split()[:4] == ["layer", "operation", "mean", "second"]
    table = lines[: len(report) + 1]
    ends = {len(line) for line in table[1:] if line.endswith("%")}
    assert len(ends) == 1
    assert "Dense+relu" in table[1]
    last = lines.index("8 examples; gradients relative to unit white noise at the outputs.")
    assert lines[last - 1] == ""
    assert lines[last + 1] == "No layer's signal vanishes, explodes or saturates."
    with pytest.raises(KeyError, match="no row for 'nothing'"):
        report["nothing"]
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match=r"`n` must be a positive integer"):
            report.worst(wrong)
