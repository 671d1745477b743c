"""Networks of the user's own, named ``package.module:NAME``: nothing of this package needs to be edited for them."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import sys
from pathlib import Path
from typing import Any

from umamba_seg.errors import UserError
from umamba_seg.networks.spec import NetworkSpec, Topology

_FROM_TOPOLOGY = ("patch_size", "strides", "kernel_sizes", "features")


def find_own(name: str) -> NetworkSpec:
    """The network at ``package.module:NAME``: a :class:`NetworkSpec`, or a class.

    A class is called with ``input_channels``, ``num_classes``, ``deep_supervision`` and those of ``patch_size``,
    ``strides``, ``kernel_sizes`` and ``features`` that its signature names. It is for 2-D and 3-D, unless it has a
    class attribute ``dims`` such as ``(3,)``. The current folder is searched too.

    Raises:
        UserError: It cannot be imported, or is neither.
    """
    module, _, attribute = name.partition(":")
    where = f"network {name!r}"
    if not (module and attribute):
        raise UserError(where, "is not of the form package.module:NAME", "name the module and what is in it")
    _search_here()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the module is there, but something that it imports is not
        raise UserError(where, f"no module {error.name}", "put its folder on PYTHONPATH") from None
    if not hasattr(imported, attribute):
        raise UserError(where, f"the module has no {attribute}", "name a class or a NetworkSpec that it has")
    found = getattr(imported, attribute)
    if isinstance(found, NetworkSpec):
        return found
    if not inspect.isclass(found):
        raise UserError(where, f"is of type {type(found).__name__}", "name a class or a NetworkSpec")
    return NetworkSpec(
        name=attribute,
        network=f"{module}.{attribute}",
        arguments=_arguments_by_signature(found, where),
        dims=tuple(getattr(found, "dims", (2, 3))),
        paper=f"your own, {name}",
    )


def require_class(path: str) -> None:
    """Refuse the dotted path of a class that cannot be imported; plans name networks by such paths.

    Raises:
        UserError: There is nothing at ``path``.
    """
    _search_here()
    if pydoc.locate(path) is None:
        raise UserError(f"network {path}", "cannot be imported", "put the folder of its module on PYTHONPATH")


def _search_here() -> None:
    """Let modules in the current folder be found, as ``python -m`` does; a console script leaves it out."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def _arguments_by_signature(network_class: Any, where: str) -> Any:
    parameters = inspect.signature(network_class).parameters
    missing = [key for key in ("input_channels", "num_classes", "deep_supervision") if key not in parameters]
    if missing:
        raise UserError(where, f"its signature lacks {', '.join(missing)}", "add what every network is built with")

    def arguments(topology: Topology) -> dict:
        values = {key: getattr(topology, key) for key in _FROM_TOPOLOGY if key in parameters}
        return {key: [list(v) if isinstance(v, tuple) else v for v in value] for key, value in values.items()}

    return arguments
