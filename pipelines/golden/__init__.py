"""Golden fixtures: our networks, rules and heads against what official code computes.

One player per fixture name; the fixture's letter chooses the input, and lengths and sizes are read
from the fixture, so that a player plays inputs that nobody has seen.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vqbank.pipelines.golden.adapters import play_coop_text, play_ksvqe_adapter
from vqbank.pipelines.golden.brisque import play_brisque_protocol
from vqbank.pipelines.golden.clip import play_clip_b32_tokens, play_liqe_495
from vqbank.pipelines.golden.dvlta import play_cbam, play_tadaconv2d
from vqbank.pipelines.golden.fastvqa import play_fastvqa_b, play_fastvqa_sampling, play_fragments
from vqbank.pipelines.golden.fixture import Check, Fixture, Player, name_and_letter, outputs
from vqbank.pipelines.golden.interaction import play_vrt_tmsa, play_xclip_cct
from vqbank.pipelines.golden.key_frames import play_rqvqa_keyframes
from vqbank.pipelines.golden.maxvqa import play_maxvqa_ema, play_maxvqa_fusion
from vqbank.pipelines.golden.metrics import play_metrics, play_rqvqa_loss_metrics
from vqbank.pipelines.golden.motion_blocks import play_slowfast_indices, play_slowfast_motion
from vqbank.pipelines.golden.pe import play_pe_core_l14, play_pe_core_l14_qclip_rope
from vqbank.pipelines.golden.qalign import play_qalign
from vqbank.pipelines.golden.qclip import (
    play_qclip_head,
    play_qclip_losses_schedule,
    play_qclip_train,
)
from vqbank.pipelines.golden.real_basic_vsr import play_realbasicvsr
from vqbank.pipelines.golden.resnets import (
    play_resnet50_hierarchy,
    play_unique_resnet34,
    play_vsfa_resnet50,
)
from vqbank.pipelines.golden.slowfast import play_slowfast_fast256
from vqbank.pipelines.golden.swin import play_swin
from vqbank.pipelines.golden.vificlip import play_vificlip
from vqbank.pipelines.golden.vsfa import play_hysteresis, play_vsfa_head
from vqbank.store.errors import VqbankError

PLAYERS: dict[str, Player] = {
    "brisque_protocol": play_brisque_protocol,
    "cbam": play_cbam,
    "clip_b32_tokens": play_clip_b32_tokens,
    "coop_text": play_coop_text,
    "fastvqa_b": play_fastvqa_b,
    "fastvqa_sampling": play_fastvqa_sampling,
    "fragments": play_fragments,
    "hysteresis": play_hysteresis,
    "ksvqe_adapter": play_ksvqe_adapter,
    "liqe_495": play_liqe_495,
    "maxvqa_ema": play_maxvqa_ema,
    "maxvqa_fusion": play_maxvqa_fusion,
    "metrics": play_metrics,
    "pe_core_l14": play_pe_core_l14,
    "pe_core_l14_qclip_rope": play_pe_core_l14_qclip_rope,
    "qalign_tiny": play_qalign,
    "qclip_head": play_qclip_head,
    "qclip_losses_schedule": play_qclip_losses_schedule,
    "qclip_train": play_qclip_train,
    "realbasicvsr": play_realbasicvsr,
    "resnet50_hierarchy": play_resnet50_hierarchy,
    "rqvqa_keyframes": play_rqvqa_keyframes,
    "rqvqa_loss_metrics": play_rqvqa_loss_metrics,
    "slowfast_fast256": play_slowfast_fast256,
    "slowfast_indices": play_slowfast_indices,
    "slowfast_motion": play_slowfast_motion,
    "swin_base_mhsa": play_swin,
    "tadaconv2d": play_tadaconv2d,
    "unique_resnet34": play_unique_resnet34,
    "vificlip": play_vificlip,
    "vrt_tmsa": play_vrt_tmsa,
    "vsfa_head": play_vsfa_head,
    "vsfa_resnet50": play_vsfa_resnet50,
    "xclip_cct": play_xclip_cct,
}

INFORMATIVE: dict[str, tuple[str, ...]] = {
    # Of mosaics from enlarged frames, which may be a grey level off; others are compared.
    "fastvqa_sampling": (r"\d+x\d+\.u8\.sha256",),
    "fragments": (r"\d+x\d+(_fixed)?_u8_sha256",),
    # What official code loses to single precision; its NaN for scores above 104, ours is right.
    "hysteresis": (r"\w+_tp32",),
    # Of constant predictions, whose correlation counts as 0 here and not in official code.
    "maxvqa_ema": (r"const_plcc_loss\w*",),
    # The logistic's parameters, whose signs the fit leaves open.
    "metrics": (r"\w+_popt",),
    # Of constant predictions, whose correlation counts as 0 here and not in official code.
    "qclip_head": ("loss_plcc_const",),
    # The same, and of one video, for which a correlation is refused here; what a loss gives for
    # series that official code takes for others; a mapping that `metrics` plays; two lengths.
    "qclip_losses_schedule": (r"(const|n1)_\w+", r"\w+_(rank_1d|rescale|warmup_total)"),
    # Of the whole resized picture, of which ours is the square in the middle.
    "rqvqa_keyframes": (r"pixels_\d+x\d+\.resized_(u8_stride|u8\.sha256|mean_std)",),
    # The input of `ntire`; what the official standardising makes of no spread, ours counts as 0.
    "rqvqa_loss_metrics": (r"ntire_example\.\w+", r"plcc_loss\.constant_\w+"),
    # Compared where VSFA's weights are at hand, which are not kept here.
    "vsfa_head": (r"real_\w+",),
    # Of windows of space, which heads on tokens have none of; what position terms are made of.
    "vrt_tmsa": (r"spatial_\w+", r"tokens_(position_bias|rel_index)"),
    # How far two ways are apart that are the same on paper.
    "slowfast_fast256": ("fast_only_max_abs_diff",),
}
"""By fixture, the keys of its npz, as regular expressions, that are not results: inputs, settings,
and what the recipe asks nothing of.  Any other key has to be compared."""

# What Python, NumPy and torch say where a fixture has other entries or shapes than are read.
_ASTRAY = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Played(NamedTuple):
    """What became of one fixture."""

    name: str
    letter: str
    checks: tuple[Check, ...] = ()
    """Empty where there is no player."""
    fault: str = ""
    """Why playing ended early, if it did."""
    left: tuple[str, ...] = ()
    """Keys of the npz that were not compared and that INFORMATIVE does not name."""

    @property
    def verdict(self) -> str:
        """ "pass", "fail" or "not played"."""
        if self.name not in PLAYERS and not self.fault:
            return "not played"
        passed = self.checks and all(check.passed for check in self.checks)
        return "pass" if passed and not self.fault and not self.left else "fail"

    @property
    def worst(self) -> Check | None:
        """The output whose error is largest against its tolerance; None where none was compared."""
        compared = [check for check in self.checks if check.what != "keys"]
        return max(compared, key=lambda check: (check.excess, check.error), default=None)


def play(folder: Path) -> Iterator[Played]:
    """Play every fixture of a folder, one after the other; code in the folder is never run.

    Raises:
        GoldenError: if the folder has none.
    """
    for output in outputs(folder):
        yield play_one(output)


def play_one(output: Path) -> Played:
    """Play the fixture of one `NAME.LETTER.npz`; whatever goes wrong is a fault of this fixture."""
    name, letter = name_and_letter(output)
    checks: list[Check] = []
    fault = ""
    left: tuple[str, ...] = ()
    recipe = output.with_name(f"{name}.json")
    if not recipe.exists():
        return Played(name, letter, fault=f"there is no {recipe.name} beside {output.name}")
    if name not in PLAYERS:
        return Played(name, letter)
    try:
        fixture = Fixture.read(output)
        checks.extend(PLAYERS[name](fixture))
        compared = {check.what for check in checks}
        known = "|".join(INFORMATIVE.get(name, ()))
        left = tuple(
            key for key in fixture.expected if key not in compared and not re.fullmatch(known, key)
        )
    except VqbankError as error:
        fault = str(error)
    except ModuleNotFoundError as error:
        fault = f"{error.name} is not installed; extraction needs `pip install 'vqbank[extract]'`"
    except _ASTRAY as error:
        fault = f"{type(error).__name__}: {error}"
    return Played(name, letter, tuple(checks), fault, left)
