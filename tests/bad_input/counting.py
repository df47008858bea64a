"""Pytest hooks that count the cases of bad input and print the number at the end."""

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
    """Called when an xdist worker is done; each worker has collected all tests."""
    node.config.stash[CASES] = getattr(node, "workeroutput", {}).get("bad_input", 0)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(CASES, 0):
        terminalreporter.write_line(f"bad input: {count} cases")
