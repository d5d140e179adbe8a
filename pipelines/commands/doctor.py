"""What this machine has and lacks: `doctor`."""

from pathlib import Path
from typing import Any

import typer

from vqbank.pipelines.commands.options import AsJson
from vqbank.pipelines.terminal import say, say_lines


def doctor(
    as_json: AsJson = False,
) -> None:
    """Say what this machine has of what vqbank needs; exit code 1 where something is to mend."""
    import json

    from vqbank.pipelines.doctor import examined, problems

    found = examined(Path())
    wrong = problems(found)
    if as_json:
        say_lines(json.dumps({**found, "problems": wrong}, indent=2))
    else:
        _show(found)
        for line in wrong:
            say(f"problem: {line}", err=True)
        say("nothing to mend" if not wrong else f"{len(wrong)} to mend", err=True)
    raise typer.Exit(1 if wrong else 0)


def _show(found: dict[str, Any]) -> None:
    system = found["system"]
    say(f"Python {system['python']} on {system['platform']}, cores: {system['cores']}")
    for extra, packages in found["packages"].items():
        lacking = [name for name, own in packages.items() if not own["fits"]]
        state = f"without {', '.join(lacking)}" if lacking else "complete"
        say(f"packages, {extra}: {len(packages) - len(lacking)} of {len(packages)}, {state}")
    for device in found["devices"]:
        memory = f", {device['memory_gb']} GB" if "memory_gb" in device else ""
        say(f"device {device['name']}: {device['what']}{memory}")
    decoders = dict(found["decoders"])
    codecs, library = decoders.pop("codecs", {}), decoders.pop("libavcodec", "")
    for name, own in decoders.items():
        say(f"decoder {name}: {own['version'] or 'not usable, ' + own['why_not']}")
    if codecs:
        lacking = [name for name, there in codecs.items() if not there]
        there = [name for name, there in codecs.items() if there]
        more = f"; not {', '.join(lacking)}" if lacking else ""
        say(f"libavcodec {library} decodes {', '.join(there)}{more}")
    for place in found["disk"]:
        say(f"disk, {place['what']}: {place['free_gb']} GB free in {place['path']}")
    ready = [name for name, own in found["recipes"].items() if own["missing_weights"] == []]
    say(f"recipes with all weights here: {', '.join(ready) or 'none'}")
    for name, own in found["recipes"].items():
        if own["missing_weights"]:
            say(f"  {name} lacks {', '.join(own['missing_weights'])}")
        elif own["missing_weights"] is None:
            say(f"  {name}: {own['why_not']}")
