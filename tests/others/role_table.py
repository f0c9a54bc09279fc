"""A table of the roles read off KerasHub's backbones at toy size and off keras.applications.

    python -m tests.others.role_table [--names NAME …] [--applications]

Kernels of equal role are one line: their number, the fields, and the names of their layers without
counters. Biases and scales are left out but for scales that end a branch.
"""

import argparse
import collections
import os
import re

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from keras_varinit.analysis.contexts import read

APPLICATIONS = {
    **dict.fromkeys(("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0"), 64),
    **dict.fromkeys(("InceptionResNetV2", "InceptionV3", "Xception"), 96),
    **dict.fromkeys(("MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile"), 64),
    **dict.fromkeys(("ResNet50", "ResNet50V2", "VGG16"), 64),
}


def application(name):
    shape = (APPLICATIONS[name], APPLICATIONS[name], 3)
    return getattr(keras.applications, name)(weights=None, input_shape=shape, classes=10)


def lines(model):
    """One line for each combination of fields, in the order of the graph."""
    reading = read(model)
    names, counts = collections.defaultdict(dict), collections.Counter()
    scales = (c for c in reading.vectors.values() if c.role == "scale" and c.branch_end)
    for context in (*reading.contexts.values(), *scales):
        key = described(context)
        counts[key] += 1
        place = "/".join(context.path.split("/")[:-1][-2:])
        names[key][re.sub(r"\d+", "#", place)] = None
    for key, places in names.items():
        shown = ", ".join(list(places)[:4]) + (", …" if len(places) > 4 else "")
        yield f"{counts[key]:4d}  {key:<62s}  {shown}"


def described(c):
    heads = f"{c.heads}" if c.kv_heads == c.heads else f"{c.heads}:{c.kv_heads}"
    causal = {None: "mask unknown", False: "all", True: "causal"}[c.causal]
    kind = {None: "?", False: "cross", True: "self"}[c.self_attention]
    attention = f"{heads}×{c.head_size} {kind} {causal}" if c.heads or c.group else ""
    branch = f"L={c.branches} m={c.branch_size}" if c.branch_size else f"L={c.branches}"
    end = "END" if c.branch_end else ""
    return " ".join(f for f in (c.role, attention, branch, end, c.normalized or "") if f)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", help="part of a model's name, of either kind")
    parser.add_argument("--applications", action="store_true", help="keras.applications alone")
    arguments = parser.parse_args()
    # KerasHub is not everywhere; the rest of this module is for tests without it, too.
    from tests.others import hub_models

    builders = {name: lambda name=name: application(name) for name in APPLICATIONS}
    if not arguments.applications:
        builders = {**hub_models.TOYS, **builders}
    for name, build in builders.items():
        if arguments.names and not any(each in name for each in arguments.names):
            continue
        keras.utils.clear_session(free_memory=False)
        print(f"\n{name}")
        for line in lines(build()):
            print(line, flush=True)


if __name__ == "__main__":
    main()
