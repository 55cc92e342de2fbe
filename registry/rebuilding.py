"""What needs the code of the architectures, which the registry does not know: another app registers it here.

Both run outside of this process, which never loads the library that computes networks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import packages
from .models import ModelVersion

# Builds the architecture that the manifest names from our own code, gives it the weights of an unpacked package, proves
# its golden outputs, and writes a version folder: (package folder, manifest, version folder, look). Returns the digest
# of the folder. `look` is called often meanwhile; what it raises ends the work. Raises PackageError.
Rebuild = Callable[[Path, dict[str, Any], Path, Callable[[], None]], str]
REBUILDERS: list[Rebuild] = []

# Writes a version as a file for other tools, verified against its golden outputs: (version, file). Raises ExportError.
WRITERS: dict[str, Callable[[ModelVersion, Path], None]] = {}


class ExportError(Exception):
    """The version cannot be written in this form. The message says why and what to do."""


def rebuild(package: Path, manifest: dict[str, Any], target: Path, look: Callable[[], None]) -> str:
    """Prove an unpacked package and write it as a version folder; return its digest. Raises PackageError."""
    if not REBUILDERS:
        raise packages.PackageError("not-possible", "This platform has no architectures to rebuild the version with.")
    sha256 = ""
    for one in REBUILDERS:
        sha256 = one(package, manifest, target, look)
    return sha256
