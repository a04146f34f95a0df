"""The recipes in the documentation do what they say."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def fence_recipe() -> tuple[str, str]:
    (block,) = re.findall(r"```sql\n(.*?)```", (DOCS / "exactly-once.md").read_text(encoding="utf-8"), re.DOTALL)
    create, insert = (part.strip() for part in block.split(";")[:2])
    return create, insert


def test_the_fence_recipe_refuses_a_holder_that_was_overtaken_and_nobody_else(fence_recipe):
    create, insert = fence_recipe
    connection = sqlite3.connect(":memory:")
    connection.execute(create)

    def write(key: str, fence: int) -> bool:
        return connection.execute(insert, {"key": key, "fence": fence}).rowcount == 1

    assert write("charge:1", 10)
    assert write("charge:1", 10), "the same holder may write again"
    assert write("charge:1", 12)
    assert not write("charge:1", 11), "the one that was overtaken"
    assert write("charge:2", 5), "another key"


def test_every_link_between_the_pages_leads_somewhere():
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_deaths_names_tests_that_there_are():
    page = (DOCS / "deaths.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.parent.glob("tests/*/test_*.py"))
    listed = dict(re.findall(r"^\* `([^`]+)`: `(test_\w+)`", page, re.MULTILINE))
    assert set(listed.values()) <= set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| death"))]
    assert len(rows) > 35
    for row in rows:
        told = row.split("|")[-2].strip()
        used = set(re.findall(r"`([^`]+)`", told))
        assert used or told.startswith("*not tested*") or told == "–", row
        assert used <= set(listed), row
