"""Lightning's place for small examples."""

from raylit.runtime.lazy import attribute_loader

__getattr__ = attribute_loader(__name__)  # its modules, which no module here imports
