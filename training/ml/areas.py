"""The area under the ROC curve while a network learns."""

from typing import Any

from training.ml.runtime import keras, tf

_BINS = 512
# Beyond these log-odds a probability is as good as certain.
_CERTAIN = 12.0


class AreaUnderCurve(keras.metrics.Metric):  # type: ignore[misc]
    """Area under the ROC curve of all predictions so far; of several classes the mean of each against the rest.

    Counts the predictions of each class in bins of equal width on the scale of log-odds, where a network that is
    certain does not put all in one bin; two predictions in the same bin count as equal. Not a number while a class, or
    everything but it, has not been seen.
    """

    def __init__(self, classes: int, name: str = "auc") -> None:
        super().__init__(name=name, dtype="float32")
        # Of two classes each is the other's rest: one is enough.
        self.columns = 1 if classes == 2 else classes
        self.counts = self.add_variable((2, self.columns, _BINS), initializer="zeros", name="counts")

    def update_state(self, truth: Any, probabilities: Any, sample_weight: Any = None) -> None:
        """truth: one-hot (N, C). The weights that balance the classes do not change an order, and are not used."""
        truth = tf.cast(truth[:, -self.columns :], tf.float32)
        bins = tf.one_hot(_bins(probabilities[:, -self.columns :]), _BINS)
        positive = tf.einsum("nc,ncb->cb", truth, bins)
        self.counts.assign_add(tf.stack([positive, tf.reduce_sum(bins, axis=0) - positive]))

    def result(self) -> Any:
        positive, negative = tf.unstack(tf.convert_to_tensor(self.counts))
        below = tf.cumsum(negative, axis=1, exclusive=True)
        pairs = tf.reduce_sum(positive, axis=1) * tf.reduce_sum(negative, axis=1)
        return tf.reduce_mean(tf.reduce_sum(positive * (below + negative / 2), axis=1) / pairs)


def _bins(probabilities: Any) -> Any:
    known = tf.clip_by_value(tf.cast(probabilities, tf.float32), 1e-7, 1 - 1e-7)
    odds = tf.math.log(known) - tf.math.log1p(-known)
    return tf.cast((tf.clip_by_value(odds, -_CERTAIN, _CERTAIN) / _CERTAIN + 1) / 2 * (_BINS - 1), tf.int32)
