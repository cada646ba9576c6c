"""Which samples a rank gets, in which order, and where it stands in them.

`plan.py` (open first), `sampler.py`, `sources.py`, `indices.py`.

From outside, `data/loaders.py` and `data/combined.py` import it. Never here: the contents of a
sample.
"""
