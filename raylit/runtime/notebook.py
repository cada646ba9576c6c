"""Detection of a notebook, which shows the prints of this process."""

from __future__ import annotations

import sys


def is_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
