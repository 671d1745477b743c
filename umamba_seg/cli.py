"""The command line: each verb stands, with its arguments, in :mod:`umamba_seg.verbs`."""

from __future__ import annotations

import argparse

import umamba_seg
from umamba_seg.verbs.about import add_info, add_quickstart
from umamba_seg.verbs.check import add_check
from umamba_seg.verbs.compare import add_compare
from umamba_seg.verbs.convert import add_convert
from umamba_seg.verbs.cost import add_cost, add_networks
from umamba_seg.verbs.ensemble import add_ensemble
from umamba_seg.verbs.evaluate import add_evaluate
from umamba_seg.verbs.find_best import add_find_best
from umamba_seg.verbs.instances import add_instances
from umamba_seg.verbs.plan import add_plan, add_plan_and_preprocess
from umamba_seg.verbs.postprocess import add_postprocess
from umamba_seg.verbs.predict import add_predict
from umamba_seg.verbs.reproduce import add_reproduce
from umamba_seg.verbs.train import add_extend, add_train

_VERBS = (
    add_convert,
    add_check,
    add_plan_and_preprocess,
    add_plan,
    add_train,
    add_extend,
    add_find_best,
    add_predict,
    add_ensemble,
    add_postprocess,
    add_instances,
    add_evaluate,
    add_compare,
    add_reproduce,
    add_quickstart,
    add_networks,
    add_cost,
    add_info,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``umamba-seg``. Building it loads neither torch nor nnunetv2."""
    parser = argparse.ArgumentParser(
        prog="umamba-seg",
        description="Self-configuring medical image segmentation with Mamba networks.",
        epilog="umamba-seg VERB --help tells more. A first try: umamba-seg quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"umamba-seg {umamba_seg.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in _VERBS:
        add(verbs)
    return parser
