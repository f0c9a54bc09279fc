"""What can happen to a model; after each event the weights are held against the ledger."""

import contextlib
from unittest import mock

import keras
import numpy as np

import keras_varinit as kv
from keras_varinit import keras_private
from keras_varinit.analysis import contexts
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.tensors import training_steps
from tests.ledger import Ledger, assert_same, bits, layers, momenta, own_variables, values, whole
from tests.models import FAMILIES, L
from tests.random_models import Chain, build, data


class Broken(Exception):  # noqa: N818 - it stands for any failure
    pass


ERRORS = {"broken": Broken, "memory": MemoryError, "interrupt": KeyboardInterrupt}
# Where a failure may strike: in a draw, in a change, in the analysis, in a model's own `call`.
PLACES = {
    "draw": (ContextualInitializer, "__call__"),
    "assign": (keras.Variable, "assign"),
    "replace": (keras_private, "replace_attribute"),
    "rule": (contexts, "role_of"),
    "call": (keras.Layer, "__call__"),
}
SCHEMES = {
    "asv_backward": lambda seed: "asv_backward",
    "asv_forward": lambda seed: kv.ASVForward(seed=seed),
    "enhanced": lambda seed: kv.EnhancedHeNormal(seed=seed),
    "depth_scaled": lambda seed: "depth_scaled",
    "he_normal": lambda seed: "he_normal",
    "function": lambda seed: lambda context: "asv_forward" if context.depth > 1 else "he_uniform",
}


@contextlib.contextmanager
def struck(fault):
    """Raises at one call of one place, in front of its work or behind it."""
    owner, name = PLACES[fault["place"]]
    original, calls = getattr(owner, name), 0

    def fail(*arguments, **options):
        nonlocal calls
        calls += 1
        strikes = calls == fault["turn"]
        result = None if strikes and not fault["late"] else original(*arguments, **options)
        if strikes:
            raise ERRORS[fault["error"]]("planned")
        return result

    with mock.patch.object(owner, name, fail):
        yield


class History:
    """A model to which things happen; each checks what changed against the ledger."""

    def __init__(self, description, folder):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        self.description = description
        self.folder = folder
        self.x = data(description)
        self._adopt(build(description))
        self.ledger = Ledger(self.model)

    def _adopt(self, model):
        self.model = model
        self.compiled = False

    def inject(self, force, fault):
        before, expected = values(self.model), self._expected(force)
        state = momenta(self.model)
        report = self._call(lambda: kv.inject(self.model, force=force), fault, expected)
        if report is not None:
            self._check_injection(report, before, expected, live=fault is None)
            assert momenta(self.model) == state

    def initialize(self, scheme, seed, part, include_frozen, reset_optimizer, fault):
        before, state = values(self.model), momenta(self.model)
        named, chosen = None, None
        if part is not None:  # a name stands for its layer and those inside
            named = {layer.name for layer in layers(self.model)[part::2]}
            units = [layer for layer in layers(self.model) if layer.name in named]
            chosen = {id(each) for unit in units for each in (unit, *keras_private.layers_of(unit))}
        free = self.ledger.may_be_initialized(chosen, include_frozen)
        analysis = kv.analyze(self.model)
        known = {
            id(v)
            for layer in layers(self.model)
            for v in own_variables(layer)
            if analysis.context_of(v) is not None
            and (v.name != "embeddings" or (named and layer.name in named))
        }
        expected = {
            id(variable)
            for layer in layers(self.model)
            if chosen is None or id(layer) in chosen
            for variable in own_variables(layer)
        } & known
        report = self._call(
            lambda: kv.initialize(
                self.model,
                SCHEMES[scheme](seed),
                seed=seed,
                layers=None if named is None else sorted(named),
                include_frozen=include_frozen,
                reset_optimizer=reset_optimizer,
            ),
            fault,
            expected,
        )
        if report is None:
            return
        self._assert_kept(before, free)
        assert reset_optimizer or momenta(self.model) == state
        drawn = self._drawn(report) & known
        if fault is None:
            assert drawn == expected & free
        self._assert_differ(drawn)
        # The rest holds no draw of the initializer that its layer keeps.
        self.ledger.record(drawn)

    def train(self, how, injector):
        if not self.model.trainable_variables:
            return
        if not self.compiled:
            self.compile(self.model)
        self.model.run_eagerly = how != "graph"
        target = np.zeros(self.model(self.x).shape, "float32")
        before, free = values(self.model), self.ledger.trained_by_keras()
        if how == "step":
            self.model.train_on_batch(self.x, target)
        else:
            callbacks = self._callbacks(before) if injector else []
            self.model.fit(self.x, target, callbacks=callbacks, verbose=0)
            free = free | self.ledger.injected
        self._assert_kept(before, free)

    def compile(self, model):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True), "mse")
        self.compiled = True

    def _callbacks(self, before):
        """The injector, and a check right behind it."""
        expected = self._expected(force=False)
        if not expected[2]:
            return []
        injector, trained = kv.ContextInjector(), training_steps(self.model) > 0

        def check(logs=None):
            if trained:
                assert injector.report is None
                assert values(self.model) == before
            else:
                self._check_injection(injector.report, before, expected)

        return [injector, keras.callbacks.LambdaCallback(on_train_begin=check)]

    def set_by_hand(self, index):
        variable = self.model.weights[index % len(self.model.weights)]
        variable.assign(keras.random.normal(variable.shape, dtype=variable.dtype))

    def load_weights(self, changed):
        """From a file of this very model: Keras refuses one with other optimizers' states.

        Models inside it may have been trained before they became a part, and keep an optimizer.
        """
        path, now = self.folder / "model.weights.h5", self.model.get_weights()
        if changed:
            self.model.set_weights([value + 1 for value in now])
        self.model.save_weights(path)
        saved = [*values(self.model).values()]
        self.model.set_weights(now)
        self.model.load_weights(path)
        assert [*values(self.model).values()] == saved

    def reload(self):
        path = self.folder / "model.keras"
        if self.compiled and not self.model.optimizer.built:
            # Keras builds that of the loaded model, and then refuses a file without its state.
            self.model.optimizer.build(self.model.trainable_variables)
        self.model.save(path)
        loaded, before = keras.saving.load_model(path), self.ledger
        assert [*values(loaded).values()] == [*values(self.model).values()]
        self.ledger, numbers = before.continued(loaded, moved=False)
        self.ledger.drawn = {numbers[key]: value for key, value in before.drawn.items()}
        for key, (_, initializer) in self.ledger.kernels_of_ours().items():
            if initializer.get_config()["seed"] is None:
                # Nothing but the draw itself told how it was drawn.
                self.ledger.drawn.pop(key, None)
        self.model = loaded

    def clone(self):
        before = whole(self.model)
        copy = self._copy()
        assert_same(whole(self.model), before)
        self.ledger, _ = self.ledger.continued(copy, moved=True)
        self._adopt(copy)

    def freeze(self, index, trainable):
        found = layers(self.model)
        found[index % len(found)].trainable = trainable
        if self.compiled:
            self.compile(self.model)  # an optimizer keeps the weights that it was built for

    def look(self):
        before = whole(self.model)
        kv.analyze(self.model)
        kv.lint(self.model)
        copy = kv.to_builtin(self.model)
        assert_same(whole(self.model), before)
        assert [*values(copy).values()] == [*before["weights"].values()]

    def extend(self, in_front, restart):
        """The model becomes a part of a larger one, also as if loaded in a new process."""
        if restart:
            keras.utils.clear_session(free_memory=False)
        first = self.description["initializers"][0]
        make = lambda width: L.Dense(  # noqa: E731
            width, kernel_initializer=FAMILIES[first["name"]](first["seed"])
        )
        inputs = keras.Input(self.x.shape[1:], dtype=self.x.dtype.name)
        integers = self.x.dtype.name == "int32"
        x = make(self.x.shape[-1])(inputs) if in_front and not integers else inputs
        x = self.model(x)
        larger = keras.Model(inputs, x if in_front and not integers else make(2)(x))
        known, before = values(self.model), self.ledger
        self.ledger = Ledger(larger)
        fresh = {key: value for key, value in self.ledger.drawn.items() if key not in known}
        self.ledger.drawn = {**before.drawn, **fresh}
        self.ledger.injected, self.ledger.moved = before.injected, True
        self._adopt(larger)

    def _copy(self):
        """Another model of the same configuration, with weights of its own."""
        if not isinstance(self.model, Chain):
            return keras.models.clone_model(self.model)
        copy = Chain.from_config(self.model.get_config())
        copy(self.x)
        return copy

    def _call(self, function, fault, expected):
        """What a function returns; None where it failed and left everything as it was."""
        before = whole(self.model)
        try:
            with contextlib.nullcontext() if fault is None else struck(fault):
                return function()
        except (Exception, KeyboardInterrupt) as error:
            nothing = not (expected[2] if isinstance(expected, tuple) else expected)
            if fault is None and not (isinstance(error, ValueError) and nothing):
                raise
            assert_same(whole(self.model), before)
            return None

    def _expected(self, force):
        """What `inject` must draw, what it may, and whether there is anything to inject."""
        analysis = kv.analyze(self.model)
        ours = self.ledger.kernels_of_ours().values()
        some = any(analysis.context_of(variable) is not None for variable, _ in ours)
        return *self.ledger.injections(analysis, force), some

    def _drawn(self, report):
        analysis = kv.analyze(self.model)
        paths = {row.path for row in report.drawn}
        found = {id(v): analysis.context_of(v) for v in self.model.weights}
        return {key for key, c in found.items() if (c is not None) and c.path in paths}

    def _check_injection(self, report, before, expected, live=True):
        must, may, _ = expected
        drawn = self._drawn(report)
        assert drawn <= may
        if live:
            assert must <= drawn
        self._assert_kept(before, drawn)
        self._assert_differ(drawn)
        ours = self.ledger.kernels_of_ours()
        for variable, initializer in (ours[key] for key in drawn):
            assert bits(initializer(variable.shape, variable.dtype)) == bits(variable)
        self.ledger.record(drawn)
        self.ledger.settled = True

    def _assert_kept(self, before, free):
        """No weight but the free ones differs in any bit."""
        for variable in self.model.weights:
            if id(variable) not in free:
                assert bits(variable) == before[id(variable)], variable.path

    def _assert_differ(self, drawn):
        """No kernel that was just drawn equals any other weight."""
        now = values(self.model)
        for key in drawn:
            assert list(now.values()).count(now[key]) == 1
