"""Which images a run reads, and how it changes them."""

from defeat.data.augmentations import part_names
from defeat.data.problems import OnBadData
from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, option, setting, settings_part

MOST_WORKERS = 256  # each is a process with memory of its own


@settings_part
class DataSettings(Checked):
    """Data."""

    data: str = setting(role=Role.SOURCE, compared=False)
    """Folder of a VOC, COCO or YOLO data set (several VOC years separated by commas), or `demo`: drawn scenes
    (`demo:SEED` for others, `demo:SEED:TRAIN` for another number of training scenes)."""
    split: str = setting(default="train", compared=False)
    """Split to train on."""
    eval_split: str | None = setting(default=None, compared=False)
    """Split to evaluate on; by default val if there is one, else test."""
    classes: list[str] | None = setting(default=None, compared=False)
    """Names of the classes to learn, in order; by default all that the data has."""
    on_bad_data: OnBadData = setting(default="stop", compared=False)
    """Where files of the data are broken or missing: stop, and list them; or skip the images that they are about,
    and count them, after decoding all images once."""
    augment: str = setting(default="flip")
    """How training images are changed at random: none, flip, standard, strong, or names of parts with commas between
    them (flip, photometric, photometric_distort, iou_crop, zoom_out, scale_jitter, large_scale_jitter,
    multi_scale); -NAME behind a level leaves that part out."""
    flip: float = setting(default=0.5)
    """Probability of mirroring a training image, 0..1; without effect where `augment` has no flip."""
    workers: int = setting(default=2, role=Role.OUTPUT)
    """Processes that load images, for each device."""

    def check(self) -> None:
        """Refuse values that can't work."""
        at_least("workers", self.workers, 0, MOST_WORKERS)
        if not 0 <= self.flip <= 1:
            raise InputError(f"{option('flip')} must be between 0 and 1, not {self.flip}.")
        part_names(self.augment)
