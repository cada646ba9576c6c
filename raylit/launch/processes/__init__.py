"""Processes of this machine as ranks, without Ray: the only place for torch's own launcher.

Nothing is imported here: each rank runs `rank.py` as its main module, which Python warns of where
the package has imported it before.
"""
