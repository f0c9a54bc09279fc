"""Contexts whose roles are set by hand, whatever the analysis says of them."""

import dataclasses
import sys

from keras_varinit.analysis.contexts import read

READERS = ("analysis.analyze", "apply.initialize", "apply.inject", "apply.lint")


def set_roles(monkeypatch, fields):
    """Lets every function that reads a model see these fields, by the name of the layer."""

    def placed(model):
        reading = read(model)
        by_variable = {
            key: dataclasses.replace(context, **fields(context))
            for key, context in reading.by_variable.items()
        }
        return dataclasses.replace(reading, by_variable=by_variable)

    for name in READERS:
        monkeypatch.setattr(sys.modules[f"keras_varinit.{name}"], "read", placed)
