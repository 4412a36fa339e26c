"""The fast .npz against those that read it: numpy, and zipfile, which checks every byte."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from noisebox.data.npz import write_npz

KINDS = st.sampled_from([np.float32, np.float64, np.bool_, np.uint8, np.int64])
ARRAYS = KINDS.flatmap(lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_side=0, max_side=40)))


@given(
    named=st.dictionaries(st.text("abcé_", min_size=1), ARRAYS, max_size=3), comment=st.text("{a1: }é", max_size=300)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_numpy_reads_back_what_was_written(named: dict[str, np.ndarray], comment: str, tmp_path: Path) -> None:
    path, again = tmp_path / "a.npz", tmp_path / "b.npz"
    write_npz(path, named, comment.encode())
    write_npz(again, {name: np.asfortranarray(array) for name, array in named.items()}, comment.encode())
    assert path.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment == comment.encode()
        assert all(member.compress_type == zipfile.ZIP_DEFLATED for member in archive.infolist())
    with np.load(path) as archive:
        assert list(archive) == list(named)
        for name, array in named.items():
            np.testing.assert_array_equal(archive[name], array, strict=True)


def test_a_sparse_image_takes_a_fraction_of_its_bytes(tmp_path: Path) -> None:
    image = np.zeros((600, 800), np.float32)
    image[::30, ::20] = 7.25
    write_npz(tmp_path / "a.npz", {"depth": image})
    assert (tmp_path / "a.npz").stat().st_size < image.nbytes / 40


def test_what_the_form_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the comment has 65536 bytes"):
        write_npz(tmp_path / "a.npz", {"mask": np.ones(3)}, bytes(65536))
    with pytest.raises(ValueError, match=f"array 'mask' has {2**32} bytes"):
        write_npz(tmp_path / "a.npz", {"mask": np.broadcast_to(np.uint8(0), 2**32)})
    assert list(tmp_path.iterdir()) == []
