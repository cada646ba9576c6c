"""Code written for Lightning, run by raylit as it is.

    import raylit.as_lightning                       # first, before anything imports Lightning
    python -m raylit.as_lightning script.py ...      # or so, with the script unchanged

From then on `lightning`, `lightning.pytorch`, `pytorch_lightning`, `lightning.fabric` and
`lightning_fabric` are raylit, in this process and in its Ray workers, and so they are in packages
that train through Lightning. They say that they are version 2.6.6, whose surface raylit has.

`finder.py` does it; `torch_load.py` lets packages read their own checkpoints; `names/` has the
parts of Lightning that raylit lacks: packages in Lightning's layout, and views and stubs of private
names that published packages use. Nothing in raylit imports this folder.
"""

from raylit.as_lightning import finder, torch_load, views

finder.install()
torch_load.install()
views.install()
