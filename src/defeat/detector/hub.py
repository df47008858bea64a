"""Detectors of this library on the Hugging Face hub: `hf:ORG/NAME`, the same notation as for those of transformers."""

from importlib.util import find_spec
from pathlib import Path

from defeat.detector.transformers_models import HUB_PREFIX
from defeat.errors import InputError, first_line

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
ADVICE = "Check the name; of a private repository, log in with `hf auth login` or set HF_TOKEN."


def downloaded(source: str | Path) -> str | Path:
    """Download a detector that `defeat push` published; files that are in the cache already are not loaded again.

    Args:
        source: what a user gave as a detector.

    Returns:
        A folder with `model.json` and `model.safetensors`; the source itself where it is something else.

    Raises:
        InputError: the repository does not exist, is private, or is incomplete, or the hub can't be reached.
    """
    name = str(source)
    if not name.startswith(HUB_PREFIX):
        return source
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    repository = name.removeprefix(HUB_PREFIX)
    description = None
    try:
        description = Path(hf_hub_download(repository, DESCRIPTION))
        hf_hub_download(repository, WEIGHTS)
    except EntryNotFoundError as error:  # also where the hub can't be reached, and the cache has no such file
        if description is None and find_spec("transformers") is not None:
            return source  # a detector of transformers, which may be in its cache
        raise InputError(f"{source} can't be loaded: {first_line(error)}.") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{source} can't be loaded: {first_line(error)}. {ADVICE}") from error
    return description.parent
