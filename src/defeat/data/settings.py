"""Settings of data and augmentation."""

from defeat.data.augmentations import part_names
from defeat.data.hold_out import HoldOutBy
from defeat.data.images import MAX_PIXELS
from defeat.data.problems import OnBadData
from defeat.data.reading.pairs import Unannotated
from defeat.data.source import DataSource
from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, option, setting, settings_part

MAX_WORKERS = 256  # each is a separate process


def require_share(hold_out: float | None) -> None:
    """Check the share of images to hold out.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if hold_out is not None and not 0 < hold_out < 1:
        raise InputError(f"{option('hold_out')} must be a share between 0 and 1, such as 0.2, not {hold_out}.")


@settings_part
class DataSettings(Checked):
    """Data."""

    data: str = setting(role=Role.SOURCE, compared=False)
    """Folder or file of a data set: VOC (several years separated by commas), COCO, YOLO, labelme, VIA or CVAT, see
    docs/data.md; or `demo`: drawn scenes (`demo:SEED` for other scenes, `demo:SEED:TRAIN` for another number of
    training scenes)."""
    split: str = setting(default="train", compared=False)
    """Split to train on."""
    eval_split: str | None = setting(default=None, compared=False)
    """Split to evaluate on; by default val if there is one, else test."""
    classes: list[str] | None = setting(default=None, compared=False)
    """Names of the classes to learn, in order; by default all classes of the data."""
    on_bad_data: OnBadData = setting(default="stop", compared=False)
    """What to do if files of the data are broken or missing: stop and list them, or skip and count the affected
    images after decoding all images once."""
    unannotated: Unannotated = setting(default="auto", compared=False)
    """What images without an annotation file are: background (without objects), to drop, an error, or auto: background
    where the layout names the image, as a list of a split does, else an error."""
    images: str | None = setting(default=None, role=Role.SOURCE, compared=False)
    """Folder of the images of a COCO file, where they are not beside it."""
    hold_out: float | None = setting(default=None, compared=False)
    """Share of the images, such as 0.2, to hold out as the split val, where the data has none; by a hash of the file
    names, so that it is the same share in every run."""
    hold_out_by: HoldOutBy = setting(default="file", compared=False)
    """What stays together in --hold-out: file (also augmented copies of Roboflow), folder, or prefix (names that differ
    in their number only, such as the frames of a video)."""
    max_pixels: int = setting(default=MAX_PIXELS, role=Role.OUTPUT)
    """Most pixels of an image file, width times height; an image of more is a broken file. The limit keeps a small
    file that claims to be a huge image from filling the memory."""
    augment: str = setting(default="flip")
    """Augmentation of training images: none, flip, standard, strong, or parts separated by commas (flip, photometric,
    photometric_distort, iou_crop, zoom_out, scale_jitter, large_scale_jitter, multi_scale); -NAME after a level
    removes that part."""
    flip: float = setting(default=0.5)
    """Probability of flipping a training image horizontally, 0..1; no effect if `augment` has no flip."""
    workers: int = setting(default=2, role=Role.OUTPUT)
    """Processes that load images, per device."""

    def check(self) -> None:
        """Refuse invalid values."""
        at_least("max_pixels", self.max_pixels, 1)
        at_least("workers", self.workers, 0, MAX_WORKERS)
        if not 0 <= self.flip <= 1:
            raise InputError(f"{option('flip')} must be between 0 and 1, not {self.flip}.")
        require_share(self.hold_out)
        part_names(self.augment)

    @property
    def source(self) -> DataSource:
        """The data set, and how it is read."""
        reading = (self.on_bad_data, self.unannotated, self.images, self.hold_out, self.hold_out_by)
        return DataSource(self.data, *reading, max_pixels=self.max_pixels)
