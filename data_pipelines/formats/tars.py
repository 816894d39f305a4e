"""Reads tar files of samples, as img2dataset writes them.

The members 00001.jpg, 00001.txt, 00001.json are one sample.

    shard.tar[.gz|.zst]  --tar_members-->  members and gaps
      --adjacent members with the same key-->  TarSample | Reject

Nothing is extracted. Members are read in order, with one sample in memory at a time. Members that
are no plain file below the archive's root are left out, and so are members with a suffix that
nobody asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from data_pipelines.formats.tar_members import Gap, Member, members
from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular
from flamingo_jax.data.files import is_clutter, suffix_of

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
MAX_SAMPLE = 1 << 28  # bytes of all members of a sample; a larger sample is left out
MAX_TEXT = 1 << 20  # bytes of a caption
MAX_FIELDS = 1 << 22  # bytes of a .json with the fields of a sample


@dataclasses.dataclass(frozen=True)
class TarSample:
    """The members that share a key.

    The key is the path up to the first dot of the file name (as WebDataset defines it): s.input.jpg
    and s.output.txt are one sample. But where several members share their path up to the last dot,
    that is the key: photo.1.jpg, photo.1.txt, photo.2.jpg, photo.2.txt are two samples.

    Attributes:
      key: as above.
      files: content by the text after the key in lower case, for example "jpg".
      others: such texts of members that nobody asked for.
    """

    key: str
    files: dict[str, bytes]
    others: tuple[str, ...] = ()

    def first(self, *suffixes: str) -> bytes | None:
        """Returns the content of the first of these suffixes that the sample has, or None.

        Without one, "input.jpg" counts as "jpg" if it is the only such member.
        """
        for suffix in suffixes:
            if suffix in self.files:
                return self.files[suffix]
        longer = [name for name in self.files if name.rpartition(".")[2] in suffixes]
        return self.files[longer[0]] if len(longer) == 1 else None

    def described(self) -> str:
        """Returns what the sample has, for a Reject."""
        names = ", ".join(sorted((*self.files, *self.others)))
        return f"{self.key} has {names} only; all members of a sample must be adjacent"


def samples(path: str, limits: Mapping[str, int] | None = None) -> Iterator[TarSample | Reject]:
    """Reads the samples of a tar file, which can be compressed by gzip or zstd.

    Args:
      path: of the file.
      limits: largest size in bytes of members, by suffix. Members with other suffixes are passed
        over; None = all members are read.

    Yields:
      In order: samples, and a Reject for each unusable sample: path_traversal (a member outside of
      the archive's root, a link or a device), member_too_large, sample_too_large, duplicate_member.
      For each damaged part damaged_part (also if nothing but zeros is there), at the end of a
      damaged file truncated_file, or unreadable_file if there is no member. For each member that
      is passed over a Reject of a file.
    """
    group = _Group()
    seen = False
    try:
        with regular(path).open("rb") as raw:
            for member in members(raw):
                if isinstance(member, Gap):
                    if member.within and not group.ends_before(member.within):
                        group.is_cut = True
                    yield from group.close()
                    yield member.reject(path)
                    continue
                seen = True
                if _is_left_behind(member):
                    yield Reject(suffix_of(member.name), member.name[:200], unit="file")
                    continue
                if group.ends_before(member):
                    yield from group.close()
                limit = MAX_SAMPLE if limits is None else limits.get(member.last_suffix)
                group.add(member, limit)
                if limit is None and member.is_file:
                    yield Reject(suffix_of(member.name), member.name[:200], unit="file")
            yield from group.close()
    except OSError as error:
        reason = "truncated_file" if seen else "unreadable_file"
        yield Reject(reason, f"{path}: {error}", broken=True)


class _Group:
    """The members of one sample, as far as they are read.

    Attributes:
      is_cut: True if the file ended, or was damaged, within the last member.
    """

    def __init__(self) -> None:
        self._keys_have_dots = False  # seen before in this file
        self._clear()

    def _clear(self) -> None:
        self._members: list[Member] = []
        self._contents: list[bytes] = []
        self._others: list[str] = []
        self._reason = ""
        self.is_cut = False

    def ends_before(self, member: Member) -> bool:
        """Returns True if a member begins another sample."""
        if not self._members:
            return False
        last = self._members[-1]
        if member.key != last.key:
            return True
        if member.dotted_key == last.dotted_key:
            return False
        if not all(each.has_dots for each in (member, *self._members)):
            return False  # x.jpg, x.mask.jpg: the key is x
        self._keys_have_dots |= len({each.dotted_key for each in self._members}) < len(
            self._members
        )
        # x.input.jpg, x.output.txt are one sample, x.1.jpg, x.2.jpg are not.
        return self._keys_have_dots or any(map(str.isdigit, last.middle + member.middle))

    def add(self, member: Member, limit: int | None) -> None:
        """Reads a member; with no limit, notes only that it is there."""
        if limit is None and member.is_file:
            self._others.append(member.suffix)
        elif not self._reason:
            self._reason = self._refusal(member, limit or 0)
            content = b"" if self._reason else member.read()
            self.is_cut = not self._reason and len(content) < member.size
            self._contents.append(content)
        self._members.append(member)

    def _refusal(self, member: Member, limit: int) -> str:
        if not member.is_file or member.name.startswith("/") or ".." in member.name.split("/"):
            return "path_traversal"
        if member.size > limit:
            return "member_too_large" if limit < MAX_SAMPLE else "sample_too_large"
        if member.size + sum(map(len, self._contents)) > MAX_SAMPLE:
            return "sample_too_large"
        is_known = member.suffix in [each.suffix for each in self._members]
        return "duplicate_member" if is_known else ""

    def close(self) -> Iterator[TarSample | Reject]:
        """Yields the sample, if it has any member, and is empty after it."""
        members, first = self._members, self._members[0] if self._members else None
        if first and self._reason:
            yield Reject(self._reason, first.key, broken=True)
        elif first and self._contents and not self.is_cut:
            has_dots = first.has_dots and len({each.dotted_key for each in members}) == 1
            read = [each for each in members if each.suffix not in self._others]
            names = [each.last_suffix if has_dots else each.suffix for each in read]
            key = first.dotted_key if has_dots else first.key
            files = dict(zip(names, self._contents, strict=True))
            yield TarSample(key, files, tuple(self._others))
        self._clear()


def _is_left_behind(member: Member) -> bool:
    """Returns True for what systems and tools add: ._1.jpg, .DS_Store, __meta__.json."""
    parts = member.name.removeprefix("./").split("/")
    return any(is_clutter(part) for part in parts if part != "..") or (
        len(parts[-1]) > 4 and parts[-1].startswith("__") and "__." in parts[-1]
    )
