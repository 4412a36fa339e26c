"""What the timing of depth ground truth is of: frames of a real sweep's and image's size, with as many returns."""

from pathlib import Path

import numpy as np

from noisebox.bench.depth import POINTS, draw_frames
from noisebox.data.depth import DepthSettings, project
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
