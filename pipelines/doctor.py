"""What this machine has of what vqbank needs: libraries, devices, decoders, disk, weights."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from vqbank.store.errors import VqbankError

EXTRAS = ("extract", "remote", "quantised", "tensorboard", "parquet", "cluster")
"""What can be installed beside the base, as `pip install 'vqbank[extract]'`."""
BASE = "base"


def examined(folder: Path) -> dict[str, Any]:
    """Everything that `doctor` tells, as JSON values.

    Args:
        folder: whose disk is looked at.
    """
    packages = _packages()
    return {
        "system": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
        },
        "packages": packages,
        "devices": _devices(),
        "decoders": _decoders(),
        "disk": _disk(folder),
        "recipes": _recipes(),
    }


def problems(found: dict[str, Any]) -> list[str]:
    """What keeps vqbank, or what is installed of an extra, from working; a line each.

    An extra of which nothing is there is none: who trains heads on a laptop needs no decoder.
    """
    lines = []
    for extra, packages in found["packages"].items():
        missing = [
            f"{name} {own['wanted']}" + (f" (there is {own['version']})" if own["version"] else "")
            for name, own in packages.items()
            if not own["fits"]
        ]
        if missing and (extra == BASE or len(missing) < len(packages)):
            what = "vqbank" if extra == BASE else f"vqbank[{extra}]"
            lines.append(f"missing: {', '.join(missing)}; `pip install '{what}'`")
    decoders = found["decoders"]
    extracts = any(own["version"] for own in found["packages"]["extract"].values())
    if extracts and not decoders["pyav"]["version"]:
        lines.append(f"the decoder pyav does not load: {decoders['pyav']['why_not']}")
    lines += [f"{one['what']}: {one['why']}" for one in found["disk"] if one["why"]]
    return lines


def _packages() -> dict[str, dict[str, dict[str, Any]]]:
    """By extra and name: what is wanted, what there is, and whether it fits."""
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in (BASE, *EXTRAS)}
    for line in requires("vqbank") or []:
        wanted = Requirement(line)
        for extra in found:
            asked = "" if extra == BASE else extra
            of_base = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if of_base != (extra == BASE):
                continue
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": asked}):
                continue
            own = _version(wanted.name)
            found[extra][wanted.name] = {
                "wanted": str(wanted.specifier),
                "version": own,
                "fits": bool(own) and wanted.specifier.contains(own, prereleases=True),
            }
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [{"name": "cpu", "what": platform.machine()}]
    for number in range(torch.cuda.device_count()):
        own = torch.cuda.get_device_properties(number)
        memory = round(own.total_memory / 1e9, 1)
        found.append({"name": f"cuda:{number}", "what": own.name, "memory_gb": memory})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "what": "Apple GPU"})
    return found


def _decoders() -> dict[str, Any]:
    """Of each decoder its version, or why it does not load; and PyAV's codecs."""
    try:
        from vqbank.extractors.video import availability
    except ModuleNotFoundError as error:  # PyAV itself, which probes every video
        return {"pyav": {"version": "", "why_not": f"no module {error.name}"}}
    states = availability.decoder_states()
    found: dict[str, Any] = {
        name: {"version": own, "why_not": why} for name, (own, why) in states.items()
    }
    found["libavcodec"] = availability.ffmpeg_version()
    found["codecs"] = availability.codec_states()
    return found


def _disk(folder: Path) -> list[dict[str, Any]]:
    """Free space of this folder and of where weights lie, and whether these can be written."""
    from vqbank.extractors.weights import weights_folder

    places: list[tuple[str, Path | None, str]] = [("this folder", folder.absolute(), "")]
    try:
        places.append(("weights", weights_folder(), ""))
    except VqbankError as error:
        places.append(("weights", None, str(error)))
    found = []
    for what, place, why in places:
        there = place
        while there is not None and not there.exists():
            there = there.parent
        free = None if there is None else round(shutil.disk_usage(there).free / 1e9, 1)
        if there is not None and not os.access(there, os.W_OK):
            why = f"{there} cannot be written"
        path = None if place is None else str(place)
        found.append({"what": what, "path": path, "free_gb": free, "why": why})
    return found


def _recipes() -> dict[str, Any]:
    """By name: weights that are not here, or why that cannot be told."""
    from vqbank.pipelines.missing import missing_weights
    from vqbank.pipelines.recipe import read_recipe, shipped_recipes

    found: dict[str, Any] = {}
    for name in shipped_recipes():
        try:
            found[name] = {"missing_weights": missing_weights(read_recipe(name))}
        except (VqbankError, ModuleNotFoundError) as error:
            found[name] = {"missing_weights": None, "why_not": str(error)}
    return found
