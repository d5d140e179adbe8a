"""What every head has to hold, as tests: the same bits twice, whole files, clear refusals."""

import re
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from vqbank.regressors import HEADS, load_head
from vqbank.regressors.base import Head
from vqbank.regressors.card import read_card
from vqbank.regressors.progress import Epoch
from vqbank.store.errors import HeadError, VqbankError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

SHAPES = {"spatial": (6,), "motion": (2, 2)}
"""Of one row, by role, in the tables of the contract."""


class HeadContract:
    """Subclass it, with a fixture `head` that gives the one that is meant.

    It is not fitted, has parameters that make it quick, two epochs or more if it has epochs, and
    stands in HEADS (of another package: by its entry point).  Copies of it are fitted on tables of
    two roles, `spatial` and `motion`; a head of features of its own overrides `table_of`.
    """

    def table_of(
        self, n: int, *, seed: int = 0, scenes: int | None = None
    ) -> tuple[FeatureTable, NDArray[np.float64]]:
        """n videos `set/0.mp4` and so on with their MOS [n], which their features hold.

        Args:
            n: videos.
            seed: of what they show.
            scenes: that videos take in turn; None, none has a scene.
        """
        return synthetic(n, seed=seed, scenes=scenes)

    @pytest.fixture
    def fitted(self, head: Head) -> Head:
        """The head, fitted on 60 videos."""
        copy: Head = clone(head)
        return copy.fit(*self.table_of(60))

    def test_it_stands_in_the_table_under_its_own_name(self, head: Head) -> None:
        assert HEADS[head.name] is type(head)
        assert isinstance(head, Head)

    def test_it_says_before_a_fit_what_it_will_hold_out_and_how_many_scenes_it_takes(
        self, head: Head, fitted: Head
    ) -> None:
        held = head.held_out(self.table_of(60)[0].videos)
        alike, mos = self.table_of(60, scenes=1)

        counts = fitted.record_.get("split", {}).get("held_out_videos", [])
        assert [int(mask.sum()) for mask in held] == counts
        assert bool(held) == head.has_epochs
        if head.has_epochs:
            with pytest.raises(HeadError):
                head.held_out(alike.videos)
        if head.has_epochs or head.least_scenes > 1:
            with pytest.raises(HeadError, match="scenes"):
                clone(head).fit(alike, mos)
        else:
            clone(head).fit(alike, mos)

    def test_fitting_twice_gives_the_same_bits(self, head: Head) -> None:
        table, mos = self.table_of(60)

        first, second = (clone(head).fit(table, mos).predict(table) for _ in range(2))

        assert first.dtype == np.float64
        assert first.shape == (60,)
        assert first.tobytes() == second.tobytes()

    def test_another_unit_of_the_mos_gives_the_same_ranking(self, head: Head) -> None:
        table, mos = self.table_of(60)

        stars, percent = clone(head).fit(table, mos), clone(head).fit(table, 1000 + 25 * mos)

        expected = 1000 + 25 * stars.predict(table)
        # Up to rounding, float32 and where a solver stops.
        np.testing.assert_allclose(percent.predict(table), expected, atol=0.02 * 25 * mos.std())

    def test_saving_and_loading_gives_the_same_bits(self, fitted: Head, tmp_path: Path) -> None:
        table, _ = self.table_of(20, seed=1)
        fitted.save(tmp_path / "some" / "folder")

        loaded = load_head(tmp_path / "some" / "folder")

        assert type(loaded) is type(fitted)
        assert loaded.predict(table).tobytes() == fitted.predict(table).tobytes()
        assert loaded.selection_ == fitted.selection_
        assert loaded.specs_ == fitted.specs_
        assert list(loaded.specs_) == list(fitted.specs_)
        assert repr(loaded.get_params()).translate(str.maketrans("[]", "()")) == repr(
            fitted.get_params()
        )  # JSON turns tuples into lists

    def test_a_saved_head_holds_no_pickle(self, fitted: Head, tmp_path: Path) -> None:
        fitted.save(tmp_path)

        for path in tmp_path.iterdir():
            assert path.suffix in {".yaml", ".skops", ".safetensors"}
            if path.suffix == ".skops":
                names = zipfile.ZipFile(path).namelist()
                assert {Path(name).suffix for name in names} == {".json", ".npy"}

    def test_a_card_tells_what_the_head_is_and_keeps_what_is_added(
        self, fitted: Head, tmp_path: Path
    ) -> None:
        fitted.save(tmp_path, {"score_name": "DMOS"})

        card = read_card(tmp_path)
        assert card["name"] == fitted.name
        assert card["keys"] == {role: spec.key for role, spec in fitted.specs_.items()}
        assert card["selection"] == fitted.selection_
        random = [spec.uses_random_weights for spec in fitted.specs_.values()]
        assert card["random_weights"] is any(random)
        assert card["score_name"] == "DMOS"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["card.yaml", card["model"]["file"]]
        )

    def test_cloning_forgets_what_was_learned_and_keeps_parameters(self, fitted: Head) -> None:
        copy = clone(fitted)

        assert copy.get_params() == fitted.get_params()
        with pytest.raises(HeadError, match="not fitted"):
            copy.predict(self.table_of(20)[0])
        with pytest.raises(HeadError, match="not fitted"):
            copy.save(Path("nowhere"))

    def test_predictions_do_not_depend_on_the_order_of_rows(self, fitted: Head) -> None:
        table, _ = self.table_of(30, seed=2)
        order = np.random.default_rng(0).permutation(30)

        np.testing.assert_allclose(
            fitted.predict(table.subset(order)), fitted.predict(table)[order], rtol=1e-5
        )

    def test_predictions_do_not_depend_on_company(self, fitted: Head) -> None:
        table, _ = self.table_of(30, seed=2)

        alone = [fitted.predict(table.subset([row]))[0] for row in range(30)]

        np.testing.assert_allclose(alone, fitted.predict(table), rtol=1e-5)

    def test_fitting_leaves_the_global_generators_alone(self, head: Head) -> None:
        numpy_before = np.random.get_state()  # noqa: NPY002  # what is looked at is the global one
        torch_before = torch.get_rng_state()

        clone(head).fit(*self.table_of(60)).predict(self.table_of(5)[0])

        numpy_after = np.random.get_state()  # noqa: NPY002
        pairs = zip(numpy_before, numpy_after, strict=True)
        assert all(np.array_equal(before, after) for before, after in pairs)
        assert torch.equal(torch_before, torch.get_rng_state())

    def test_fitting_does_not_depend_on_the_global_generators(self, head: Head) -> None:
        table, mos = self.table_of(60)
        expected = clone(head).fit(table, mos).predict(table)
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002

        assert np.array_equal(clone(head).fit(table, mos).predict(table), expected)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_score_that_is_not_finite_is_refused_by_video(self, head: Head, bad: float) -> None:
        table, mos = self.table_of(60)
        mos[7] = bad

        with pytest.raises(HeadError, match=r"the MOS of set/7\.mp4 is"):
            clone(head).fit(table, mos)

    def test_constant_scores_are_refused(self, head: Head) -> None:
        table, _ = self.table_of(60)

        with pytest.raises(HeadError, match=r"constant target, all 60 videos have 3\.5"):
            clone(head).fit(table, np.full(60, 3.5))

    def test_scores_of_another_length_are_refused(self, head: Head) -> None:
        table, mos = self.table_of(60)

        with pytest.raises(HeadError, match=r"shape \(59,\) for 60 videos"):
            clone(head).fit(table, mos[:-1])

    def test_too_few_videos_are_refused_and_just_enough_are_fitted(self, head: Head) -> None:
        table, mos = self.table_of(head.min_videos)

        assert clone(head).fit(table, mos).predict(table).shape == (head.min_videos,)
        with pytest.raises(HeadError, match=f"needs {head.min_videos} videos to fit; got"):
            clone(head).fit(table.subset(range(len(mos) - 1)), mos[:-1])

    def test_training_that_was_stopped_goes_on_to_the_same_bits(
        self, head: Head, fitted: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
        table, mos = self.table_of(60)
        stopped = clone(head)
        stopped.checkpoint = tmp_path / "checkpoint"
        stopped.watch = _stop
        with pytest.raises(KeyboardInterrupt) if head.has_epochs else nullcontext():
            stopped.fit(table, mos)

        assert head.has_epochs == any(tmp_path.iterdir())
        again = clone(head)
        again.checkpoint = tmp_path / "checkpoint"
        again.fit(table, mos)

        assert again.predict(table).tobytes() == fitted.predict(table).tobytes()
        assert not any(tmp_path.iterdir())

    def test_training_goes_on_from_a_fitted_head_and_the_card_tells_of_it(
        self, head: Head, fitted: Head, tmp_path: Path
    ) -> None:
        table, mos = self.table_of(60)
        assert ("start" in head.get_params()) == head.has_epochs
        if not head.has_epochs:
            return
        fitted.save(tmp_path / "first")
        further = clone(head).set_params(start=str(tmp_path / "first")).fit(table, mos)

        further.save(tmp_path / "second")
        begun = read_card(tmp_path / "second")["record"]["started_from"]
        assert begun["model"] == read_card(tmp_path / "first")["model"]["sha256"]
        assert further.predict(table).tobytes() != fitted.predict(table).tobytes()
        loaded = load_head(tmp_path / "second")
        assert loaded.predict(table).tobytes() == further.predict(table).tobytes()

    def test_roles_say_what_a_head_sees(self, head: Head, fitted: Head) -> None:
        if "roles" not in head.get_params():  # of a package of its own
            return
        table, mos = self.table_of(60)
        named = clone(head).set_params(roles=list(table.roles)).fit(table, mos)

        assert named.predict(table).tobytes() == fitted.predict(table).tobytes()
        with pytest.raises(VqbankError, match="no-role"):
            clone(head).set_params(roles=["no-role"]).fit(table, mos)

    def test_other_roles_are_refused(self, fitted: Head) -> None:
        table, _ = self.table_of(5)
        first, *others = table.roles

        renamed = {"other": table.arrays(first), **{role: table.arrays(role) for role in others}}
        with pytest.raises(
            HeadError, match=f"fitted on the roles {', '.join(table.roles)}; .* other"
        ):
            fitted.predict(FeatureTable.from_arrays(table.videos, renamed))
        for roles in [others[:1], [*others, first]] if others else []:
            with pytest.raises(HeadError, match=f"this table has {', '.join(roles)}"):
                fitted.predict(table.select(roles))

    def test_another_width_is_refused(self, fitted: Head) -> None:
        table, _ = self.table_of(5)
        first = table.roles[0]
        *outer, last = table.specs[first].shape
        wider = {
            role: [_wider(values) if role == first else values for values in table.arrays(role)]
            for role in table.roles
        }

        named = re.escape(f"of shape {(*outer, last)}; this table has memory.{first}@")
        with pytest.raises(HeadError, match=f"{first} = .* {named}.*{last + 1}"):
            fitted.predict(FeatureTable.from_arrays(table.videos, wider))

    def test_the_same_shape_under_another_key_is_refused(self, fitted: Head) -> None:
        table, _ = self.table_of(5)
        others = {
            role: [
                values.astype(np.float16 if values.dtype == np.float32 else np.float32)
                for values in table.arrays(role)
            ]
            for role in table.roles
        }

        with pytest.raises(HeadError, match=f"was fitted with {table.roles[0]}"):
            fitted.predict(FeatureTable.from_arrays(table.videos, others))

    def test_a_table_without_videos_is_refused(self, fitted: Head) -> None:
        with pytest.raises(HeadError, match="no videos"):
            fitted.predict(self.table_of(5)[0].subset([]))

    def test_one_changed_byte_of_the_model_is_noticed(self, fitted: Head, tmp_path: Path) -> None:
        fitted.save(tmp_path)
        (model,) = tmp_path.glob("model-*")
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)

        with pytest.raises(HeadError, match=r"is damaged: its sha256 is not the one in card\.yaml"):
            load_head(tmp_path)

    def test_a_missing_model_file_is_named(self, fitted: Head, tmp_path: Path) -> None:
        fitted.save(tmp_path)
        (model,) = tmp_path.glob("model-*")
        model.unlink()

        with pytest.raises(HeadError, match=f"{model.name} cannot be read: No such file"):
            load_head(tmp_path)


def _stop(told: object) -> None:
    """Ctrl-C in the second epoch, when what came of the first is written."""
    if isinstance(told, Epoch) and told.epoch == 2:
        raise KeyboardInterrupt


def _wider(values: NDArray[Any]) -> NDArray[Any]:
    """Rows [t, *shape] with one value more along their last axis."""
    return np.concatenate([values, values[..., :1]], axis=-1)


def fitted_copy(head: Head) -> Head:
    """A copy of the head, fitted on 60 videos."""
    copy: Head = clone(head)
    return copy.fit(*synthetic(60))


def synthetic(
    n: int = 120,
    *,
    seed: int = 0,
    roles: Sequence[str] = ("spatial", "motion"),
    scenes: int | None = None,
) -> tuple[FeatureTable, NDArray[np.float64]]:
    """A table of ragged series whose time means hold the MOS, linearly, and its MOS [n].

    Args:
        n: videos.
        seed: of everything but the linear map, which is always the same.
        roles: of `SHAPES`, in this order.
        scenes: that videos take in turn; None, none has a scene.
    """
    rng = np.random.default_rng(seed)
    content = {role: rng.normal(size=(n, *SHAPES[role])) for role in roles}
    width = sum(int(np.prod(SHAPES[role])) for role in roles)
    weights = np.random.default_rng(99).normal(size=width)
    flat = np.concatenate([content[role].reshape(n, -1) for role in roles], axis=1)
    mos = 3 + 0.3 * flat @ weights + 0.05 * rng.normal(size=n)
    series = {
        role: [
            (mean + 0.1 * rng.normal(size=(rng.integers(1, 9), *mean.shape))).astype(np.float32)
            for mean in content[role]
        ]
        for role in roles
    }
    videos = [
        Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row % scenes) if scenes else None)
        for row in range(n)
    ]
    return FeatureTable.from_arrays(videos, series), mos
