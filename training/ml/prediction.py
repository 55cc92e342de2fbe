"""What a network answers while it is being trained, on one device, whatever it is trained on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.ml.runtime import tf


class OneDevice:
    """A network that predicts on one device, in the shape that `evaluation.predict` takes.

    Keras' own `predict_on_batch` answers once a device when a network is trained on several, so that every image
    comes back twice.
    """

    def __init__(self, model: Any) -> None:
        self.output_shape = model.output_shape
        shape = (None, *model.input_shape[1:])

        @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape, tf.float32)])  # type: ignore[untyped-decorator]
        def compiled(inputs: Any) -> Any:
            return tf.cast(model(inputs, training=False), tf.float32)

        self._compiled = compiled

    def predict_on_batch(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs float32 (N, ...) without dropout, of inputs (N, ...)."""
        return np.asarray(self._compiled(inputs))
