"""Reads and writes videos with PyAV, which the extra `video` installs."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defeat.errors import InputError, missing_package

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise missing_package("A video", "av", "video") from error
    return av


def frame_count(path: Path) -> int | None:
    """Number of frames of a video; None if the file does not contain it.

    Raises:
        InputError: the file can't be read.
    """
    with _opened(path) as container:
        return container.streams.video[0].frames or None


def read_frames(path: Path) -> Iterator[tuple[Tensor, Fraction]]:
    """Iterate over the frames of a video, upright, each (3, H, W) uint8 RGB, with the frame rate per second.

    Raises:
        InputError: the file can't be read.
    """
    av = _pyav()
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or 25)
        try:
            for frame in container.decode(stream):
                picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                # Phones store portrait videos as landscape frames, with their rotation in degrees counter-clockwise.
                yield picture.rot90(round(frame.rotation / 90), (1, 2)).contiguous(), rate
        except av.FFmpegError as error:
            raise InputError(f"{path} can't be read to its end: {error.strerror}.") from error


def _opened(path: Path) -> Any:
    av = _pyav()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} can't be read as a video: {error.strerror}.") from error
    if not container.streams.video:
        raise InputError(f"{path} contains no video stream.")
    return container


class VideoWriter:
    """Writes frames of one size into an MP4 file, which appears when it is closed.

    Args:
        path: the file.
        rate: frames per second.
        size: height and width of the frames; the last row or column of an odd size is cropped, as MP4 needs even sizes.
    """

    def __init__(self, path: Path, rate: Fraction, size: tuple[int, int]) -> None:
        self._av = _pyav()
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._container = self._av.open(str(self._temporary), "w", format="mp4")
        self._stream = self._container.add_stream("mpeg4", rate=rate)
        self._stream.height, self._stream.width = (side - side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.bit_rate = 4_000_000

    def add(self, frame: Tensor) -> None:
        """Append a (3, H, W) uint8 RGB frame."""
        cropped = frame[:, : self._stream.height, : self._stream.width]
        picture = self._av.VideoFrame.from_ndarray(cropped.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Flush the encoder, and close the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._temporary.replace(self._path)
