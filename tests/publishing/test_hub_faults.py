"""A Hub that fails: the client repeats transfers, everything else ends the push, and the same command goes on."""

from __future__ import annotations

import pytest
from hub_server import Fault
from huggingface_hub import HfApi, constants

from laser_hf.errors import LaserError
from laser_hf.publishing import push

REPO = "org/hubert-laser"


def is_complete(hub) -> bool:
    """Whether the repository has its first commit and one that holds everything, with its tag."""
    repository = hub.repositories[REPO]
    commits = repository.branches["main"]
    whole = {"README.md", "model.safetensors", "laser_config.json"} <= set(commits[-1].files)
    return len(commits) == 2 and whole and repository.tags["v1.0"] is commits[1]


@pytest.mark.parametrize(
    "faults",
    [
        # Cut in the middle of the large file, then slowed down.
        [Fault("PUT /lfs/", 0, times=2), Fault("PUT /lfs/", 429, times=1, headers={"Retry-After": "7"})],
        [Fault(r"POST /org/hubert-laser\.git/info/lfs/objects/batch", 502, times=3)],
    ],
)
def test_transfers_are_repeated(faults, hub, make_run, publish):
    run = make_run(hub=hub)
    hub.failures = faults
    publish(run, "--yes")
    assert is_complete(hub)
    assert len(hub.slept) == 3
    assert (8.0 in hub.slept) == (len(faults) == 2)  # asked to wait for seven seconds, and a second more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault("GET /api/models/org/hubert-laser/revision", 503, times=1),
            "nothing is half published, give the same command again (HTTP 503)",
        ),
        (Fault("POST /api/repos/create", 429, times=1, headers={"Retry-After": "3600"}), "too many requests"),
        (Fault("POST /api/repos/create", 403, times=1), "hf auth login"),
        (Fault("POST .*/preupload/", 0, times=9), "the connection broke"),
        (Fault("PUT /lfs/", 0, times=12), "the connection broke"),
        (Fault("PUT /lfs/", 403, times=12), "hf auth login"),
        (Fault("POST .*/commit/main", 0, times=1), "give the same command again"),
        (Fault("POST .*/commit/main", 504, times=1), "nothing is half published"),
        # The commit is made, but its answer is lost.
        (Fault("POST .*/commit/main", 0, times=1, after=True), "give the same command again"),
        (
            Fault("POST .*/commit/main", 412, times=1),
            "somebody changed the repository at the same time; look at it and try again (HTTP 412)",
        ),
        (
            Fault("POST .*/commit/main", 409, times=1),
            "somebody changed the repository at the same time; look at it and try again (HTTP 409)",
        ),
        (Fault("POST .*/tag/", 500, times=1), "but not tagged: the Hub does not work"),
        (
            Fault("GET /api/models/org/hubert-laser/refs", 400, times=1),
            "refused the request: made to fail with 400 (HTTP 400)",
        ),
    ],
)
def test_the_same_command_goes_on(fault, said, hub, make_run, publish):
    run = make_run(hub=hub)
    hub.failures = [fault]
    with pytest.raises(LaserError) as caught:
        publish(run, "--yes")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    repository = hub.repositories.get(REPO)
    # Whole, if an answer or the tag was lost, or not at all.
    assert repository is None or len(repository.branches["main"][-1].files) in (1, 11)
    hub.failures.clear()
    publish(run, "--yes")
    assert is_complete(hub)
    arrived = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    assert len(arrived) - len(set(arrived)) <= (fault.pattern == "PUT /lfs/") * 12


def test_a_commit_that_came_in_between_stays(hub, make_run, publish):
    run = make_run(hub=hub)
    hub.create(REPO)
    hub.races[REPO] = {"theirs.bin": b"theirs"}
    with pytest.raises(LaserError, match="HTTP 412"):
        publish(run, "--yes")
    # Looked at again, it is not ours.
    with pytest.raises(LaserError, match=r"no export of laser_hf \(theirs\.bin\)"):
        publish(run, "--yes")
    assert set(hub.files(REPO)) == {".gitattributes", "theirs.bin"}


def test_tokens_that_may_not_write(hub, make_run, publish):
    run = make_run(hub=hub)
    hub.create(REPO)
    hub.failures = [Fault("POST .*/commit/forbidden", 403)]
    with pytest.raises(LaserError, match=r"hf auth login.*HTTP 403"):
        publish(run, "--yes", "--revision", "forbidden")
    with pytest.raises(LaserError, match=r"hf auth login.*HTTP 401"):
        publish(run, "--yes", "--token", "hf_wrong", repo_id="org/new")
    assert set(hub.repositories) == {REPO, "facebook/hubert-base-ls960"}
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_no_hub_in_reach(hub, make_run, publish, monkeypatch):
    run = make_run(hub=hub)
    monkeypatch.setattr(push, "HfApi", lambda token: HfApi("http://127.0.0.1:9", token=token))
    assert "the target repository was not checked: http://127.0.0.1:9 cannot be reached" in publish(run)
    with pytest.raises(LaserError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        publish(run, "--yes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LaserError, match="HF_HUB_OFFLINE is set"):
        publish(run, "--yes")
