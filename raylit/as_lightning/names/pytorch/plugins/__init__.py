"""Lightning's names beside those of `raylit.plugins`."""

from raylit import plugins
from raylit.as_lightning.beside import names_of
from raylit.as_lightning.refused import NO_DEEPSPEED, NO_XLA, refused

BitsandbytesPrecision = refused(
    "BitsandbytesPrecision", "Quantize the layers in configure_model, with bitsandbytes itself."
)
DeepSpeedPrecision = refused("DeepSpeedPrecision", NO_DEEPSPEED)
TransformerEnginePrecision = refused(
    "TransformerEnginePrecision",
    "Use the layers of Transformer Engine in the module, or precision='bf16-mixed'.",
)
XLACheckpointIO = refused("XLACheckpointIO", NO_XLA)
XLAPrecision = refused("XLAPrecision", NO_XLA)

__all__ = [
    *plugins.__all__,
    "BitsandbytesPrecision",
    "DeepSpeedPrecision",
    "TransformerEnginePrecision",
    "XLACheckpointIO",
    "XLAPrecision",
]

__getattr__ = names_of(__name__, plugins)
