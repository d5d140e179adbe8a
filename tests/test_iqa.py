import pickle
import socket
from importlib.metadata import version

import numpy as np
import pytest
import scipy.io
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors.iqa import Iqa
from vqbank.store.errors import InvalidFeatureError, RecipeError, UnknownNameError, WeightsError

CPU = torch.device("cpu")
REFUSED = ["arniqa", "clipiqa", "clipiqa+", "dbcnn", "hyperiqa", "liqe", "maniqa", "nima"]
REFUSED += ["paq2piq", "tres", "unique"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise AssertionError("a metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def iqa(metric, **parameters):
    return make_extractor("iqa", metric=metric, **parameters)


def write_cnniqa(path):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        state = iqa("cnniqa", weights="random")._module().state_dict()
        shifted = {key: value + 0.01 * torch.randn_like(value) for key, value in state.items()}
    torch.save({"params": shifted}, path)


def write_niqe(path):
    generator = np.random.default_rng(3)
    root = generator.standard_normal((36, 36))
    content = {"mu_prisparam": generator.standard_normal((1, 36)), "cov_prisparam": root @ root.T}
    scipy.io.savemat(path, content)


def write_brisque(path):
    generator = torch.Generator().manual_seed(5)
    support = torch.rand(40, 36, generator=generator)
    torch.save((torch.randn(40, generator=generator), support), path)


FILES = {
    "cnniqa": ("cnniqa.pth", write_cnniqa),
    "niqe": ("niqe.mat", write_niqe),
    "brisque": ("brisque.pth", write_brisque),
}


@pytest.fixture
def clips(frames):
    """uint8 [2, 1, 3, 200, 240]."""
    return torch.from_numpy(frames("iqa", 2, 200, 240)).permute(0, 3, 1, 2)[:, None]


@pytest.mark.parametrize("metric", ["brisque", "cnniqa", "entropy", "niqe", "piqe"])
def test_a_column_is_the_number_of_pyiqas_own_module(metric, clips, tmp_path, capsys):
    import pyiqa

    weights = {}
    options = {}
    if metric in FILES:
        name, write = FILES[metric]
        write(tmp_path / name)
        weights = {"weights": str(tmp_path / name)}
        options = {"pretrained_model_path": str(tmp_path / name)}
    theirs = pyiqa.create_metric(metric, device=CPU, **options)
    capsys.readouterr()
    extractor = iqa(metric, **weights)
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)[metric]
        expected = [float(theirs(clip / 255).float()) for clip in clips]
    assert capsys.readouterr() == ("", "")
    assert rows.shape == (2, 1, 1)
    assert rows.flatten().tolist() == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("metric", REFUSED)
def test_metrics_that_would_download_are_refused_by_name(metric):
    with pytest.raises(UnknownNameError, match=r"metric of iqa .*Known: brisque, .*topiq_nr"):
        iqa(metric)


def test_every_metric_on_offer_is_one_of_pyiqas():
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for file in Iqa.files:
        assert DEFAULT_CONFIGS[file.choice]["metric_mode"] == "NR"
    for metric in ("entropy", "piqe"):
        assert DEFAULT_CONFIGS[metric]["metric_mode"] == "NR"


def test_published_files_are_where_pyiqa_says(monkeypatch):
    from pyiqa.archs import (
        brisque_arch,
        cnniqa_arch,
        musiq_arch,
        niqe_arch,
        topiq_arch,
        wadiqam_arch,
    )

    archs = (brisque_arch, cnniqa_arch, musiq_arch, niqe_arch, topiq_arch, wadiqam_arch)
    urls = {url for arch in archs for url in arch.default_model_urls.values()}
    assert {file.url for file in Iqa.files} <= urls


def test_metrics_are_features_of_their_own():
    keys = {
        name: iqa(name, **({} if name == "piqe" else {"weights": "random"})).specs(decoder="pyav")
        for name in ("cnniqa", "musiq", "piqe")
    }
    assert [spec.name for specs in keys.values() for spec in specs.values()] == [
        "iqa.cnniqa",
        "iqa.musiq",
        "iqa.piqe",
    ]
    assert keys["piqe"]["piqe"].identity["weights"] == "none"
    assert not keys["piqe"]["piqe"].uses_random_weights
    assert keys["musiq"]["musiq"].uses_random_weights


def test_pyiqas_version_and_options_are_in_the_key():
    identity = iqa("musiq-ava", weights="random").parameters()
    assert identity["options"]["num_class"] == 10
    assert identity["pyiqa"] == make_extractor("nss").parameters()["pyiqa"] == version("pyiqa")
    assert iqa("piqe").parameters()["pyiqa"] == version("pyiqa")


def test_the_weights_of_another_metric_are_not_a_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))
    (tmp_path / Iqa(metric="musiq-ava").file.save_as).touch()
    with pytest.raises(WeightsError, match="'musiq-ava' are neither a file nor one of 'musiq'"):
        iqa("musiq", weights="musiq-ava").parameters()


def test_missing_weights_are_named_with_their_address(tmp_path, monkeypatch):
    for variable in ("VQBANK_WEIGHTS", "TORCH_HOME", "HOME", "VQBANK_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"niqe_modelparameters\.mat"):
        iqa("niqe").specs(decoder="pyav")


def test_published_weights_are_found_by_the_metrics_name(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path))
    write_niqe(tmp_path / "niqe_modelparameters.mat")
    spec = iqa("niqe").specs(decoder="pyav")["niqe"]
    assert (spec.publisher, spec.licence) == ("pyiqa", "PolyForm-Noncommercial-1.0.0")
    moved = iqa("niqe", weights=str(tmp_path / "niqe_modelparameters.mat"))
    assert moved.specs(decoder="pyav")["niqe"].key == spec.key


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("metric", ["brisque", "cnniqa"])
def test_a_pickle_with_code_is_never_run(metric, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        iqa(metric, weights=str(path)).build(CPU)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["brisque", "cnniqa", "niqe", "ilniqe"])
@pytest.mark.parametrize("junk", [b"", b"h\xff.", b"junk", bytes(64)], ids=repr)
def test_junk_is_refused(metric, junk, tmp_path):
    path = tmp_path / "junk.pth"
    path.write_bytes(junk)
    with pytest.raises(WeightsError, match=r"junk\.pth"):
        iqa(metric, weights=str(path)).build(CPU)


@pytest.mark.parametrize("metric", ["brisque", "cnniqa", "niqe", "ilniqe"])
@pytest.mark.parametrize("name", ["other.pth", "other.mat"])
def test_a_file_of_something_else_is_refused(metric, name, tmp_path):
    path = tmp_path / name
    if name.endswith("mat"):
        scipy.io.savemat(path, {"other": np.ones(3)})
    else:
        torch.save({"params": {"other": torch.ones(3)}}, path)
    with pytest.raises(WeightsError, match="other"):
        iqa(metric, weights=str(path)).build(CPU)


def test_weights_where_there_are_none_are_refused():
    with pytest.raises(RecipeError, match="piqe has no weights"):
        iqa("piqe", weights="random")
    with pytest.raises(RecipeError, match="niqe is no network"):
        iqa("niqe", weights="random")


@pytest.mark.parametrize(("metric", "side"), [("niqe", 96), ("brisque", 16)])
def test_frames_too_small_for_the_metric_are_refused(metric, side, tmp_path):
    name, write = FILES[metric]
    write(tmp_path / name)
    score = iqa(metric, weights=str(tmp_path / name)).build(CPU)
    noise = torch.randint(0, 256, (1, 1, 3, side, side + 9), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.isfinite(score(noise)[metric]).all()
        with pytest.raises(InvalidFeatureError, match=f"too small for {metric}"):
            score(noise[..., 1:, :])


@pytest.mark.parametrize("metric", ["niqe", "brisque"])
def test_a_frame_without_texture_has_no_number_and_spoils_no_other(metric, clips, tmp_path):
    name, write = FILES[metric]
    write(tmp_path / name)
    score = iqa(metric, weights=str(tmp_path / name)).build(CPU)
    with torch.inference_mode():
        expected = score(clips[1:])[metric]
        clips[0] = 16
        rows = score(clips)[metric]
    assert torch.isnan(rows[0]).all()
    assert torch.equal(rows[1:], expected)
