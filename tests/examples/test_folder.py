"""A folder of image files is read without TensorFlow, and a file that is no image is named."""

import io

import numpy as np
import pytest
from PIL import Image

from tests import fresh_process
from tests.example_files import EXAMPLES

# isort: split
from common import data, folder
from common.errors import UserError

pytestmark = pytest.mark.once


def save(root, name, pixels, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, **options).save(path)


@pytest.fixture
def root(tmp_path):
    """Six training images of each of two classes, whose pixels all have one value."""
    for number in range(6):
        for label, first in (("cat", 0), ("dog", 100)):
            pixels = np.full((32, 32, 3), first + number, "uint8")
            save(tmp_path, f"train/{label}/{number}.png", pixels)
    save(tmp_path, "test/dog/0.png", np.full((32, 32, 3), 7, "uint8"))
    return tmp_path


def test_pixels_and_labels_belong_together(root):
    name, (x, y), (x_val, y_val), classes = folder.load(str(root), None, None)
    assert (name, classes) == (root.name, 2)
    assert x.shape == (12, 32, 32, 3)
    assert x.dtype == "float32"
    assert y.dtype == "int32"
    np.testing.assert_array_equal(y, (x[:, 0, 0, 0] >= 100).astype(int))
    assert sorted(x[:, 3, 4, 1]) == [*range(6), *range(100, 106)]
    assert (x == x[:, :1, :1, :1]).all()
    np.testing.assert_array_equal(x_val, np.full((1, 32, 32, 3), 7))
    assert y_val.tolist() == [1]


def test_order_is_mixed_and_the_same_each_time(root):
    _, (x, y), _, _ = folder.load(str(root), None, None)
    _, (x_again, _), _, _ = folder.load(str(root), None, None)
    np.testing.assert_array_equal(x, x_again)
    assert set(y[:6]) == {0, 1}
    _, (x_few, y_few), _, classes = folder.load(str(root), None, 5)
    np.testing.assert_array_equal(x_few, x[:5])
    np.testing.assert_array_equal(y_few, y[:5])
    assert classes == 2


def test_without_validation_images_a_fifth_is_kept(root):
    (root / "test/dog/0.png").unlink()
    (root / "test/dog").rmdir()
    (root / "test").rmdir()
    images = data.load("folder", str(root))
    assert "20% of the images of each class in train/ are kept" in images.note
    assert (len(images.x_train), len(images.x_val)) == (10, 2)
    assert sorted(images.y_val) == [0, 1]


def only(root, number):
    _, (x, y), _, _ = folder.load(str(root), 8, None)
    return x[y == 2][number]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        pytest.param(np.full((8, 8), 40, "uint8"), (40, 40, 40), id="grey"),
        pytest.param(np.full((8, 8), 40 * 256 + 99, "uint16"), (40, 40, 40), id="grey-16-bits"),
        pytest.param(np.full((8, 8, 4), (1, 2, 3, 9), "uint8"), (1, 2, 3), id="transparent"),
        pytest.param(np.full((24, 16, 3), (1, 2, 3), "uint8"), (1, 2, 3), id="larger"),
        pytest.param(np.full((3, 5, 3), (1, 2, 3), "uint8"), (1, 2, 3), id="smaller"),
    ],
)
def test_files_of_all_kinds_become_three_channels(root, pixels, expected):
    save(root, "train/new/0.png", pixels)
    np.testing.assert_array_equal(only(root, 0), np.broadcast_to(expected, (8, 8, 3)))


def test_a_large_photograph_is_averaged(root):
    """Stripes one pixel wide become grey; picking pixels would keep them."""
    stripes = np.zeros((256, 256, 3), "uint8")
    stripes[:, ::2] = 255
    path = root / "train/new/0.JPG"
    path.parent.mkdir()
    Image.fromarray(stripes).save(path, "JPEG", quality=95)
    assert np.abs(only(root, 0) - 127.5).max() < 6


@pytest.mark.parametrize("cut", [10, 60])
def test_a_broken_file_is_named(root, cut):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), "uint8")
    Image.fromarray(noise).save(stream, "PNG")
    path = root / "train/cat/bad.png"
    path.write_bytes(stream.getvalue()[:cut])
    with pytest.raises(UserError, match=r"--data-dir .*: train/cat/bad.png cannot be read as an"):
        data.load("folder", str(root))


def test_tensorflow_is_not_imported(root):
    source = f"""
import json, sys
sys.path.insert(0, {str(EXAMPLES)!r})
from common import data
shape = data.load("folder", {str(root)!r}).x_train.shape
print(json.dumps([shape, "tensorflow" in sys.modules]))
"""
    shape, imported = fresh_process.run(source)
    assert shape == [12, 32, 32, 3]
    assert not imported
