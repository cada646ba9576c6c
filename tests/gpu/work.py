"""A convolutional net and its data, beside the models of tests/benchmarks/step.py."""

from __future__ import annotations

import torch
from torch import nn

from tests.benchmarks.step import DEVICE, Batch


class Conv:
    """Convolutions and batch norm: on a GPU of the size of ResNet's first stages, on a CPU tiny."""

    warm_up, precision = 5, None
    SAMPLES, SIZE, WIDTH = (128, 64, 128) if DEVICE.type == "cuda" else (4, 8, 4)

    @classmethod
    def net(cls) -> nn.Module:
        torch.manual_seed(0)
        width = cls.WIDTH
        parts: list[nn.Module] = []
        for number in range(4):
            before = width if number else 3
            stride = 1 + number % 2
            parts += [
                nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    @classmethod
    def batch(cls, generator: torch.Generator) -> Batch:
        images = torch.randn(cls.SAMPLES, 3, cls.SIZE, cls.SIZE, generator=generator)
        return images, torch.randint(10, (cls.SAMPLES,), generator=generator)

    @staticmethod
    def loss(net: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])
