"""Lightning's place for small examples."""

from raylit import demos
from raylit.as_lightning.beside import names_of
from raylit.as_lightning.names.pytorch.demos.boring_classes import DemoModel
from raylit.as_lightning.names.pytorch.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from raylit.as_lightning.names.pytorch.demos.transformer import LightningTransformer, Transformer
from raylit.testing.modules import BoringDataModule, BoringModel

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "DemoModel",
    "LightningLSTM",
    "LightningTransformer",
    "SequenceSampler",
    "SimpleLSTM",
    "Transformer",
]

__getattr__ = names_of(__name__, demos)
