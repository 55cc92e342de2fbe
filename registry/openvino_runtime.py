"""OpenVINO, loaded without its usage statistics. Loaded on first use only: it is no import for a web process to make
before the first prediction."""

import importlib
import sys
from types import ModuleType


def load_openvino() -> ModuleType:
    """The `openvino` module.

    OpenVINO sends statistics from its import on, unless `opt_in_out --opt_out` wrote a file into the home directory
    of each user. It also does without its `openvino_telemetry` package, in favour of a stub of its own: that package
    is kept from loading here, so that a hospital's machine never tries to reach the network, whoever runs it.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")
