"""Photos and runs in a store that speaks S3's protocol: moto's, on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fits import results, small_fit, small_recipe

import fieldguide as fg
from fieldguide.errors import ResourceError
from fieldguide.fitting.fit import fit
from fieldguide.storage.mirror import mirrored, run_folder

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

# Libraries that only these tests use may warn of what they like.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket."""
    import s3fs

    store = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FIELDGUIDE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("fieldguide", exist_ok=True)  # buckets outlive the server
    yield "s3://fieldguide"
    s3fs.S3FileSystem.clear_instance_cache()
    store.stop()


def test_a_fit_from_and_to_a_bucket(
    bucket: str, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    s3fs.S3FileSystem().put(str(discs), f"{bucket}/photos", recursive=True)
    short = {"epochs": 1, "warmup": 0}
    photos = fg.scan(f"{bucket}/photos")
    assert photos.photos == fg.scan(discs).photos
    run = fit(photos, small_recipe(**short), f"{bucket}/run")
    assert results(run) == results(small_fit(discs, tmp_path / "here", **short))
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "another machine"))
    assert results(fg.Run(run_folder(f"{bucket}/run"))) == results(run)


def test_a_misspelt_bucket_is_told_and_not_made(bucket: str) -> None:
    import s3fs

    with pytest.raises(ResourceError, match="cannot be reached"), mirrored("s3://feildguide/run"):
        raise AssertionError("it was not told")
    assert s3fs.S3FileSystem().ls("") == ["fieldguide"]
