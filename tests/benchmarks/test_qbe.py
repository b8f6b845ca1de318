"""The benchmark of query by example: it runs to its record, and both sides compute the same."""

from __future__ import annotations

import json
import sys

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks belong to the repository, not to the package

import pytest

from benchmarks import qbe


@pytest.mark.slow
def test_quick_run_leaves_its_record(tmp_path):
    qbe.main(["--quick", "--output", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["benchmark"], record["device"]) == ("qbe", "cpu")
    assert set(record["results"]) == {"align", "dtw() alone", "from frames"}
    for result in record["results"].values():
        assert result["largest_difference"] < 1e-6
        assert result["ratio"] > 0
    assert record["peers"]["dtw-python"]
