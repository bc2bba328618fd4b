"""Files of data sets on the Hugging Face hub, fetched when they are needed, and kept.

A data set there is a git repository, and its `main` may be another one tomorrow. So a recipe names the commit
as well, and a run can be repeated. Files are fetched whole, one after the other, each not before its first
row is asked for: who wants the first ten thousand rows of fourteen files fetches one. What has arrived stays
in the hub's cache (~/.cache/huggingface, or where HF_HOME says), so it is fetched once for all runs; a
download that breaks off goes on where it was; and with all files there no network is needed.

`huggingface_hub` does the work. It is an extra, pilgrim[hub].
"""

import re
from pathlib import Path

from pilgrim.core.errors import DataError, PilgrimError

COMMIT = re.compile("[0-9a-f]{40}")


def fetched(
    repository: str,
    revision: str,
    file: str,
    place: str,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """The path of a data set's file, fetched unless it is in the cache. `place` is who asks, for errors.

    `endpoint` is another hub than huggingface.co (or HF_ENDPOINT), `cache` another folder. Raises
    PilgrimError without the extra, without a network, and where there is no such file, commit, or data set;
    DataError if `revision` is no commit, or nothing on the hub can have such a name.
    """
    if not COMMIT.fullmatch(revision):
        raise DataError(no_commit(place, revision))
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise PilgrimError(
            f"{place} is on the hub, and huggingface_hub is not installed; pip install 'pilgrim[hub]'"
        ) from None
    what = f"{place}: {file} of {repository} at {revision[:8]}"
    try:
        return Path(
            hf_hub_download(
                repository, file, repo_type="dataset", revision=revision, endpoint=endpoint, cache_dir=cache
            )
        )
    except errors.LocalEntryNotFoundError:
        raise PilgrimError(
            f"{what} is not in the cache, and the hub can't be reached; go online once, or name files here"
        ) from None
    except errors.GatedRepoError:
        raise PilgrimError(
            f"{what}: its owners ask who reads it; agree on its page, and log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise PilgrimError(f"{what}: the hub knows no such data set; check its name") from None
    except errors.RevisionNotFoundError:
        raise PilgrimError(f"{what}: the data set has no such commit; take one of its history") from None
    except errors.EntryNotFoundError:
        raise PilgrimError(f"{what}: there is no such file in that commit; check its name") from None
    except ValueError as error:  # a data set's or a file's name that the hub's program does not accept
        raise DataError(f"{what}: no data set or file is named so ({error}); mend {place}") from None
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of its HTTP client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PilgrimError(
            f"{what} could not be fetched ({reason}); start again, it goes on where it was"
        ) from error


def no_commit(place: str, revision: str) -> str:
    """The sentence for a revision that can move."""
    return (
        f"{place}.revision = {revision!r} is no commit, and may mean other data tomorrow; "
        "write the 40 hexadecimal digits of one, from the history on the data set's page"
    )
