"""Checkpoints: the same content gives the same bytes, and nothing but a checkpoint is taken for one."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_detector import CLASSES, ToyConfig, toy_batch, toy_config

from noisebox.errors import UserError
from noisebox.models import build_model
from noisebox.training.checkpoint import load_checkpoint, load_model, load_weights, save_checkpoint

pytestmark = pytest.mark.usefixtures("toy_family")


def saved_bytes(folder: Path, state: dict[str, Any], name: str = "a.pth") -> bytes:
    save_checkpoint(folder / name, state)
    return (folder / name).read_bytes()


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=5)
)
tensors = st.lists(st.floats(-1, 1, width=32), max_size=6).map(torch.tensor)
states = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        leaves | tensors,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@given(state=states, name=st.sampled_from(["last.pth", "best.pth"]))
def test_bytes_survive_the_way_through_a_file_and_another_order_and_name(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any], name: str
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    first = saved_bytes(folder, state)
    loaded = load_checkpoint(folder / "a.pth")
    again = {key: loaded[key] for key in reversed(list(loaded))}
    assert saved_bytes(folder, again, name) == first


def test_bytes_do_not_tell_how_the_content_came_to_be(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    storage = torch.cat([torch.zeros(5), weight.flatten()])
    name = "".join(["ki", "nd"])
    shared = [1, name]
    plain = {"a": weight.clone(), "b": weight.clone(), "kind": "kind", "x": [1, "kind"], "y": [1, "kind"]}
    entangled = {
        "y": shared,
        "x": shared,
        name: "".join(["k", "ind"]),
        "b": torch.nn.Parameter(weight.T.contiguous().T),
        "a": storage[5:].view(2, 3),
    }
    assert saved_bytes(tmp_path, plain) == saved_bytes(tmp_path, entangled, "b.pth")


def test_a_type_that_would_need_code_to_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        save_checkpoint(tmp_path / "a.pth", {"where": tmp_path})


def test_sha256_file_is_what_sha256sum_checks(tmp_path: Path) -> None:
    content = saved_bytes(tmp_path, {"model": {"w": torch.ones(3)}}, "model_final.pth")
    expected = f"{hashlib.sha256(content).hexdigest()}  model_final.pth\n"
    assert (tmp_path / "model_final.pth.sha256").read_text() == expected


def test_every_truncation_and_a_flipped_bit_are_noticed(tmp_path: Path) -> None:
    content = saved_bytes(tmp_path, {"model": {"w": torch.arange(1000.0)}})
    path = tmp_path / "damaged.pth"
    flipped = bytearray(content)
    flipped[content.index(torch.arange(1000.0).numpy().tobytes()) + 700] ^= 1
    for damaged in [content[: len(content) * part // 10] for part in range(10)] + [content[:-1], bytes(flipped)]:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.pth is damaged or is no checkpoint"):
            load_checkpoint(path)


def test_foreign_files_are_told_in_one_sentence_and_run_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "foreign.pth"
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    contents = [b"no checkpoint", pickle.dumps(Trap(), protocol=2), path.read_bytes()]
    torch.save({"model": Trap()}, path)
    for content in [*contents, path.read_bytes()]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"foreign\.pth"):
            load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_weights_are_loaded_by_name_and_shape() -> None:
    model = build_model(toy_config(), 2)
    given = {name: torch.full_like(tensor, 7.0) for name, tensor in model.state_dict().items()}
    given["head.bias"] = torch.zeros(99)
    given["other.weight"] = given.pop("backbone.0.bias")
    report = load_weights(model, {"model": given}, "parent.pth")
    assert report.loaded == ("backbone.0.weight", "head.weight")
    assert report.new == ("backbone.0.bias", "head.bias")
    assert report.unused == ("head.bias", "other.weight")
    assert str(report) == "2 tensors loaded, 2 (backbone.0.bias, head.bias) new, 2 (head.bias, other.weight) unused"
    assert all(model.state_dict()[name].unique().tolist() == [7.0] for name in report.loaded)
    assert not any((model.state_dict()[name] == 7.0).any() for name in report.new)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"model": {"head.weight": torch.zeros(1)}}, "no weight in parent.pth fits"),
        ({"weights": {}}, "parent.pth has no key 'model'"),
    ],
)
def test_a_parent_that_fits_nowhere_is_an_error(state: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_weights(build_model(toy_config(), 2), state, "parent.pth")


def test_model_comes_back_with_its_configuration(tmp_path: Path) -> None:
    config = toy_config(model=ToyConfig(width=5))
    model = build_model(config, len(CLASSES))
    described = {"config": config.model_dump(mode="json"), "classes": list(CLASSES), "iteration": 12}
    save_checkpoint(tmp_path / "model_final.pth", {"model": model.state_dict(), **described})
    loaded, loaded_config, state = load_model(tmp_path / "model_final.pth")
    assert loaded_config == config
    assert (state["classes"], state["iteration"]) == (list(CLASSES), 12)
    assert not loaded.training
    batch = toy_batch(0)
    assert torch.equal(loaded.encode(batch), model.encode(batch))

    save_checkpoint(tmp_path / "narrow.pth", {"model": model.state_dict(), **described, "classes": ["car"]})
    save_checkpoint(tmp_path / "bare.pth", {"model": model.state_dict()})
    with pytest.raises(UserError, match=r"narrow\.pth does not fit this version of the code"):
        load_model(tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"bare\.pth was not written by noisebox: it has no classes, config, iteration"):
        load_model(tmp_path / "bare.pth")
