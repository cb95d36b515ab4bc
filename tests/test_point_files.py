"""Points and values in .npy, .npz and .csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsr_hpc.errors import JobError
from lsr_hpc.point_files import read_points, write_values

X = np.array([[0.1, -2.0], [1e-300, 3.5], [1 / 3, 2e10]])


def written(path: Path) -> Path:
    if path.suffix == ".npy":
        np.save(path, X)
    elif path.suffix == ".npz":
        np.savez(path, x=X, other=np.zeros(2))
    else:
        path.write_text("first, second\n" + "\n".join(f"{a!r},{b!r}" for a, b in X.tolist()) + "\n")
    return path


@pytest.mark.parametrize("name", ["p.npy", "p.npz", "p.csv"])
def test_points_are_read_without_loss(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_points(written(tmp_path / name)), X)


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "\ufeff1,2\r\n3,4\r\n", "a,b\n1,2\n3,4"])
def test_csv_with_and_without_names_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8", newline="")
    np.testing.assert_array_equal(read_points(tmp_path / "p.csv"), [[1, 2], [3, 4]])


def test_one_column_and_one_line_are_points_too(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("1\n2\n3\n")
    assert read_points(tmp_path / "p.csv").shape == (3, 1)
    (tmp_path / "p.csv").write_text("1,2,3\n")
    assert read_points(tmp_path / "p.csv").shape == (1, 3)
    np.savez(tmp_path / "p.npz", anything=np.arange(4))
    assert read_points(tmp_path / "p.npz").shape == (4, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,b\n1,x\n", "not a readable .csv"), ("1,2\n3\n", "not a readable .csv"), ("1,nan\n", "NaN or Inf")],
)
def test_csv_that_holds_no_points_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(JobError, match=words):
        read_points(tmp_path / "p.csv")


def test_archive_of_several_arrays_needs_the_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", a=X, b=X)
    with pytest.raises(JobError, match="name the points 'x'"):
        read_points(tmp_path / "p.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_values_are_written_without_loss(suffix: str, tmp_path: Path) -> None:
    path, y = tmp_path / f"out{suffix}", X[:, :1] / 7
    write_values(path, suffix, X, y)
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(path), y)
    elif suffix == ".npz":
        with np.load(path) as archive:
            np.testing.assert_array_equal(archive["x"], X)
            np.testing.assert_array_equal(archive["y"], y)
    else:
        assert path.read_text().splitlines()[0] == "x0,x1,y0"
        np.testing.assert_array_equal(read_points(path), np.hstack([X, y]))
