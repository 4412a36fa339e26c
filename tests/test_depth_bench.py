"""What the timing of depth ground truth is of: frames of a real sweep's and image's size, with as many returns."""

from pathlib import Path

import numpy as np

from noisebox.data.depth import DepthSettings, project
from noisebox.data.depth_bench import POINTS, bench_depth, draw_frames
from noisebox.data.nuscenes import check_image, read_sweep


def test_generated_frames_are_like_real_ones(tmp_path: Path) -> None:
    """On the real frame 3053 of 34,688 returns lie in the image (tests/test_depth.py)."""
    frames = draw_frames(tmp_path, 3)
    assert len({frame.stem for frame in frames}) == 3
    for frame in frames:
        check_image(frame)
        sweep = read_sweep(frame)
        assert sweep.shape == (POINTS, 5) and np.isfinite(sweep).all()
        assert 2000 < len(project(sweep, frame, DepthSettings())[2]) < 6000
    assert not np.array_equal(read_sweep(frames[0]), read_sweep(frames[1]))


def test_every_count_of_workers_is_timed() -> None:
    measured = bench_depth(3, (1, 2))
    assert measured["frames"] == 3
    assert measured["ms_per_frame"].keys() == measured["frames_per_s"].keys() == {"1", "2"}
    for count, rate in measured["frames_per_s"].items():
        assert rate > 0 and abs(rate * measured["ms_per_frame"][count] - 1000) < 1e-6
