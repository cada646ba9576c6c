"""Lightning's path to `raylit.callbacks.lambda_callback`."""

from raylit.callbacks.lambda_callback import LambdaCallback

__all__ = ["LambdaCallback"]
