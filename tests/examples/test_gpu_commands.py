"""The commands that RESULTS.md has for a GPU, as they stand there but for their sizes."""

import json
import re
import shlex

import keras
import numpy as np
import pytest
from matplotlib import image

from tests.example_files import EXAMPLES, assert_picture, rows

# isort: split
import cifar_resnets
import panel
from common import resnet


def commands():
    text = (EXAMPLES / "RESULTS.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"For a GPU, .*?```sh\n(.*?)```", text, re.DOTALL)
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert all(line[0] == "python" for line in lines)
    return [(line[1].removeprefix("examples/"), line[2:]) for line in lines]


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, 32×32."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 12)):
        for label in ("cat", "dog"):
            path = tmp_path / "images" / part / label
            path.mkdir(parents=True)
            for number in range(count):
                image.imsave(path / f"{number}.png", rng.random((32, 32, 3)))
    return tmp_path / "images"


def run(app, arguments, folder, out):
    places = {"DATA": str(folder)}
    replaced = [places.get(part, re.sub("^OUT", str(out), part)) for part in arguments]
    return app.main(replaced)


def test_they_are_all_there():
    assert [app for app, _ in commands()] == ["cifar_resnets.py"] * 3 + ["panel.py"]
    without = ("--no-batch-norm", "--learning-rate", "0.01")
    alike = [
        [part for part in arguments[:-2] if part not in ("20", "56", "110", *without)]
        for _, arguments in commands()[:3]
    ]
    assert alike[0] == alike[1] == alike[2]
    depths = [arguments[arguments.index("--depth") + 1] for _, arguments in commands()[:3]]
    assert depths == ["20", "56", "110"]


@pytest.mark.slow
@pytest.mark.once
def test_residual_networks(folder, tmp_path, monkeypatch):
    """The last one, which differs from the others in its depth and normalization."""
    _, arguments = commands()[2]
    seen = []
    build = resnet.build_resnet

    def shallow(*arguments, depth, **more):
        seen.append((depth, more["batch_norm"]))
        return build(*arguments, depth=8, **more)

    monkeypatch.setattr(resnet, "build_resnet", shallow)
    small = ["--epochs", "1", "--seeds", "1", "--width", "4", "--batch-size", "8"]
    assert run(cifar_resnets, [*arguments, *small], folder, tmp_path) == 0
    out = tmp_path / arguments[arguments.index("--depth") + 1]
    names = arguments[arguments.index("--initializers") + 1 : -2]
    assert names[-1] == "recommended"
    assert set(seen) == {(110, False)}
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [t["settings"]["initializer"] for t in results["trainings"]] == names
    assert len(rows(out)) == len(names)
    assert_picture(out / "curves.png")


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX compiles the step")
def test_panel(folder, tmp_path, capsys):
    _, arguments = commands()[-1]
    small = ["--preset", "smoke", "--families", "deep-mlp-relu", "--workers", "1"]
    assert run(panel, [*arguments, *small], folder, tmp_path) == 0
    assert "| images | accuracy" in capsys.readouterr().out
    assert_picture(tmp_path / "panel" / "curves.png")
