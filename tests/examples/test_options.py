"""What the command lines of the examples share: data, presets, and how an app ends."""

import os
import signal
import sys
import time

import keras
import numpy as np
import pytest
from matplotlib import image

from tests.example_files import assert_picture

# isort: split
import cifar_resnets
import deep_dense
import which_layer
from common import app, data, options, presets, study, study_options
from common.errors import UserError

pytestmark = pytest.mark.once


def study_data(*arguments):
    parsed = study_options.parse(
        deep_dense._parser(), deep_dense.PRESETS, ["--out", "unused", *arguments]
    )
    return parsed.data


def resnet_data(*arguments):
    return options.parse(arguments).data


both = pytest.mark.parametrize("data_of", [study_data, resnet_data])


@pytest.fixture
def folder(tmp_path):
    """Six images of two classes, all to train on."""
    for label in ("cat", "dog"):
        path = tmp_path / "images" / "train" / label
        path.mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).random((8, 8, 3))
            image.imsave(path / f"{number}.png", pixels)
    return tmp_path / "images"


@both
def test_a_folder_means_its_images_with_and_without_data_folder(data_of, folder):
    assert data_of("--data-dir", str(folder)) == "folder"
    assert data_of("--data", "folder", "--data-dir", str(folder)) == "folder"
    assert data_of() == "digits"
    assert data_of("--data", "cifar10", "--data-dir", str(folder)) == "cifar10"
    with pytest.raises(UserError, match="--data digits comes with scikit-learn and takes no"):
        data_of("--data", "digits", "--data-dir", str(folder))


def test_a_folder_wins_over_the_data_of_a_preset(folder):
    for preset in study_options.PRESETS:
        assert study_data("--preset", preset, "--data-dir", str(folder)) == "folder"
    assert study_data("--preset", "paper") == "cifar10"


@both
def test_folders_that_are_not_laid_out_are_refused_with_the_layout(data_of, folder):
    layout = r"Lay it out as train/<class>/\*\.png"
    with pytest.raises(UserError, match=f"there is no such folder. {layout}"):
        data_of("--data-dir", str(folder / "nothing"))
    with pytest.raises(UserError, match=f"no folder train in it. {layout}.*with --data"):
        data_of("--data-dir", str(folder / "train"))
    with pytest.raises(UserError, match=r"--data folder needs --data-dir FOLDER, laid out as"):
        data_of("--data", "folder")
    (folder / "val").mkdir()
    with pytest.raises(UserError, match=rf"no images in val/<class>/\. {layout}"):
        data_of("--data-dir", str(folder))
    (folder / "val").rmdir()
    for path in folder.glob("train/*/*"):
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(UserError, match=rf"no images in train/<class>/\. {layout}"):
        data_of("--data-dir", str(folder))


def test_a_folder_without_validation_images_says_what_was_done(folder):
    pytest.importorskip("tensorflow_datasets")
    images = data.load("folder", str(folder), 8)
    assert len(images.x_val) == 2
    assert len(images.x_train) == 10
    text = str(images).splitlines()[1]
    assert text.startswith(f"--data-dir {folder} has none of validation/, val/, test/: 20% of")


def test_help_lists_what_each_preset_sets(capsys):
    for main in (lambda a: options.parse(a), cifar_resnets.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        text = capsys.readouterr().out
        assert "presets:\n  smoke  --" in text
        assert "\n  cpu    --" in text
    assert presets.listed({"cpu": {"batch_size": 3, "pair": ("a", "b")}}) == (
        "presets:\n  cpu    --batch-size 3 --pair a b\n"
    )


def test_smoke_is_a_preset_everywhere():
    smoke = options.parse(["--preset", "smoke"])
    assert (smoke.epochs, smoke.width, smoke.limit) == (2, 4, 320)
    assert options.parse(["--preset", "smoke", "--epochs", "7"]).epochs == 7
    assert vars(options.parse(["--smoke"])) == vars(smoke)
    default = options.parse([])
    assert (default.epochs, default.seeds, default.batch_size, default.width) == (20, 3, 128, 16)


def test_a_folder_of_other_results_says_only_what_differs(tmp_path):
    settings = {"epochs": 12, "data": "digits", "initializers": ["he_normal"] * 30}
    study.Study("tiny", tmp_path, settings)
    with pytest.raises(UserError, match="other settings") as caught:
        study.Study("tiny", tmp_path, {**settings, "epochs": 20, "limit": 5})
    text = str(caught.value)
    assert "(epochs: 12 and not 20; limit: None and not 5)" in text
    assert "he_normal" not in text


def ends(action, capsys):
    return app.run("app.py", action), *capsys.readouterr()


def test_how_an_app_ends(capsys):
    def mistaken():
        raise UserError("--depth 0: too small")

    def stopped():
        raise KeyboardInterrupt

    def broken():
        raise RuntimeError("a mistake of ours")

    assert ends(lambda: None, capsys) == (0, "", "")
    assert ends(lambda: 130, capsys) == (130, "", "")
    assert ends(mistaken, capsys) == (2, "", "app.py: error: --depth 0: too small\n")
    assert ends(stopped, capsys) == (130, "\nStopped.\n", "")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        app.run("app.py", broken)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def test_an_interruption_that_became_another_error_is_one_line(capsys):
    """As in the middle of an import, which then lacks a name, or of a traced function."""

    def import_half():
        try:
            interrupt()
        except KeyboardInterrupt:
            raise AttributeError("partially initialized module") from None

    before = signal.getsignal(signal.SIGINT)
    assert ends(import_half, capsys) == (130, "\nStopped.\n", "")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_in_a_destructor_is_not_reported(capsys):
    class Slow:
        def __del__(self):
            interrupt()

    hook = sys.unraisablehook
    assert ends(lambda: Slow() and None, capsys)[2] == ""
    assert sys.unraisablehook is hook


def test_which_layer_ends_as_the_other_apps_do(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert which_layer.main(["--initializer", "asv_forwar", "--out", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("which_layer.py: error: --initializer asv_forwar: no such initializer.")
    assert "Did you mean asv_forward" in error
    assert error.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert which_layer.main(["--examples", "1", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        which_layer.main(["--examples", "0"])


def test_which_layer_prints_the_report_and_writes_the_plot(tmp_path, capsys, monkeypatch):
    def two_layers(pool):
        convolution = keras.layers.Conv2D(4, 3, 4, activation="relu", name="conv")
        head = [keras.layers.Flatten(), keras.layers.Dense(2, name="logits")]
        return keras.Sequential([keras.Input((32, 32, 3)), convolution, *head])

    monkeypatch.setattr(which_layer, "plain_network", two_layers)
    assert which_layer.main(["--examples", "2", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "2 examples; gradients relative to" in output
    assert output.splitlines()[-1] == f"wrote {tmp_path / 'which_layer.png'}"
    assert_picture(tmp_path / "which_layer.png")
