"""The networks and what they cost."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING

from umamba_seg import paths
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import CONFIGURATIONS, add_common, add_dataset, add_device, device_of, positive

if TYPE_CHECKING:
    from umamba_seg.networks import NetworkSpec
    from umamba_seg.plan.step import Setting


def networks(args: Namespace) -> list[dict]:
    from umamba_seg.cost import overview, overview_as_text

    found = overview()
    if not args.json:
        print(overview_as_text(found))
    return found


def cost(args: Namespace) -> dict:
    from umamba_seg.networks import find

    network = find(args.network)
    _require_one_setting(args)
    setting = _patch_setting(args, network) if args.d is None else _planned_setting(args)
    from umamba_seg.cost import as_text, card

    facts = card(network, setting, device_of(args.device))
    if not args.json:
        print(as_text(facts))
    return facts


def _require_one_setting(args: Namespace) -> None:
    """Either a planned data set or a patch, and nothing that belongs to the other."""
    of_plans = {"-d": args.d, "-c": args.c, "-p": args.p, "--root": args.root}
    of_patch = {
        "--patch": args.patch,
        "--channels": args.channels,
        "--classes": args.classes,
        "--batch": args.batch,
        "--features": args.features,
    }
    plans, patch = ([name for name, value in group.items() if value is not None] for group in (of_plans, of_patch))
    if plans and patch:
        raise UserError("cost", f"{plans[0]} and {patch[0]} exclude each other", "give -d and -c, or --patch")
    if not {"-d", "-c"} <= set(plans) and "--patch" not in patch:
        raise UserError(
            "cost", "not told on what", "give -d DATASET and -c CONFIGURATION, or --patch VOXELS VOXELS VOXELS"
        )


def _patch_setting(args: Namespace, network: NetworkSpec) -> Setting:
    from umamba_seg.plan.topology import topology_for
    from umamba_seg.text import times

    network.require_dims(len(args.patch))
    topology = topology_for(args.patch, base_features=args.features or 32)
    if topology.patch_size != tuple(args.patch):
        logger.info("patch: rounded up to %s, as nnU-Net does", times(topology.patch_size))
    from umamba_seg.plan.step import Setting

    return Setting(topology, args.channels or 1, args.classes or 2, args.batch or 2)


def _planned_setting(args: Namespace) -> Setting:
    from umamba_seg.plan.plans import read_plans, require_configuration, require_network

    folders = paths.resolve(args.root)
    preprocessed = folders.preprocessed / folders.dataset_name(args.d)
    plans = read_plans(preprocessed, args.p)
    require_configuration(plans, args.c)
    require_network(plans["configurations"][args.c], f"-c {args.c}")
    from umamba_seg.cost import planned_setting

    return planned_setting(preprocessed, plans, args.c)


def add_networks(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("networks", help="list the networks: dimensions, parameters, paper", allow_abbrev=False)
    add_common(parser)
    parser.set_defaults(run=networks)


def add_cost(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "cost",
        help="what a network costs to train, beside its twin without the scan and nnU-Net's ResEnc baseline",
        allow_abbrev=False,
    )
    parser.add_argument("network", metavar="NAME", help="as `umamba-seg networks` lists them")
    of_plans = parser.add_argument_group("for a data set that is planned")
    add_dataset(of_plans, required=False)
    of_plans.add_argument("-c", choices=CONFIGURATIONS, help="configuration")
    of_plans.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")
    of_patch = parser.add_argument_group("or for a patch alone, with the depth that nnU-Net would plan")
    of_patch.add_argument("--patch", type=positive, nargs="+", metavar="VOXELS", help="extent, e.g. 128 128 128")
    of_patch.add_argument("--channels", type=positive, metavar="N", help="of the input (default: 1)")
    of_patch.add_argument("--classes", type=positive, metavar="N", help="background included (default: 2)")
    of_patch.add_argument("--batch", type=positive, metavar="N", help="samples of a training step (default: 2)")
    of_patch.add_argument("--features", type=positive, metavar="N", help="channels of the first stage (default: 32)")
    add_device(parser)
    add_common(parser)
    parser.set_defaults(run=cost)
