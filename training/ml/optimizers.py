"""The optimizers, with a learning rate of its own for every part of the network."""

from collections.abc import Sequence
from typing import Any

from training.configurations import Configuration
from training.ml.runtime import keras

# A scale or an offset near zero is no sign of a simpler network (Loshchilov and Hutter 2019 leave them out as well).
_NOT_DECAYED = ["gamma", "beta", "bias"]


class _Shares:
    """Mixed into an optimizer: each variable learns, and decays, with its own share of the learning rate.

    shares: one number a trainable variable, in their order; None: 1 for all. whole_decay: the weight decay where the
    share is 1.
    """

    shares: Sequence[float] | None = None
    whole_decay: float | None = None

    def _share(self: Any, variable: Any) -> float:
        return 1.0 if self.shares is None else self.shares[self._get_variable_index(variable)]

    def _use_weight_decay(self: Any, variable: Any) -> bool:
        """Not of what has one dimension, whatever it is called: ConvNeXt's scales are kernels of a layer here."""
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)  # type: ignore[misc]

    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient, variable, learning_rate * self._share(variable))  # type: ignore[misc]

    def _apply_weight_decay(self: Any, variables: Sequence[Any]) -> None:
        """Keras multiplies with the rate of the whole here, which is why the decay takes the share.

        With several devices a thread each is here at once, and each sets the same: nothing is computed from what
        another one set.
        """
        if self.whole_decay is None:
            return
        by_share: dict[float, list[Any]] = {}
        for variable in variables:
            by_share.setdefault(self._share(variable), []).append(variable)
        for share, own in by_share.items():
            self.weight_decay = self.whole_decay * share
            super()._apply_weight_decay(own)  # type: ignore[misc]


class SGD(_Shares, keras.optimizers.SGD):  # type: ignore[misc]
    pass


class Adam(_Shares, keras.optimizers.Adam):  # type: ignore[misc]
    pass


class AdamW(_Shares, keras.optimizers.AdamW):  # type: ignore[misc]
    pass


def create(configuration: Configuration, rate: float, shares: Sequence[float] | None = None) -> Any:
    """The optimizer that the configuration names; shares: of the rate, one a trainable variable, in their order."""
    if configuration.optimizer == "sgd":
        optimizer = SGD(rate, momentum=0.9, nesterov=True)
    elif configuration.optimizer == "adam":
        optimizer = Adam(rate)
    else:
        optimizer = AdamW(rate, weight_decay=configuration.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    optimizer.whole_decay = optimizer.weight_decay
    optimizer.shares = None if shares is None else tuple(shares)
    return optimizer
