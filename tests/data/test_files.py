"""Reading the files of a data set."""

import gc

import pytest

from defeat.data.files import paused_garbage_collection, read_json
from defeat.errors import InputError


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("text", ["[1, 2]", "[1, 2"])
def test_garbage_collection_is_as_before_after_reading_json(enabled, text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    (gc.enable if enabled else gc.disable)()
    try:
        with paused_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        if text.endswith("]"):
            assert read_json(tmp_path / "a.json") == [1, 2]
        else:
            with pytest.raises(InputError, match="not well-formed JSON"):
                read_json(tmp_path / "a.json")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
