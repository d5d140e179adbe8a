"""Numbers of papers, as recipes hold them, beside those of a record."""

from pathlib import Path

import numpy as np
import pytest

from vqbank.pipelines.console import console
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.paper import Paper
from vqbank.pipelines.recipe import Protocol, read_recipe, shipped_recipes
from vqbank.pipelines.results.published import data_of, published_table
from vqbank.regressors import make_head
from vqbank.store.errors import RecipeError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

OURS = "extractors: {nss: }\nfeatures: {quality: nss.brisque}\nheads: {ridge: , svr: }\n"
PAPER = """
paper:
  name: A method (2020)
  shows: "table 1: which head"
  chosen: it kept the epoch that its test part liked best
  data: [KoNViD-1k, LIVE-VQC]
  metrics: [srcc, plcc]
  rows:
    ridge: [0.61, 0.62, 0.63, 0.64]
    theirs: [0.71, null, 0.73, 0.74]
"""


@pytest.fixture
def paper(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(OURS + PAPER)
    return read_recipe(path).paper


def rated_of(data):
    """Thirty videos of a data set."""
    rng = np.random.default_rng(0)
    videos = [Video(f"{data}/{row}.mp4", Path(f"{row}.mp4"), scene=str(row)) for row in range(30)]
    values = rng.normal(size=(30, 1, 4)).astype(np.float32)
    table = FeatureTable.from_arrays(videos, {"quality": list(values)})
    return RatedVideos(table, values[:, 0].sum(axis=1) + rng.normal(size=30))


def record_of(data, heads=("ridge", "score"), sets=()):
    """Of a data set, on two splits, and of further ones by their names."""
    rated = rated_of(data)
    cells = [Cell(name, make_head(name), rated.table.roles) for name in heads]
    further = [FurtherSet(name, rated_of(f"{data}-{name}")) for name in sets]
    return evaluate(Experiment("trial", rated, cells, Protocol(count=2), further))


def printed(record, paper):
    made = console(width=200)
    with made.capture() as caught:
        made.print(published_table(record, paper))
    return caught.get()


def test_numbers_are_read_by_data_set_and_metric(paper):
    numbers = {one[:3]: one.value for one in paper.numbers}
    assert numbers["ridge", "LIVE-VQC", "plcc"] == 0.64
    assert ("theirs", "KoNViD-1k", "plcc") not in numbers
    assert len(numbers) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.64]", "]"), "paper: row 'ridge' has 3 numbers for 2 data sets of 2 metrics"),
        (("0.64]", ".nan]"), r"paper\.rows\.ridge\.3: Input should be a finite number"),
        (("chosen:", "choosen:"), "paper: unknown key 'choosen'. Did you mean 'chosen'"),
    ],
)
def test_what_no_table_has_is_refused(tmp_path, change, message):
    path = tmp_path / "table.yaml"
    path.write_text(OURS + PAPER.replace(*change))
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_a_record_stands_beside_the_column_of_its_own_data_set(paper):
    own = record_of("KoNViD_1k", heads=("score", "ridge"))
    assert data_of(own, paper) == ["KoNViD-1k"]
    shown = printed(own, paper)
    assert "A method (2020), table 1: which head" in shown
    assert "it kept the epoch that its test part liked best" in shown
    assert "LIVE-VQC" not in shown
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    medians = own.head("ridge").statistics
    ours = [f"{medians[metric].median:.4f}" for metric in ("srcc", "plcc")]
    assert cells["ridge"] == ["0.6100", "0.6200", *ours]
    assert cells["theirs"] == ["0.7100", "-", "", ""]
    assert cells["score"][:2] == ["-", "-"]


def test_where_no_id_names_a_data_set_all_columns_are_shown_and_it_is_said(paper):
    shown = printed(record_of("mine"), paper)
    assert "which column is theirs is not known" in " ".join(shown.split())
    assert "0.7400" in shown


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_further_part_of_lsvq_is_called_as_manifests_call_it(name):
    """A part `test-1080p` is the test set `1080p`, beside which the paper's numbers stand."""
    paper = read_recipe(Path(name)).paper
    if paper is None or not any("1080p" in data for data in paper.data):
        return
    record = record_of("LSVQ", heads=("ridge",), sets=["1080p"])
    assert data_of(record, paper)[:2] == ["LSVQ", "1080p"]


def test_a_table_of_costs_has_nothing_beside_a_record():
    paper = Paper(name="a", shows="b", data=["1080P"], metrics=["seconds"], rows={"all": [1.0]})
    assert published_table(record_of("mine"), paper) is None


@pytest.mark.parametrize("name", [n for n in shipped_recipes() if "table" in n])
def test_a_table_of_a_paper_compares_a_head_of_its_recipe(name):
    recipe = read_recipe(name)
    paper = recipe.paper
    number = int(name.rpartition("table")[2])
    ways = number, ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[number - 1]
    assert paper.shows.startswith(tuple(f"table {way}:" for way in ways))
    assert paper.rows.keys() & recipe.heads.keys() or name == "rqvqa-table8"
