"""Networks against peers and themselves: `python benchmarks/networks.py`, random weights.

Both sides of a ratio run in turn in every round; medians over rounds.  The last table shows, for
every network, how many clips a second it computes in batches of 1, 2, 4, ... and which batch is its
own (`batch_clips`): that must reach 0.95 of the best.
"""

import argparse
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vqbank.extractors import make_extractor
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import ClipView

# Of official size with random weights, where nothing else is said.
NETWORKS: dict[str, dict[str, Any]] = {
    "clip": {},
    "liqe": {},
    "fastvqa": {},
    "slowfast": {},
    "swin": {},
    "semantic": {},
    "quality": {},
    "qalign": {"weights": "random-tiny"},  # else 33 GB
    "iqa": {"metric": "cnniqa"},
    "backbone": {},
}
CPU = torch.device("cpu")
SIZES = [1, 2, 4, 8]
LEAST_SECONDS = 0.5
Line = tuple[str, str, list[float], bool]


def seconds(call: Callable[[], object]) -> float:
    with torch.inference_mode():
        begun = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def ratios(theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> list[float]:
    seconds(theirs)
    seconds(ours)
    return [seconds(theirs) / seconds(ours) for _ in range(rounds)]


def line(what: str, goal: str, found: list[float]) -> Line:
    sign, limit = goal.split()
    median = statistics.median(found)
    good = median >= float(limit) if sign == ">=" else median <= float(limit)
    print(f"{what}: {median:.3g} ({goal}) {'met' if good else 'MISSED'}", flush=True)
    return what, goal, found, good


def frames(count: int, height: int, width: int, device: torch.device) -> Tensor:
    source = torch.Generator().manual_seed(0)
    size = (count, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=source).to(device)


def slowfast(rounds: int, device: torch.device) -> Line:
    fast = make_extractor("slowfast", weights="random")
    both = make_extractor("slowfast", weights="random", outputs=["slowfast"])
    clip = frames(32, 224, 224, device)[None]
    alone, whole = fast.build(device), both.build(device)
    found = ratios(lambda: whole(clip), lambda: alone(clip), rounds)
    return line("slowfast: both pathways / fast only", ">= 5", found)


def liqe(rounds: int, device: torch.device) -> Line:
    extractor = make_extractor("liqe", weights="random")
    embed = extractor.build(device)
    picture = frames(1, 1080, 1920, device)
    theirs = pyiqas_liqe().to(device)
    pixels = picture.float() / 255
    found = ratios(lambda: theirs(pixels), lambda: embed(extractor.view(picture)[:, None]), rounds)
    return line("liqe: pyiqa's module / ours, one 1080p frame", ">= 1", found)


def liqe_memory(_rounds: int, _device: torch.device) -> Line:
    """The largest allocation of any one operation; all squares of the frame would be 0.88 GB."""
    extractor = make_extractor("liqe", weights="random")
    embed = extractor.build(CPU)
    picture = frames(1, 1080, 1920, CPU)
    theirs = pyiqas_liqe()
    unfolded = largest_gigabytes(lambda: theirs(picture.float() / 255))
    found = largest_gigabytes(lambda: embed(extractor.view(picture)[:, None]))
    what = f"liqe: largest allocation in GB, one 1080p frame (pyiqa's module: {unfolded:.2f})"
    return line(what, "<= 0.1", [found])


def largest_gigabytes(call: Callable[[], object]) -> float:
    """Of memory that one operation of a call on the CPU allocates and does not give back itself."""
    from torch.profiler import ProfilerActivity, profile

    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        call()
    return max(event.self_cpu_memory_usage for event in profiled.events()) / 1e9


def pyiqas_liqe() -> torch.nn.Module:
    """With random weights, and so without its download; five random prompts."""
    # Its import of openai-clip needs a pkg_resources that is no more; only tokenizing would use it.
    imports: Any = types.ModuleType("pyiqa.archs.clip_imports")
    imports.clip = imports.SimpleTokenizer = None
    sys.modules["pyiqa.archs.clip_imports"] = imports
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyiqa.archs import clip_model, liqe_arch
    vision = (224, 12, 768, 32)
    network = clip_model.CLIP(512, *vision, 77, 49408, 512, 8, 12).float()
    liqe_arch.load = lambda *_: network
    with tempfile.TemporaryDirectory() as folder:
        liqe_arch.DEFAULT_CACHE_DIR = folder
        torch.save(torch.randn(5, 512), Path(folder) / "liqe_text_feat.pt")
        return liqe_arch.LIQE(pretrained=False).eval()


def fastvqa(rounds: int, device: torch.device) -> Line:
    from torchvision.models.video import swin3d_t

    ours = make_extractor("fastvqa", weights="random").build(device)
    theirs = swin3d_t().to(device).eval()
    clip = frames(32, 224, 224, device)[None]
    pixels = clip.transpose(1, 2).float()
    found = ratios(lambda: theirs(pixels), lambda: ours(clip), rounds)
    return line("fastvqa: torchvision's plain Video Swin / ours, one clip", ">= 1", found)


def clip(rounds: int, device: torch.device) -> Line:
    extractor = make_extractor("clip", weights="random")
    embed = extractor.build(device)
    pictures = frames(16, 224, 224, device)[:, None]
    size = extractor.batch_clips
    found = ratios(
        lambda: [embed(pictures[n : n + 1]) for n in range(16)],
        lambda: [embed(pictures[n : n + size]) for n in range(0, 16, size)],
        rounds,
    )
    return line(f"clip: one by one / in batches of {size}", ">= 1.2", found)


def batches(names: Sequence[str], rounds: int, device: torch.device) -> tuple[Table, list[Line]]:
    table = Table("network", "its batch", *(f"{size} a batch" for size in SIZES), "its / best")
    lines = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)  # as the engine does
    for name in names:
        extractor = make_extractor(name, **{"weights": "random", **NETWORKS[name]})
        compute = extractor.build(device)
        clips = one_clip(extractor, device)
        rates: dict[int, list[float]] = {size: [] for size in SIZES}
        seconds(lambda: compute(clips))
        # A batch of a small network is over sooner than what else a machine does in between.
        repeats = max(1, int(LEAST_SECONDS / seconds(lambda: compute(clips))))
        for _ in range(rounds):
            for size in SIZES:
                batch = clips.expand(size, *clips.shape[1:]).contiguous()
                count = max(1, repeats // size)
                spent = seconds(lambda: [compute(batch) for _ in range(count)])
                rates[size].append(size * count / spent)
        median = {size: statistics.median(found) for size, found in rates.items()}
        best = max(median.values())
        own = [rate / best for rate in rates[extractor.batch_clips]]
        shown = (f"{median[size]:.3g}/s" for size in SIZES)
        table.add_row(name, str(extractor.batch_clips), *shown, f"{statistics.median(own):.2f}")
        lines.append(line(f"{name}: its own batch / the best", ">= 0.95", own))
    torch.set_num_threads(threads)
    return table, lines


def one_clip(extractor: Any, device: torch.device) -> Tensor:
    """Of a made-up video of 720p."""
    import numpy as np

    timeline = Timeline(np.arange(50) / 25, 50, 25.0, "v", 720, 1280)
    first = extractor.sampling.clips(timeline).frames[0]
    view = (
        extractor.view.of_clip(timeline, 0)
        if isinstance(extractor.view, ClipView)
        else extractor.view
    )
    return view(frames(len(first), 720, 1280, device))[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="slowfast,liqe,liqe-memory,fastvqa,clip,batches")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of the last table")
    options = parser.parse_args()
    device = torch.device(options.device)
    known = {
        "slowfast": slowfast,
        "liqe": liqe,
        "liqe-memory": liqe_memory,
        "fastvqa": fastvqa,
        "clip": clip,
    }
    asked = options.only.split(",")
    lines = [known[name](options.rounds, device) for name in asked if name in known]
    console = Console(width=120)
    if "batches" in asked:
        table, more = batches(options.networks.split(","), min(3, options.rounds), device)
        lines += more
        console.print(table)
    table = Table("what", "goal", "median", "smallest", "largest", "")
    for what, goal, found, good in lines:
        cells = (f"{f(found):.3g}" for f in (statistics.median, min, max))
        table.add_row(what, goal, *cells, "met" if good else "MISSED")
    console.print(table)


if __name__ == "__main__":
    main()
