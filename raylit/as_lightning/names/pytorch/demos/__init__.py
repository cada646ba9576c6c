"""Lightning's place for small examples."""

from raylit.as_lightning.names.pytorch.demos.transformer import LightningTransformer, Transformer

__all__ = ["LightningTransformer", "Transformer"]
