"""The ground that all else stands on.

Messages, random numbers, files at URLs, batches, the summary of a model, throughput.

Any module may be imported from any folder.
Never here: anything that knows of a Trainer, a Run or a Ray cluster.
"""
