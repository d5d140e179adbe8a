"""Scores of videos by a shipped head: which videos, from which bank, and what came of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.log import log
from vqbank.pipelines.runs.asked import check_device, device_of
from vqbank.pipelines.sources import check_sources, labels_of, videos_to_score
from vqbank.store.errors import HeadError, RecipeError
from vqbank.store.schema import Video
from vqbank.store.words import counted

if TYPE_CHECKING:
    import torch

    from vqbank.pipelines.extraction.extract import Extraction
    from vqbank.pipelines.extraction.one_video import Outcome
    from vqbank.pipelines.over_time import Moments
    from vqbank.pipelines.predict import Scorer
    from vqbank.regressors.metrics import QualityMetrics
    from vqbank.store.bank import FeatureStore


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """What came of scoring videos."""

    videos: tuple[Video, ...]
    """Those that have a score, in the order in which they were named."""
    scores: NDArray[np.float64]
    """[n], on the scale of the scores that the head was trained on."""
    failed: tuple[Video, ...] = ()
    """Those that have none, because a feature of them cannot be computed."""
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Why, by the id of the banked video and the feature's key."""
    beside: "tuple[dict[str, float], ...]" = ()
    """What is told of each score, as far as the head's card knows: `percentile`, how many per cent
    of the training scores are lower; `low` and `high`, the ends of a range that holds 90 % of the
    head's errors on videos that it had not seen."""
    moments: "tuple[Moments, ...]" = ()
    """Of each video, where they are asked for: the scores of its seconds."""
    places: NDArray[np.float64] | None = None
    """[n, g, g], where they are asked for: the scores of g x g places of each video."""
    random_weights: bool = False
    """Whether a feature of the head comes from weights that nobody trained: then these scores say
    nothing."""

    @property
    def by_id(self) -> dict[str, float]:
        """The score of each video by its id."""
        ids = [video.id for video in self.videos]
        return dict(zip(ids, self.scores.tolist(), strict=True))

    @property
    def agreement(self) -> "QualityMetrics | None":
        """How well scores agree with those that people gave; None where fewer than two are."""
        from vqbank.regressors.metrics import quality_metrics

        mos = np.array([np.nan if v.mos is None else v.mos for v in self.videos], np.float64)
        rated = np.isfinite(mos)
        return quality_metrics(mos[rated], self.scores[rated]) if rated.sum() > 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class PredictPlan:
    """What is to be scored by which head; no backbone is loaded yet."""

    scorer: "Scorer"
    store: "FeatureStore"
    wanted: Sequence[Video]
    """Videos as they were named."""
    banked: Sequence[Video]
    """The same, each under the id that the bank has it by."""
    device: "torch.device"
    extraction: "Extraction | None"
    """What has to run before scores can be had; None where only what is banked is scored."""

    @classmethod
    def of(
        cls,
        head: Path,
        sources: Sequence[Path],
        *,
        bank: Path | None,
        weights: Mapping[str, str],
        device: str,
        score: str | None,
    ) -> "PredictPlan":
        """Load a head and look up what it is to score.

        Args:
            head: a folder that `train` wrote.
            sources: videos, folders and manifests, or one label file.
            bank: where features are kept; None for one in the user's cache.
            weights: local files by extractor, where the published name does not do.
            device: of the networks.
            score: the column of a label file that is the MOS.

        Raises:
            VqbankError: as `predict`.
        """
        check_head(head)
        check_sources(sources, from_bank=bank is not None)
        check_device(device)
        labels = labels_of(sources, score=score)
        videos = [] if labels is not None else list(videos_to_score(sources))
        import platformdirs  # and what takes seconds

        from vqbank.pipelines.experiments.rated import banked_videos
        from vqbank.pipelines.predict import Scorer
        from vqbank.store.bank import FeatureStore
        from vqbank.store.files import allow_open_files

        allow_open_files()
        scorer = Scorer(head, weights=weights)
        why = scorer.only_banked
        if why and bank is None:
            raise RecipeError(f"{head} {why}: name the bank that has them, by --bank")
        if bank is not None and (why or labels is not None):
            store = FeatureStore(bank)
        else:
            cache = platformdirs.user_cache_path("vqbank") / "predicted"
            store = FeatureStore.create(bank or cache)
        if why:
            log.info("%s %s: only what %s holds is scored", head, why, bank)
        if scorer.card["random_weights"]:
            log.warning("this head was trained on features of RANDOM weights")
        on = device_of(device)
        if labels is not None:
            rows = banked_videos(labels, store, list(scorer.head.specs_.values()))
            return cls(scorer, store, rows, rows, on, None)
        banked = scorer.as_banked(videos, store)
        _tell_taken(videos, banked, store)
        extraction = None if why else scorer.extraction(banked, store, device=on)
        return cls(scorer, store, videos, banked, on, extraction)

    def extract(
        self, watch: "Callable[[Outcome], None] | None" = None
    ) -> dict[str, dict[str, str]]:
        """Bank what is missing; gives why videos failed, by their ids and the features' keys.

        Args:
            watch: told of every video, when its fate is known.

        Raises:
            VqbankError: as `Extraction.run`.
        """
        reasons: dict[str, dict[str, str]] = {}
        if self.extraction is None:
            return reasons
        with closing(self.extraction.run()) as outcomes:  # `watch` may raise
            for outcome in outcomes:
                if outcome.failures:
                    reasons[outcome.video.id] = dict(outcome.failures)
                if watch is not None:
                    watch(outcome)
        return reasons

    def scored(
        self,
        reasons: Mapping[str, Mapping[str, str]],
        *,
        over_time: bool = False,
        places: bool = False,
    ) -> Predicted:
        """The scores of what is banked now.

        Args:
            reasons: of which videos of the extraction failed, by their ids.
            over_time: whether seconds of every video are scored too.
            places: whether places are.

        Raises:
            HeadError: if the card of the head is damaged.
        """
        random = bool(self.scorer.card["random_weights"])
        pairs = list(zip(self.wanted, self.banked, strict=True))
        done = [(video, own) for video, own in pairs if own.id not in reasons]
        failed = tuple(video for video, own in pairs if own.id in reasons)
        if not done:
            return Predicted((), np.empty(0), failed, reasons, random_weights=random)
        from vqbank.pipelines.standing import Standing

        banked = [own for _, own in done]
        scores = self.scorer.scores(banked, self.store, device=self.device)
        standing = Standing.of(self.scorer.card)
        moments = self.scorer.moments(banked, self.store, device=self.device) if over_time else []
        local = self.scorer.places(banked, self.store, device=self.device) if places else None
        seen = self.scorer.card.get("trained_on")  # not of published weights
        if seen is not None and seen["lowest"] is None:  # by a head that learnt from no scores
            seen = None
        for (video, _), score in zip(done, scores, strict=True):
            if seen is not None and not seen["lowest"] <= score <= seen["highest"]:
                log.warning(
                    "%s: %.4g lies outside the training scores (%.4g to %.4g)",
                    video.id, score, seen["lowest"], seen["highest"],
                )  # fmt: skip
        videos = tuple(video for video, _ in done)
        beside = tuple(standing.beside(float(score)) for score in scores)
        return Predicted(videos, scores, failed, reasons, beside, tuple(moments), local, random)


def predict(
    head: Path | str,
    videos: Path | str | Sequence[Path | str],
    *,
    bank: Path | str | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    score: str | None = None,
    over_time: bool = False,
    places: bool = False,
    watch: "Callable[[Outcome], None] | None" = None,
) -> Predicted:
    """Score videos with a shipped head; banks the features that it computes.

    Args:
        head: a folder that `train` wrote.
        videos: a video, a folder of videos, a manifest (.csv), or several; or, with `bank`, one
            label file, whose videos are found there.
        bank: where features are kept (default: a bank in the user's cache).
        weights: local files by extractor, where the published name does not do.
        device: "cpu", "cuda", "cuda:1", ...
        score: the column of a label file that is the MOS, where it has several.
        over_time: whether the seconds of every video are scored too, as `moments`.
        places: whether the places of every video are, by a head that looks at some (`ram`,
            `mapnet`), as `places`.
        watch: told of every video whose features are computed, when its fate is known.

    Returns:
        Scores by video, and which videos have none and why.

    Raises:
        HeadError: if the folder holds no head, or a head that this vqbank cannot feed, or places
            are asked of one that looks at none.
        ManifestError: if a video, folder or manifest is not there or cannot be read.
        RecipeError: if a label file, or a head on features that nobody can make anew, is given
            without a bank.
        WeightsError: if weights are not at hand.
        MissingFeatureError: if a video is not banked, and cannot be extracted.
        ChangedVideoError: if another file is banked under the id of a video.

    Example:
        >>> predicted = vqbank.predict("head", "clips", bank="bank")
        >>> len(predicted.by_id), predicted.scores.shape
        (12, (12,))
    """
    given = [videos] if isinstance(videos, str | Path) else videos
    plan = PredictPlan.of(
        Path(head),
        [Path(one) for one in given],
        bank=None if bank is None else Path(bank),
        weights=weights or {},
        device=device,
        score=score,
    )
    if places:
        plan.scorer.check_places()
    return plan.scored(plan.extract(watch), over_time=over_time, places=places)


def check_head(folder: Path) -> None:
    """Refuse what holds no head, before anything that takes seconds is imported.

    Raises:
        HeadError: if it is no folder, or has no card.
    """
    if not any((folder / card).is_file() for card in ("card.yaml", "card.json")):
        if folder.is_file():
            raise HeadError(
                f"{folder} is a file and no head: the head's folder comes first, and the videos "
                "after it: vqbank predict HEAD VIDEOS"
            )
        why = "no such folder" if not folder.exists() else "it has no card.yaml"
        raise HeadError(
            f"{folder} holds no head: {why}; `vqbank train -o HEAD` writes one, and its folder "
            "comes before the videos"
        )


def _tell_taken(wanted: Sequence[Video], banked: Sequence[Video], store: "FeatureStore") -> None:
    """Which videos a bank has under other ids."""
    others = [(v.id, b.id) for v, b in zip(wanted, banked, strict=True) if v.id != b.id]
    if others:
        are = "is" if len(wanted) == 1 else "are"
        log.info(
            "%d of %s %s in %s under another id, byte for byte, and what is banked is taken: "
            "%s is %s%s",
            len(others), counted(len(wanted), "video"), are, store.path, *others[0],
            ", ..." if len(others) > 1 else "",
        )  # fmt: skip
