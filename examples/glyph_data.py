"""Characters as images, as names and as entries of the Unicode tables: for examples/glyphs.py.

730 characters, drawn by Pillow in the 16 fonts of matplotlib that have them all: ten to train on,
two to validate, four of another design (STIX) to test.
"""

import functools
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

import raylit as pl

SIZE = 24
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
VAL_FONTS = ("DejaVuSerif-BoldItalic", "DejaVuSansMono-BoldOblique")


@dataclass
class Glyphs:
    """A batch of n characters, or one without the first dimension."""

    image: Tensor  # (n, 1, 24, 24), from 0 to 1
    words: Tensor  # of the name, (n, words); 0: none
    codes: Tensor  # category, and block of 128 code points, (n, 2)
    width: Tensor  # in ems, (n, 1)
    label: Tensor  # which character, (n,)


@functools.cache
def characters() -> list[str]:
    """The characters that all 16 fonts have."""
    fonts = [FT2Font(str(path)).get_charmap() for path in _fonts()]
    common = sorted(set(fonts[0]).intersection(*fonts))
    return [chr(code) for code in common if unicodedata.name(chr(code), "")]


def _fonts() -> list[Path]:
    found = [*FONTS.glob("DejaVuS*.ttf"), *FONTS.glob("STIXGeneral*.ttf")]
    return sorted(path for path in found if "Display" not in path.stem)


@functools.cache
def vocabulary() -> dict[str, int]:
    words = {word for char in characters() for word in unicodedata.name(char).split()}
    return {word: index + 1 for index, word in enumerate(sorted(words))}


@functools.cache
def names() -> Tensor:
    """The names of all characters, (characters, words)."""
    rows = [
        [vocabulary()[word] for word in unicodedata.name(char).split()] for char in characters()
    ]
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


@functools.cache
def codes() -> Tensor:
    """Category, and block of 128 code points, of all characters, (characters, 2)."""
    categories = [unicodedata.category(char) for char in characters()]
    blocks = [f"{ord(char) // 128:04}" for char in characters()]
    columns = [[sorted(set(part)).index(one) for one in part] for part in (categories, blocks)]
    return torch.tensor(columns).T


def drawn(path: Path) -> tuple[Tensor, Tensor]:
    """Draw all characters in a font; return images and widths."""
    font = ImageFont.truetype(str(path), 18)
    images = []
    for char in characters():
        image = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(image).text((SIZE / 2, SIZE / 2 + 6), char, 255, font, anchor="ms")
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        images.append(pixels.view(1, SIZE, SIZE) / 255)
    widths = [[font.getlength(char) / 18] for char in characters()]
    return torch.stack(images), torch.tensor(widths)


class Drawn(Dataset[Glyphs]):
    """All characters in some fonts."""

    def __init__(self, fonts: list[Path]):
        self.fonts = [drawn(path) for path in fonts]

    def __len__(self) -> int:
        return len(self.fonts) * len(characters())

    def __getitem__(self, index: int) -> Glyphs:
        font, label = divmod(index, len(characters()))
        images, widths = self.fonts[font]
        wanted = torch.tensor(label)
        return Glyphs(images[label], names()[label], codes()[label], widths[label], wanted)


class GlyphData(pl.LightningDataModule):
    def __init__(self, batch_size: int = 128):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        fonts: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
        for path in _fonts():
            held_out = "val" if path.stem in VAL_FONTS else "test"
            is_train = path.stem.startswith("DejaVu") and held_out == "test"
            fonts["train" if is_train else held_out].append(path)
        self.parts = {name: Drawn(paths) for name, paths in fonts.items()}

    def loader(self, name: str) -> DataLoader:
        return DataLoader(self.parts[name], self.batch_size, name == "train", collate_fn=collate)

    def train_dataloader(self) -> DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")


def collate(samples: list[Glyphs]) -> Glyphs:
    return Glyphs(**default_collate([vars(sample) for sample in samples]))


def spoilt(batch: Glyphs, seed: int | None = None) -> Glyphs:
    """Move the images by up to 2 pixels, add noise and a hole, and leave out half of the words.

    Args:
        seed: the same each time with one, as in tests.
    """
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    left, top, x, y = torch.randint(-2, 3, (4,), generator=generator).tolist()
    image = batch.image.roll((top, left), (2, 3)).clone()
    image[:, :, 9 + 4 * y :, 9 + 4 * x :][:, :, :6, :6] = 0
    image += 0.25 * torch.randn(image.shape, generator=generator).to(image.device)
    kept = (torch.rand(batch.words.shape, generator=generator) > 0.5).to(image.device)
    return Glyphs(image, batch.words * kept, batch.codes, batch.width, batch.label)
