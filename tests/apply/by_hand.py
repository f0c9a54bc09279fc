"""Contexts of biases, scales and attention kernels made by hand."""

import dataclasses

import keras

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.tracing.names import variable_names

L = keras.layers

GATES = {L.LSTMCell: 4, L.GRUCell: 3}


def reading(model):
    """A reading with the contexts of vectors, and with the groups of attentions."""
    found = read(model)
    if found.vectors:
        return found
    names, by_variable, vectors = variable_names(model), dict(found.by_variable), {}
    layers = [model, *keras_private.layers_of(model)]
    for layer in layers:
        if isinstance(layer, L.MultiHeadAttention):
            for role in ("query", "key", "value", "output"):
                key = id(getattr(layer, f"{role}_dense").kernel)
                by_variable[key] = dataclasses.replace(
                    by_variable[key],
                    role="attention_output" if role == "output" else role,
                    heads=layer.num_heads,
                    kv_heads=layer.num_heads,
                    head_size=layer.key_dim if role in ("query", "key") else layer.value_dim,
                    causal=False,
                    self_attention=True,
                    group=names[id(layer.query_dense.kernel)][2].removesuffix("/query/kernel"),
                )
        if layer.name == "last":
            key = id(layer.kernel)
            by_variable[key] = dataclasses.replace(by_variable[key], branch_end=True)
    kernel = None
    for layer in layers:
        own = keras_private.own_variables(layer)
        kernel = next((by_variable[id(v)] for v in own if id(v) in by_variable), kernel)
        for variable in own:
            if variable.name in ("bias", "gamma") and kernel is not None:
                path, name, stream = names[id(variable)]
                gates = GATES.get(type(layer))
                vectors[id(variable)] = dataclasses.replace(
                    kernel,
                    path=path,
                    layer=name,
                    stream=stream,
                    role="bias" if variable.name == "bias" else "scale",
                    gates=gates,
                    steps=30 if gates else None,
                )
    return dataclasses.replace(found, by_variable=by_variable, vectors=vectors)
