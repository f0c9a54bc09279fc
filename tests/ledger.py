"""Which weights may change: kept by watching a model, blind to how the library decides."""

import keras

from keras_varinit.initializers.base import ContextualInitializer

# The variables that Keras's layers draw with an initializer of that attribute.
_KERNELS = {
    "kernel_initializer": ("kernel",),
    "depthwise_initializer": ("depthwise_kernel", "kernel"),
    "pointwise_initializer": ("pointwise_kernel",),
    "recurrent_initializer": ("recurrent_kernel",),
    "embeddings_initializer": ("embeddings",),
}


def bits(variable):
    """A variable's value, bit for bit."""
    return keras.ops.convert_to_numpy(variable).tobytes()


def values(model):
    """The bits of every weight by `id`."""
    return {id(variable): bits(variable) for variable in model.weights}


def momenta(model):
    """The bits of the optimizer's variables, averages of weights left out."""
    optimizer = getattr(model, "optimizer", None)
    variables = [] if optimizer is None else optimizer.variables
    return [bits(variable) for variable in variables if "average" not in variable.path]


def layers(model):
    """The model and all layers inside it, each once."""
    return list({id(layer): layer for layer in model._flatten_layers()}.values())


def own_variables(layer):
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def whole(model):
    """Everything that a failure must leave as it was."""
    held = [
        (id(layer), name, id(value), repr(value.get_config()))
        for layer in layers(model)
        for name, value in vars(layer).items()
        if isinstance(value, keras.initializers.Initializer)
    ]
    records = [
        (len(layer._inbound_nodes), len(layer._outbound_nodes), len(layer._losses))
        for layer in layers(model)
    ]
    flags = [layer.trainable for layer in layers(model)]
    optimizer = getattr(model, "optimizer", None)
    state = [] if optimizer is None else [bits(variable) for variable in optimizer.variables]
    return {"weights": values(model), "held": held, "nodes": records, "flags": flags, "opt": state}


def assert_same(after, before):
    for part, value in before.items():
        assert after[part] == value, part


class Ledger:
    """What each weight of a model holds: a draw of its initializer, or something that came since.

    `drawn` has the bits of each weight when it was last drawn, `injected` the kernels that were
    drawn for a context.
    """

    def __init__(self, model):
        self.model = model
        self.drawn = values(model)
        self.injected = set()
        # Within a larger model a kernel may have another context, so a new draw is right.
        self.moved = False
        self.settled = False

    def continued(self, model, *, moved):
        """The ledger of a copy of the model that has the same weights in the same order."""
        ledger = Ledger(model)
        numbers = dict(zip(map(id, self.model.weights), map(id, model.weights), strict=True))
        ledger.injected = {numbers[key] for key in self.injected}
        ledger.moved = self.moved or moved
        return ledger, numbers

    def kernels_of_ours(self):
        """Each kernel of which an initializer of this library has charge, with that initializer."""
        found = {}
        for layer in layers(self.model):
            for attribute, names in _KERNELS.items():
                initializer = vars(layer).get(attribute)
                variables = [getattr(layer, name, None) for name in names]
                variable = next((v for v in variables if isinstance(v, keras.Variable)), None)
                if isinstance(initializer, ContextualInitializer) and variable is not None:
                    found[id(variable)] = variable, initializer
        return found

    def trained_by_keras(self):
        """The weights that a training step of this model may change."""
        statistics = {
            id(variable)
            for layer in layers(self.model)
            if layer.trainable and isinstance(layer, keras.layers.BatchNormalization)
            for variable in own_variables(layer)
        }
        return {id(v) for v in self.model.trainable_variables} | statistics

    def may_be_initialized(self, chosen, include_frozen):
        """The weights that `initialize` may change in the layers of these ids, or in all."""
        free = self.trained_by_keras()
        return {
            id(variable)
            for layer in layers(self.model)
            if chosen is None or id(layer) in chosen
            for variable in own_variables(layer)
            if include_frozen or id(variable) in free
        }

    def injections(self, analysis, force):
        """The kernels that `inject` must draw, and those that it must or may."""
        now = values(self.model)
        free = {id(variable) for variable in self.model.trainable_variables}
        must, may = set(), set()
        for key, (variable, _) in self.kernels_of_ours().items():
            if analysis.context_of(variable) is None:
                continue
            if force:
                must.add(key)
            elif key in free and now[key] == self.drawn.get(key):
                if key not in self.injected:
                    must.add(key)
                elif self.moved and not self.settled:
                    may.add(key)
        return must, must | may

    def record(self, keys):
        """Notes that kernels were drawn for their contexts just now."""
        now = values(self.model)
        self.drawn.update({key: now[key] for key in keys})
        self.injected |= keys
