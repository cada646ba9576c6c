"""Jobs on Ray Train workers: `launcher.py` starts them, and `worker_main.py` runs in each of them.

From outside, `launcher.py` is imported when a job wants Ray, and `pool.py` by
`raylit.keep_workers`. Never here: the work of a step. No other place but this folder, `tune/` and
`data/ray_dataset.py` imports Ray.
"""
