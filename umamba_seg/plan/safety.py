"""Plans from anywhere: what they hold is looked at before any of it is used, so that they name no code and no path.

nnU-Net joins some names of the plans to paths. Others it looks up in its modules, where it would also find what those
import (``os``, ``shutil``), and the network's class and layers it imports by dotted paths from anywhere.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, PositiveInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes Python's own since 3.12 only

from umamba_seg.errors import UserError
from umamba_seg.networks.own import require_class_source

_REMEDY = "use plans as umamba-seg or nnU-Net wrote them, or plan again"


def require_safe(plans: dict, where: Path | str) -> None:
    """Refuse plans that could do harm, or of which an entry is of another type than its readers expect.

    See :func:`require_entries` and :func:`require_architecture`. Nothing is imported to find out.

    Args:
        plans: Content of a plans.json.
        where: The file.

    Raises:
        UserError: Names the entry.
    """
    require_entries(plans, where)
    for name, configuration in plans["configurations"].items():
        if "architecture" in configuration:
            require_architecture(configuration["architecture"], f"{where}, configuration {name}")


def require_entries(plans: dict, where: Path | str) -> None:
    """Refuse entries of another type than their readers expect, names that would lead to paths, and unknown parts.

    What becomes part of a path is a plain name. Parts of nnU-Net are classes and functions that it defines itself.
    Entries that are not there are not asked for. The networks are left to :func:`require_architecture`.

    Raises:
        UserError: Names the entry.
    """
    try:
        _PLANS.validate_python(plans, strict=True)
    except ValidationError as error:
        finding = error.errors()[0]
        place = ".".join(map(str, finding["loc"]))
        raise UserError(where, f"{place} = {short(finding['input'])}: {finding['msg']}", _REMEDY) from None
    for name in plans["configurations"]:
        inherited(plans["configurations"], name, f"{where}, configuration {name}")


def require_architecture(architecture: dict, where: str) -> None:
    """Refuse a network that no source file defines, and layers that are not torch's or of nnU-Net's networks.

    Args:
        architecture: Of a configuration whose entries were looked at.
        where: What to call the configuration.

    Raises:
        UserError: See :func:`require_class_source`.
    """
    require_class_source(architecture["network_class_name"])
    for key in architecture["_kw_requires_import"]:
        layer = architecture["arch_kwargs"].get(key)
        if layer is not None and not _is_layer(layer):
            what = f"{key} is {short(layer)}, which is no layer of torch.nn or dynamic_network_architectures"
            raise UserError(where, what, _REMEDY)


def _is_layer(path: Any) -> bool:
    """Whether a dotted path is a class of theirs; what their modules import from elsewhere can be reached as well."""
    if not isinstance(path, str) or not path.startswith(("torch.nn.", "dynamic_network_architectures.")):
        return False
    if not re.fullmatch(r"torch\.nn\.[A-Z]\w*", path):
        require_class_source(path)
    return True


def inherited(configurations: dict[str, dict], name: str, where: str) -> dict:
    """A configuration with what it inherits.

    Raises:
        UserError: It inherits from itself, or from one that is not there.
    """
    found: dict = {}
    seen: list[str] = []
    parent: str | None = name
    while parent is not None:
        if parent in seen:
            raise UserError(where, "inherits from itself", _REMEDY)
        if parent not in configurations:
            raise UserError(where, f"there is no {parent!r} among {', '.join(configurations)}", _REMEDY)
        seen.append(parent)
        found = configurations[parent] | found
        parent = configurations[parent].get("inherits_from")
    return found


# ------------------------------------------------------------------------------------------------------------- entries


def _plain(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError("becomes part of a path, and has to be of letters, digits, '_', '.', '+' and '-'")
    return name


def _plain_names(names: str | list[str] | None) -> str | list[str] | None:
    for name in [names] if isinstance(names, str) else names or []:
        _plain(name)
    return names


def _dataset_name(name: str) -> str:
    if not re.fullmatch(r"Dataset\d{3}_\w[\w.+-]*", name):
        raise ValueError("becomes part of a path, and has to be like Dataset004_Hippocampus")
    return name


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ValueError("is no name of a class")
    return name


def _defined_in(folder: str, kind: type[ast.ClassDef] | type[ast.FunctionDef]) -> AfterValidator:
    """The name of a class or function that nnU-Net's modules in ``folder`` define."""

    def known(name: str) -> str:
        if name not in (there := _definitions(folder, kind)):
            raise ValueError(f"nnU-Net has {', '.join(sorted(there))}")
        return name

    return AfterValidator(known)


@cache
def _definitions(folder: str, kind: type[ast.ClassDef] | type[ast.FunctionDef]) -> set[str]:
    spec = importlib.util.find_spec("nnunetv2")  # of a top-level package: nothing is imported
    assert spec is not None
    places = spec.submodule_search_locations or []
    files = (file for place in places for file in Path(place, folder).rglob("*.py"))
    return {node.name for file in files for node in ast.parse(file.read_bytes()).body if isinstance(node, kind)}


_Name = Annotated[str, AfterValidator(_plain)]
_Class = Annotated[str, AfterValidator(_identifier)]
_Resampling = Annotated[str, _defined_in("preprocessing/resampling", ast.FunctionDef)]
_Normalization = Annotated[str, _defined_in("preprocessing/normalization", ast.ClassDef)]
_Extent = Annotated[list[PositiveInt], Field(min_length=2, max_length=3)]
_Lengths = Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=2, max_length=3)]


class _Architecture(TypedDict):
    network_class_name: str
    arch_kwargs: dict[str, Any]
    _kw_requires_import: list[str]


class _Topology(TypedDict):
    strides: list[_Extent]
    kernel_sizes: list[_Extent]
    features: list[PositiveInt]


class _Configuration(TypedDict, total=False):
    inherits_from: str
    data_identifier: _Name
    previous_stage: _Name | None
    next_stage: Annotated[str | list[str] | None, AfterValidator(_plain_names)]
    preprocessor_name: Annotated[str, _defined_in("preprocessing/preprocessors", ast.ClassDef)]
    normalization_schemes: list[_Normalization]
    use_mask_for_norm: list[bool]
    resampling_fn_data: _Resampling
    resampling_fn_seg: _Resampling
    resampling_fn_probabilities: _Resampling
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_seg_kwargs: dict[str, Any]
    resampling_fn_probabilities_kwargs: dict[str, Any]
    spacing: _Lengths
    median_image_size_in_voxels: _Lengths
    patch_size: _Extent
    batch_size: PositiveInt
    batch_dice: bool
    architecture: _Architecture
    topology: _Topology
    output_strides: list[_Extent]
    planning: dict[str, Any]
    mirroring: dict[str, Any]

    # Before nnU-Net 2.4, in the place of architecture.
    UNet_class_name: str
    UNet_base_num_features: PositiveInt
    unet_max_num_features: PositiveInt
    pool_op_kernel_sizes: list[_Extent]
    conv_kernel_sizes: list[_Extent]


class _Ours(TypedDict, total=False):
    network: str
    budget: str
    training: dict[str, Any]


class _Plans(TypedDict):
    dataset_name: Annotated[str, AfterValidator(_dataset_name)]
    plans_name: _Name
    configurations: dict[_Name, _Configuration]
    image_reader_writer: NotRequired[Annotated[str, _defined_in("imageio", ast.ClassDef)]]
    label_manager: NotRequired[Annotated[str, _defined_in("utilities/label_handling", ast.ClassDef)]]
    experiment_planner_used: NotRequired[_Class]
    transpose_forward: NotRequired[list[int]]
    transpose_backward: NotRequired[list[int]]
    foreground_intensity_properties_per_channel: NotRequired[dict[str, dict[str, Any]]]
    umamba_seg: NotRequired[_Ours]


_PLANS = TypeAdapter(_Plans)
