"""What the panel trains: families of networks, each in two settings, and the sources' deep ones.

Rules and schemes are chosen on the settings of one half, and the other half is reported. Which is
which stands in `SETTINGS` and was fixed before rules were chosen: what is reported has other sizes
and other data. The third suite, `"deep"`, has the networks that the sources of the initializers
are about, thin.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import keras
from common import plain_networks
from common.population import Task

from panel_families import data, networks

Suite = Literal["choice", "report", "deep"]

SGD = (0.003, 0.01, 0.03, 0.1)
SGD_WITH_NORMS = (0.01, 0.03, 0.1, 0.3)
ADAM = (1e-3, 3e-3, 1e-2, 3e-2)
#: Small networks, which bear more.
ADAM_SMALL = (3e-3, 1e-2, 3e-2, 1e-1)
ADAM_DEEP = (3e-4, 1e-3, 3e-3, 1e-2)
#: With so many seeds, 0 and up, all learning rates are tried; with the others the best two.
RATE_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network on one task.

    Args:
        family: What it stands for.
        suite: What it is used for.
        task: Loads the data.
        network: Builds it from the shape of an input, the number of outputs, depth and width.
        depth: Of the network, in its own units.
        width: The same.
        optimizer: `"sgd"` (momentum 0.9) or `"adam"`.
        rates: Among which the best is chosen, for each scheme.
        steps: Of one training.
        batch_size: Rows in a step.
        warmup: The share of the steps in which the learning rate rises.
        clip: The largest norm of all gradients together; None: any.
    """

    family: str
    suite: Suite
    task: Callable[[], Task]
    network: Callable[..., keras.Model]
    depth: int
    width: int
    optimizer: Literal["sgd", "adam"]
    rates: tuple[float, ...]
    steps: int
    batch_size: int = 64
    warmup: float = 0.0
    clip: float | None = None

    @property
    def name(self) -> str:
        """For files and the command line."""
        return f"{self.family}-{self.suite}"

    def build(self) -> keras.Model:
        """The model with Keras's default initializers."""
        task = self.task()
        return self.network(task.train[0].shape[1:], task.outputs, self.depth, self.width)

    def make_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer; its learning rate is set by who trains."""
        if self.optimizer == "sgd":
            return keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=self.clip)
        return keras.optimizers.Adam(0.1, global_clipnorm=self.clip)

    def tiny(self) -> Setting:
        """The same in a moment: every part runs, nothing is learned."""
        depth = {networks.resnet: 6, networks.normalized_resnet: 6, networks.plain: 4}
        depth |= {networks.vgg: 4, _f: self.depth}
        smallest = depth.get(self.network, min(self.depth, 2))
        return dataclasses.replace(
            self, depth=smallest, width=8, rates=self.rates[1:3], steps=4, batch_size=16
        )

    def on_images(self, folder: str) -> Setting:
        """The same on the images of a folder, where it is about images.

        Args:
            folder: As `data.folder` takes it.
        """
        of_folder = {
            data.moved_digits: data.folder,
            data.large_moved_digits: data.folder,
            data.flat_moved_digits: data.flat_folder,
            data.noisy_photographs: data.noisy_folder,
        }
        load = of_folder.get(self.task)
        task = self.task if load is None else functools.partial(load, folder)
        return dataclasses.replace(self, task=task)

    def large(self, folder: str) -> Setting:
        """The same for a GPU: four times as wide, ten times as long, on the images of a folder.

        Args:
            folder: As `data.folder` takes it.
        """
        return dataclasses.replace(
            self.on_images(folder),
            width=4 * self.width,
            steps=10 * self.steps,
            batch_size=2 * self.batch_size,
        )


def _pair(
    family: str,
    network: Callable[..., keras.Model],
    choice: tuple[Callable[[], Task], int, int],
    report: tuple[Callable[[], Task], int, int],
    optimizer: Literal["sgd", "adam"],
    rates: tuple[float, ...],
    steps: int,
    **more: float,
) -> list[Setting]:
    """Both settings of a family: task, depth and width of each."""
    halves: tuple[Suite, Suite] = ("choice", "report")
    return [
        Setting(family, half, task, network, depth, width, optimizer, rates, steps, **more)  # type: ignore[arg-type]
        for half, (task, depth, width) in zip(halves, (choice, report), strict=True)
    ]


def _f(shape: tuple[int, ...], outputs: int, depth: int, width: int) -> keras.Model:
    """The plain networks of 34 and 50 layers of the ASV paper."""
    height, width_of_image, channels = shape
    return plain_networks.build(f"F{depth}", (height, width_of_image, channels), outputs, width)


def _deep(
    family: str,
    network: Callable[..., keras.Model],
    depth: int,
    rates: tuple[float, ...],
    steps: int,
    optimizer: Literal["sgd", "adam"] = "sgd",
    task: Callable[[], Task] = data.moved_digits,
    width: int = 8,
) -> Setting:
    """A setting of the sources' networks."""
    return Setting(family, "deep", task, network, depth, width, optimizer, rates, steps)


_LONG = functools.partial(data.adding, 120)
_SHORT = functools.partial(data.adding, 60)

SETTINGS = [
    *_pair(
        "plain-cnn", networks.vgg,
        (data.digits, 6, 8), (data.moved_digits, 8, 12), "adam", ADAM, 300,
    ),
    *_pair(
        "deep-plain-cnn", networks.plain,
        (data.digits, 20, 8), (data.moved_digits, 34, 8), "adam", ADAM_DEEP, 300,
    ),
    *_pair(
        "resnet", networks.resnet,
        (data.digits, 14, 8), (data.moved_digits, 20, 8), "sgd", SGD, 300,
    ),
    *_pair(
        "deep-resnet", networks.resnet,
        (data.digits, 32, 8), (data.moved_digits, 56, 8), "sgd", SGD, 300,
    ),
    *_pair(
        "resnet-bn", networks.normalized_resnet,
        (data.digits, 14, 8), (data.moved_digits, 20, 8), "sgd", SGD_WITH_NORMS, 300,
    ),
    *_pair(
        "deep-resnet-bn", networks.normalized_resnet,
        (data.digits, 32, 8), (data.moved_digits, 56, 8), "sgd", SGD_WITH_NORMS, 300,
    ),
    *_pair(
        "resnet-bn-adam", networks.normalized_resnet,
        (data.digits, 20, 8), (data.moved_digits, 32, 8), "adam", ADAM, 300,
    ),
    *_pair(
        "convnext", networks.convnext,
        (data.digits, 4, 24), (data.moved_digits, 6, 24), "adam", ADAM, 300, warmup=0.05,
    ),
    *_pair(
        "vit", networks.vit,
        (data.digits, 4, 32), (data.moved_digits, 6, 48), "adam", ADAM, 300, warmup=0.05,
    ),
    *_pair(
        "language-model", networks.language_model,
        (data.python_sources, 3, 32), (data.python_reference, 4, 48), "adam", ADAM, 300,
        batch_size=16, warmup=0.05, clip=1.0,
    ),
    *_pair(
        "deep-mlp-relu", networks.relu_mlp,
        (data.flat_digits, 20, 64), (data.flat_moved_digits, 32, 64), "adam", ADAM_DEEP, 600,
    ),
    *_pair(
        "deep-mlp-tanh", networks.tanh_mlp,
        (data.flat_digits, 20, 64), (data.flat_moved_digits, 32, 64), "adam", ADAM_DEEP, 600,
    ),
    *_pair(
        "small-mlp", networks.relu_mlp,
        (data.diabetes, 3, 32), (data.breast_cancer, 3, 48), "adam", ADAM, 150, batch_size=32,
    ),
    *_pair(
        "curve", networks.relu_mlp,
        (data.sine, 3, 32), (data.chirp, 3, 48), "adam", ADAM_SMALL, 1000,
    ),
    *_pair(
        "lstm-adding", networks.lstm,
        (_SHORT, 1, 32), (_LONG, 1, 48), "adam", ADAM_SMALL, 800, clip=1.0,
    ),
    *_pair(
        "gru-pixels", networks.gru,
        (data.pixels_in_a_row, 1, 32), (data.shuffled_pixels, 1, 48), "adam", ADAM_SMALL, 500,
        clip=1.0,
    ),
    *_pair(
        "autoencoder", networks.autoencoder,
        (data.digits_again, 1, 16), (data.noisy_photographs, 2, 16), "adam", ADAM, 400,
    ),
    *_pair(
        "unet", networks.unet,
        (data.digits_again, 1, 8), (data.noisy_photographs, 2, 8), "adam", ADAM, 300,
    ),
    _deep("resnet-56", networks.resnet, 56, SGD[:3], 300),
    _deep("resnet-110", networks.resnet, 110, (0.001, *SGD[:2]), 300),
    _deep("resnet-56-bn", networks.normalized_resnet, 56, SGD_WITH_NORMS[:3], 300),
    _deep("resnet-110-bn", networks.normalized_resnet, 110, SGD_WITH_NORMS[:3], 300),
    _deep("f34", _f, 34, ADAM_DEEP[:3], 800, "adam", data.large_moved_digits),
    _deep("f50", _f, 50, ADAM_DEEP[:3], 800, "adam", data.large_moved_digits),
    _deep(
        "dense-54", networks.relu_mlp, 54, (1e-4, *ADAM_DEEP[:3]), 2000, "adam",
        data.flat_moved_digits, 64,
    ),
]  # fmt: skip
