"""`Trainer.export`: files that run a model without raylit, and proof that they compute the same.

`export.py` is the task: inputs of `forward` from validation batches, the file, the comparison;
`formats.py` writes and reads each kind of file; `failure.py` names the operator and the line that
an exporter refused. From outside, the Trainer and the command line import it. Never here: the
package mlflow, whose form is written by `raylit/loggers/mlflow/model.py`.
"""

from raylit.export.export import Export, ExportReport
from raylit.export.formats import FORMATS

__all__ = ["FORMATS", "Export", "ExportReport"]
