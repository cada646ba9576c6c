"""Lightning's classes that raylit lacks: they can be imported, and on use name a replacement."""

from __future__ import annotations

from raylit.errors import ConfigError


def refused(name: str, instead: str) -> type:
    """Return a class whose objects cannot be made.

    Args:
        name: of the class.
        instead: what to write instead, as a whole sentence.
    """

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise ConfigError(f"raylit, which stands in for Lightning, has no {name}. {instead}")

    return type(name, (), {"__init__": refuse, "__doc__": f"Refused: {instead}"})


FSDP_INSTEAD = (
    "strategy='fsdp' (FSDPStrategy) shards a model that is too large for one device, on torch's"
    " fully_shard."
)
NO_XLA = "It has no XLA: use accelerator='gpu' or 'cpu'."
NO_DEEPSPEED = f"It has no DeepSpeed: {FSDP_INSTEAD}"
