"""Which tests stay together when several run at a time (``pytest --numprocesses``)."""

from __future__ import annotations

from typing import Any

import pytest

LAB = "tests/lab/"


def is_of_the_lab(identifier: str) -> bool:
    return identifier.startswith(LAB)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests of one module together, since they share what it sets up; and all of the lab.

    Its machines are for all its tests, and want two processors each.
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - not there in the lab's machine

    class Modules(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return LAB if is_of_the_lab(nodeid) else nodeid.partition("::")[0]

    return Modules(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the lab, which takes longest, where others run beside it."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not is_of_the_lab(item.nodeid))
