"""Counts the cases of bad input that are run, and says at the end how many there were; hooks of pytest."""

import pytest

CASES = pytest.StashKey[int]()
PACKAGE = "tests.bad_input."


def is_case(item):
    name = item.module.__name__
    return name.startswith(PACKAGE) and name != f"{PACKAGE}test_count" and hasattr(item, "callspec")


def pytest_collection_finish(session):
    count = sum(map(is_case, session.items))
    session.config.stash[CASES] = count
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["bad_input"] = count


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """A worker of xdist is done; each has collected all tests."""
    node.config.stash[CASES] = getattr(node, "workeroutput", {}).get("bad_input", 0)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(CASES, 0):
        terminalreporter.write_line(f"bad input: {count} cases")
