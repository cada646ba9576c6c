"""Jobs on Ray Train workers: `launcher.py` starts them, `worker_main.py` is what each of them runs.

From outside, `launcher.py` is imported when a job wants Ray, and `pool.py` by
`raylit.keep_workers`. Never here: what a step does; and no other folder but this, `tune/` and
`data/ray_dataset.py` imports Ray.
"""
