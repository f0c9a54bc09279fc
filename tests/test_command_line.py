"""The command line, in this process and, to show that there is no log, in one of its own."""

import json
import os
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit.command_line import FAILED, FINE, FOUND, STOPPED, main

pytestmark = pytest.mark.once

L = keras.layers
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a healthy model and one whose contexts were never injected."""
    monkeypatch.chdir(tmp_path)
    for name, initializer in (("good", "he_normal"), ("bad", "asv_forward")):
        hidden = L.Dense(8, "relu", kernel_initializer=initializer, name="hidden")
        model = keras.Sequential([keras.Input((8,)), hidden, L.Dense(2, name="head")])
        model.compile("adam", "mse")
        model.save(f"{name}.keras")
    return tmp_path


def run(capsys, *arguments):
    """Exit code, standard output and standard error."""
    code = main(list(map(str, arguments)))
    output = capsys.readouterr()
    return code, output.out, output.err


def loaded(name):
    return keras.saving.load_model(f"{name}.keras", compile=False)


def test_lint_has_an_exit_code_for_ci(models, capsys):
    assert run(capsys, "lint", "good.keras") == (FINE, "no findings\n", "")
    code, out, err = run(capsys, "lint", "bad.keras")
    assert (code, err) == (FOUND, "")
    assert out.splitlines()[1].split()[:2] == ["hidden/kernel", "not-injected"]
    assert out.splitlines()[-1] == "1 finding"
    assert run(capsys, "lint", "bad.keras", "--ignore", "not-injected")[0] == FINE


@pytest.mark.parametrize("command", ["analyze", "recommend", "lint"])
def test_tables_and_json_are_those_of_the_library(models, capsys, command):
    expected = getattr(kv, command)(loaded("good"))
    code, out, err = run(capsys, command, "good.keras")
    assert (code, out, err) == (FINE, f"{expected}\n", "")
    code, out, err = run(capsys, command, "good.keras", "--json")
    assert (code, json.loads(out), err) == (FINE, expected.to_dict(), "")


def test_all_shows_every_row(models, capsys):
    layers = [L.Dense(4, name=f"d{n}") for n in range(31)]
    keras.Sequential([keras.Input((4,)), *layers]).save("long.keras")
    folded, whole = (run(capsys, "recommend", "long.keras", *a)[1] for a in ((), ("--all",)))
    assert "to_text() lists all 62 rows" in folded
    assert "d0/bias" not in folded
    assert "d0/bias" in whole


def test_initialize_writes_another_file(models, capsys):
    before = (models / "bad.keras").read_bytes()
    for name in ("one", "two"):
        code, out, err = run(
            capsys, "initialize", "bad.keras", "--out", f"{name}.keras", "--seed", 3
        )
        assert (code, err) == (FINE, f"wrote {name}.keras\n")
        assert "drawn" in out
    assert (models / "bad.keras").read_bytes() == before
    old, one, two = map(loaded, ("bad", "one", "two"))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(old.layers[0].kernel != one.layers[0].kernel)
    with zipfile.ZipFile("one.keras") as archive:
        config = json.loads(archive.read("config.json"))
    assert config["compile_config"]["loss"] == "mse"
    assert sorted(path.name for path in models.iterdir()) == [
        *("bad.keras", "good.keras", "one.keras", "two.keras")
    ]


def test_initialize_takes_a_scheme_and_layers(models, capsys):
    run(
        capsys,
        "initialize",
        "good.keras",
        "--out",
        "new.keras",
        "--layers",
        "head",
        "--scheme",
        "zeros",
    )
    old, new = map(loaded, ("good", "new"))
    np.testing.assert_array_equal(new.get_layer("head").kernel, np.zeros((8, 2)))
    np.testing.assert_array_equal(new.get_layer("hidden").kernel, old.get_layer("hidden").kernel)


WRONG = {
    "no file": (("lint", "nothing.keras"), "there is no file nothing.keras"),
    "another file": (("lint", "text.py"), "text.py is not a model saved as .keras or .h5"),
    "broken": (("lint", "broken.keras"), "broken.keras cannot be loaded: "),
    "scheme": (
        ("initialize", "good.keras", "--out", "x.keras", "--scheme", "asv_backwards"),
        "Did you mean 'asv_backward'",
    ),
    "layers": (
        ("initialize", "good.keras", "--out", "x.keras", "--layers", "hiden"),
        "Did you mean 'hidden'?",
    ),
    "exists": (("initialize", "good.keras", "--out", "bad.keras"), "is not overwritten"),
    "ending": (("initialize", "good.keras", "--out", "x.txt"), "must end with .keras or .h5"),
    "folder": (("initialize", "good.keras", "--out", "no/x.keras"), "there is no folder no"),
    "module": (("lint", "good.keras", "--import", "no_such"), "--import no_such: No module"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line_and_leave_no_file(models, capsys, name):
    arguments, text = WRONG[name]
    (models / "text.py").write_text("")
    (models / "broken.keras").write_text("no archive")
    files = {path: path.read_bytes() for path in models.iterdir()}
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (FAILED, "")
    assert err.startswith(f"keras-varinit {arguments[0]}: error: ")
    assert err.count("\n") == 1
    assert text in err
    assert {path: path.read_bytes() for path in models.iterdir()} == files


def test_a_traceback_on_request(models, capsys):
    err = run(capsys, "lint", "nothing.keras", "--traceback")[2]
    assert err.startswith("Traceback")
    assert err.splitlines()[-1] == "keras-varinit lint: error: there is no file nothing.keras"


OWN_LAYER = """
import keras

@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


def test_a_layer_of_ones_own_is_imported(models, capsys, monkeypatch):
    (models / "own_layer_module.py").write_text(OWN_LAYER)
    monkeypatch.setattr(sys, "path", [str(models), *sys.path])
    import own_layer_module

    layers = [keras.Input((4,)), own_layer_module.Twice(), L.Dense(2)]
    keras.Sequential(layers).save("own.keras")
    registered = keras.saving.get_custom_objects()
    monkeypatch.delitem(registered, "mine>Twice")
    monkeypatch.delitem(sys.modules, "own_layer_module")
    code, _, err = run(capsys, "lint", "own.keras", "--import", "own_layer_module")
    assert (code, err) == (FINE, "")
    registered.pop("mine>Twice", None)
    del sys.modules["own_layer_module"]
    monkeypatch.setattr(sys, "path", sys.path[1:])
    code, _, err = run(capsys, "lint", "own.keras")
    assert code == FAILED
    assert "--import" in err


def test_lambda_layers_are_loaded_on_request(models, capsys):
    layers = [keras.Input((4,)), L.Lambda(lambda x: 2 * x, output_shape=(4,)), L.Dense(2)]
    keras.Sequential(layers).save("lambda.keras")
    code, _, err = run(capsys, "analyze", "lambda.keras")
    assert code == FAILED
    assert "--unsafe loads it anyway" in err
    assert run(capsys, "analyze", "lambda.keras", "--unsafe")[0] == FINE


def test_an_interruption_is_one_line(models, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.saving, "load_model", interrupted)
    assert run(capsys, "lint", "good.keras") == (STOPPED, "", "stopped\n")


def test_in_a_process_of_its_own_there_is_no_log(models):
    """As a module, and as the console script that pip writes, both without any setting."""
    script = models / "keras-varinit"
    script.write_text(
        textwrap.dedent("""
        import sys
        from keras_varinit.command_line import main
        if __name__ == "__main__":
            sys.exit(main())
        """)
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    environment["PYTHONPATH"] = str(Path(kv.__file__).parent.parent)
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in (
            ("-m", "keras_varinit", "lint", "bad.keras", "--json"),
            (str(script), "lint", "nothing.keras"),
        )
    ]
    (out, err), (nothing, failed) = (process.communicate(timeout=300) for process in started)
    assert [process.returncode for process in started] == [FOUND, FAILED]
    assert err == ""
    assert [row["rule"] for row in json.loads(out)["rows"]] == ["not-injected"]
    assert nothing == ""
    assert failed == "keras-varinit lint: error: there is no file nothing.keras\n"


def test_the_console_script_is_this_function():
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the tests run outside the checkout")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"keras-varinit": f"{main.__module__}:{main.__name__}"}
