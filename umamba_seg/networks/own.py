"""Networks of the user's own, named ``package.module:NAME``: nothing of this package needs to be edited for them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path
from typing import Any

from umamba_seg.errors import UserError
from umamba_seg.networks.spec import NetworkSpec, Topology

_FROM_TOPOLOGY = ("patch_size", "strides", "kernel_sizes", "features")
_OF_EVERY_NETWORK = ("input_channels", "num_classes", "deep_supervision")
_NO_CLASS = "name a class of a network, in a module that your PYTHONPATH or the current folder holds as source"


def find_own(name: str) -> NetworkSpec:
    """The network at ``package.module:NAME``: a :class:`NetworkSpec`, or a class.

    A class is called with ``input_channels``, ``num_classes``, ``deep_supervision`` and those of ``patch_size``,
    ``strides``, ``kernel_sizes`` and ``features`` that its signature names. It is for 2-D and 3-D, unless it has a
    class attribute ``dims`` such as ``(3,)``. The current folder is searched too.

    Raises:
        UserError: It cannot be imported, is neither, or plans that name its class would be refused.
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
    if not isinstance(found, NetworkSpec):
        found = _of_class(found, attribute, name)
    require_class_source(found.network)
    return found


def _of_class(found: Any, attribute: str, name: str) -> NetworkSpec:
    where = f"network {name!r}"
    if not inspect.isclass(found):
        raise UserError(where, f"is of type {type(found).__name__}", "name a class or a NetworkSpec")
    return NetworkSpec(
        name=attribute,
        network=f"{found.__module__}.{found.__qualname__}",
        arguments=_arguments_by_signature(found, where),
        dims=tuple(getattr(found, "dims", (2, 3))),
        paper=f"your own, {name}",
    )


def require_class(path: str, arguments: Iterable[str] = ()) -> None:
    """Refuse the dotted path of a class that is no network; plans name networks by such paths.

    Plans may come from anywhere. So a module is imported only when :func:`require_class_source` has found the class in
    it, and the class is not called here.

    Args:
        path: ``package.module.Class``.
        arguments: Keyword arguments that the class is called with, beside those of every network.

    Raises:
        UserError: There is none, it is no ``torch.nn.Module``, or it does not take the arguments.
    """
    require_class_source(path)
    from torch import nn

    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"network {path}", "is no torch.nn.Module", _NO_CLASS)
    try:
        inspect.signature(found).bind_partial(**dict.fromkeys((*_OF_EVERY_NETWORK, *arguments)))
    except TypeError as error:
        remedy = "name a network, with the arguments that its class has"
        raise UserError(f"network {path}", f"is not built as networks are: {error}", remedy) from None


def require_class_source(path: str) -> None:
    """Refuse the dotted path of a class that no source file defines; nothing is imported to find out.

    The class must stand in its module itself, with a base class: what a function makes, or what the module has from
    elsewhere, such as ``module.os.system``, is none.

    Raises:
        UserError: There is no such source file, or no such class in it.
    """
    module, _, name = path.rpartition(".")
    where = f"network {path}"
    _search_here()
    file = _source_file(module)
    if file is None:
        raise UserError(where, f"no source file of a module {module!r} outside Python's own is found", _NO_CLASS)
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise UserError(where, f"{file} is no Python: {error}", _NO_CLASS) from None
    if not any(isinstance(node, ast.ClassDef) and node.name == name and node.bases for node in body):
        raise UserError(where, f"{file} defines no class {name!r} that has a base class", _NO_CLASS)


def _source_file(module: str) -> Path | None:
    """Where a module would be imported from. Python's own modules do things when they are imported: they are none."""
    top, *inner = module.split(".")
    if not all(part.isidentifier() for part in (top, *inner)) or top in ("__main__", *sys.stdlib_module_names):
        return None
    spec = importlib.util.find_spec(top)
    for name in [*accumulate(inner, "{}.{}".format, initial=top)][1:]:
        # Not importlib's find_spec, which imports the packages around a module.
        spec = PathFinder.find_spec(name, spec.submodule_search_locations or []) if spec else None
    file = Path(spec.origin) if spec and spec.origin else None
    return file if file and file.suffix == ".py" and file.is_file() else None


def _search_here() -> None:
    """Let modules in the current folder be found, as ``python -m`` does; a console script leaves it out."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def _arguments_by_signature(network_class: Any, where: str) -> Any:
    parameters = inspect.signature(network_class).parameters
    missing = [key for key in _OF_EVERY_NETWORK if key not in parameters]
    if missing:
        raise UserError(where, f"its signature lacks {', '.join(missing)}", "add what every network is built with")

    def arguments(topology: Topology) -> dict:
        values = {key: getattr(topology, key) for key in _FROM_TOPOLOGY if key in parameters}
        return {key: [list(v) if isinstance(v, tuple) else v for v in value] for key, value in values.items()}

    return arguments
