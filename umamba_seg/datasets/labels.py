"""What ``dataset.json`` says about labels, under nnU-Net's rules: background, consecutive values, regions, ignore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from umamba_seg.errors import UserError


@dataclass(frozen=True)
class Labels:
    """What the label files of a data set may hold and mean.

    Attributes:
        foreground: Name -> value, or the tuple of values that form a region, in the order of ``dataset.json``.
        ignore: The value of voxels that nobody annotated (always the highest), or None.
        regions_class_order: The value that each region writes into a segmentation, in the order of ``foreground``;
            None without regions.
    """

    foreground: dict[str, int | tuple[int, ...]]
    ignore: int | None
    regions_class_order: tuple[int, ...] | None

    @classmethod
    def from_json(cls, content: dict[str, Any], path: Path) -> Labels:
        """Validate the entries ``labels`` and ``regions_class_order`` of ``content``, which was read from ``path``.

        Raises:
            UserError: They break one of nnU-Net's rules.
        """
        table = content.get("labels")
        example = '"labels": {"background": 0, "tumour": 1}'
        if not isinstance(table, dict) or not table:
            raise UserError(path, '"labels" is missing or not an object', f"name the labels, for example {example}")
        _refuse_swapped(table, path)
        values = {name: _value(name, entry, path) for name, entry in table.items()}
        if values.get("background") != 0:
            found = f"is {table['background']!r}" if "background" in table else "is missing"
            raise UserError(path, f'the label "background" {found}', f"it must be there and be 0: {example}")
        ignore = values.get("ignore")
        if isinstance(ignore, tuple):
            raise UserError(path, f'the label "ignore" is the region {list(ignore)}', "give it one value, the highest")
        foreground = {name: value for name, value in values.items() if name not in ("background", "ignore")}
        labels = cls(foreground, ignore, None)
        _require_distinct(foreground, path)
        _require_consecutive(labels, path)
        if not labels.has_regions:
            return labels
        return cls(foreground, ignore, _class_order(content, labels, path))

    @property
    def values(self) -> tuple[int, ...]:
        """Every value that a label file may hold, ascending, with background and ignore."""
        known = {0} | ({self.ignore} if self.ignore is not None else set())
        for value in self.foreground.values():
            known.update(value if isinstance(value, tuple) else (value,))
        return tuple(sorted(known))

    @property
    def stored_as(self) -> Literal["uint8", "uint16"]:
        """The number type of segmentations, as nnU-Net chooses it."""
        return "uint8" if self.values[-1] < 255 else "uint16"

    @property
    def num_classes(self) -> int:
        """Channels of a network's logits: one per region, or else one per label and one for the background."""
        return len(self.foreground) + (not self.has_regions)

    @property
    def has_regions(self) -> bool:
        """Whether any label is a union of several values, so that labels may overlap."""
        return any(isinstance(value, tuple) for value in self.foreground.values())


def _refuse_swapped(table: dict[str, Any], path: Path) -> None:
    """nnU-Net v1 and the Decathlon write ``{"0": "background"}``."""
    if all(key.isdigit() for key in table) and all(isinstance(name, str) for name in table.values()):
        turned = ", ".join(f'"{name}": {value}' for value, name in table.items())
        what = '"labels" maps values to names, as nnU-Net v1 and the Decathlon do'
        raise UserError(path, what, f'turn it round: "labels": {{{turned}}}')


def _value(name: str, entry: Any, path: Path) -> int | tuple[int, ...]:
    """A single value, or the values of a region (sorted; a list of one value is that value)."""
    members = entry if isinstance(entry, list) else [entry]
    if not members or not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in members):
        what = f'the label "{name}" is {entry!r}'
        raise UserError(
            path, what, "write a whole number without quotes, 0 or more, or a list of such numbers (a region)"
        )
    unique = tuple(sorted(set(members)))
    return unique if len(unique) > 1 else members[0]


def _require_distinct(foreground: dict[str, int | tuple[int, ...]], path: Path) -> None:
    first: dict[int | tuple[int, ...], str] = {0: "background"}
    for name, value in foreground.items():
        if value in first:
            what = f'the labels "{first[value]}" and "{name}" are both {value}'
            raise UserError(path, what, "give every label its own value")
        first[value] = name
    if not foreground:
        raise UserError(path, '"labels" names nothing but background', "add the label to segment")


def _require_consecutive(labels: Labels, path: Path) -> None:
    others = Labels(labels.foreground, None, None).values
    if labels.ignore is not None and labels.ignore < others[-1]:
        what = f'the label "ignore" is {labels.ignore}, but the highest other label is {others[-1]}'
        raise UserError(path, what, "give ignore the highest value, one above the others, in the label files too")
    if others != tuple(range(len(others))):
        what = f"the label values {list(others)} are not consecutive"
        raise UserError(path, what, "number the labels 0, 1, 2, ... without a gap, in the label files too")
    if labels.ignore is not None and labels.ignore != others[-1] + 1:
        what = f'the label "ignore" is {labels.ignore}, but the highest other label is {others[-1]}'
        raise UserError(path, what, f'make it the highest by one, "ignore": {others[-1] + 1}, in the label files too')


def _class_order(content: dict[str, Any], labels: Labels, path: Path) -> tuple[int, ...]:
    order = content.get("regions_class_order")
    names = ", ".join(labels.foreground)
    remedy = f"list one label value for each of {names}, in this order: the value that it writes, later over earlier"
    if not isinstance(order, list):
        found = "there is no" if order is None else f"{order!r} is no list for"
        raise UserError(path, f'"labels" has regions but {found} "regions_class_order"', remedy)
    if len(order) != len(labels.foreground):
        what = f'"regions_class_order" has {len(order)} entries for {len(labels.foreground)} regions'
        raise UserError(path, what, remedy)
    unknown = [value for value in order if value not in labels.values or value in (0, labels.ignore)]
    if unknown:
        raise UserError(path, f'"regions_class_order" holds {unknown}, which are no foreground values', remedy)
    return tuple(order)
