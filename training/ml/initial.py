"""What a training starts from instead of from chance: published ImageNet weights, or a version of the registry.

Imports no TensorFlow: which weights there are is also asked by processes that never load it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.artifacts import Artifact, ArtifactError, load
from training.ml.architectures import Architecture, architecture
from training.ml.control import TrainingFailed

if TYPE_CHECKING:
    import keras

SCRATCH = "scratch"
# What the tables keep of `words`.
WORDS_LENGTH = 100
_HEAD = "head/"
_DIGITS = 12


class WeightsUnusable(TrainingFailed):
    """The weights that were asked for cannot be used. Nothing is trained from scratch in their place."""


@dataclass(frozen=True)
class InitialWeights:
    """Verified weights to start from. kind: "imagenet" (path is set) or "version" (artifact is set).

    words: what run, version and card say about it, 100 characters at most.
    """

    kind: str
    words: str
    path: Path | None = None
    artifact: Artifact | None = None


def imagenet(architecture_id: str, folder: Path) -> InitialWeights:
    """The published weights of an architecture, from `folder`. Raises WeightsUnusable, with advice."""
    entry = architecture(architecture_id)
    published = entry.pretrained
    if published is None:
        raise WeightsUnusable(
            f"{entry.name} has no published ImageNet weights.", "Start from scratch or from a version of the registry."
        )
    state = published.state(folder)
    if state != "installed":
        raise WeightsUnusable(_missing(entry, state), f"{advice(entry)} Or start from scratch.")
    words = f"ImageNet ({published.file_name}, {published.algorithm_name} {published.digest[:_DIGITS]}…)"
    return InitialWeights("imagenet", words[:WORDS_LENGTH], path=folder / published.file_name)


def from_version(name: str, folder: Path, sha256: str, architecture_id: str) -> InitialWeights:
    """The weights of a version. name: how people call it. Raises WeightsUnusable, with advice.

    The files are verified against the digest that the registry keeps before anything in them is used.
    """
    try:
        artifact = load(folder, sha256)
    except ArtifactError as error:
        raise WeightsUnusable(
            f"The weights of {name} cannot be used: {error}", "Restore the files, or choose another version."
        ) from error
    _refuse_another(artifact, architecture_id, name)
    digest = f" (sha256 {sha256[:_DIGITS]}…)"
    return InitialWeights("version", name[: WORDS_LENGTH - len(digest)] + digest, artifact=artifact)


def assign(model: "keras.Model", initial: InitialWeights, classes: Sequence[str]) -> bool:
    """Set the weights of a version in a freshly built model, by name; return whether the head was taken over too.

    The head is taken only when the classes are the same in the same order; else it stays fresh. The size of the images
    may differ: no weight depends on it. Raises WeightsUnusable, and then nothing is set.
    """
    from training.ml.export import assign_weights, weights_of

    if initial.artifact is None:
        raise TypeError("Only the weights of a version are assigned by name.")
    manifest = initial.artifact.manifest
    _refuse_another(initial.artifact, model.name, initial.words)
    same_classes = list(classes) == list(manifest["classes"])
    weights = initial.artifact.weights()
    if not same_classes:
        fresh = {name: value for name, value in weights_of(model).items() if name.startswith(_HEAD)}
        weights = {name: value for name, value in weights.items() if not name.startswith(_HEAD)} | fresh
    try:
        assign_weights(model, weights)
    except ArtifactError as error:
        raise WeightsUnusable(
            f"The weights of {initial.words} do not fit: {error}", "Choose another version, or start from scratch."
        ) from error
    return same_classes


def advice(entry: Architecture) -> str:
    """How the published weights of an architecture come onto this server."""
    if entry.pretrained is None:
        return ""
    return (
        f"On the server, run `manage.py pretrained fetch {entry.id}`. Without internet there, download "
        f"{entry.pretrained.url} elsewhere, bring the file along and run `manage.py pretrained add FILE`."
    )


def _missing(entry: Architecture, state: str) -> str:
    if state == "damaged":
        return (
            f"The file with the ImageNet weights of {entry.name} is damaged: it is not the one that Keras publishes, "
            "or cannot be read."
        )
    return f"The ImageNet weights of {entry.name} are not installed."


def _refuse_another(artifact: Artifact, architecture_id: str, name: str) -> None:
    found = artifact.manifest["architecture"]
    if found != architecture_id:
        raise WeightsUnusable(
            f"{name} is a {found}; its weights do not fit into {architecture_id}.",
            f"Choose the architecture {found}, or a version of {architecture_id}.",
        )
