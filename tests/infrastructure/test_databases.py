"""The database servers of the tests."""

from __future__ import annotations

import pytest

from tests.support.databases import query


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_each_url_is_a_database_of_its_own(kind, request):
    databases = request.getfixturevalue(kind)
    one, other = databases.fresh_url(), databases.fresh_url()
    query(f"{one}", "SELECT 1")
    assert one != other
    databases.drop(one)
    with pytest.raises(Exception, match="guardrails_"):
        query(one, "SELECT 1")
    assert query(other, "SELECT 1") == [(1,)]
    databases.drop(other)


@pytest.mark.parametrize("kind", ["private_postgres", "private_mariadb"])
def test_a_private_server_remembers_what_was_committed_before_it_was_killed(kind, request):
    server = request.getfixturevalue(kind)()
    url = server.fresh_url()
    server.kill()
    assert not server.alive()
    server.start()
    assert query(url, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("kind", ["private_postgres", "private_mariadb"])
def test_a_server_takes_its_data_with_it(kind, request):
    server = request.getfixturevalue(kind)()
    assert server.directory.exists()
    server.close()
    assert not server.directory.exists()
