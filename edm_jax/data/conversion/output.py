"""Where a conversion writes: an archive or a folder, complete or not there at all.

Unfinished work lies in ``<dest>.partial``: the data, and a journal with a line per
commit.  What counts after a kill is the longest run of images that the journal names
and whose data are intact (CRC), so no order of writes to the disk can do harm.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from edm_jax.data.sources.labels import METADATA
from edm_jax.data.sources.names import shown
from edm_jax.data.sources.stored_zip import Entry, central_directory, stored_record

_FORMAT = 1
# Endings of files that somebody may expect, where a folder of that name would be made.
_OTHER_FILES = (
    ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz", ".npy", ".h5", ".hdf5",
    ".mat", ".lmdb", ".mdb", ".tfrecord", ".tfrecords", ".array_record", ".parquet", ".arrow",
    ".json", ".csv", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".pkl", ".pt", ".pth",
    ".safetensors",
)  # fmt: skip


def image_name(index: int) -> str:
    """Name of image ``index`` in the EDM format."""
    number = f"{index:08d}"
    return f"{number[:5]}/img{number}.png"


def open_output(dest: str) -> Output:
    """The output for a destination; nothing is written yet.

    Raises:
      ValueError: if something is there already.
    """
    zipped = dest.lower().endswith(".zip")
    if not zipped and dest.lower().endswith(_OTHER_FILES):
        raise ValueError(
            f"dest {shown(dest)}: what is written is a .zip file or a folder, no "
            f"{os.path.splitext(dest)[1]}; choose a name that ends in .zip, or a folder's"
        )
    occupied = os.path.lexists(dest) and (
        zipped or not os.path.isdir(dest) or bool(os.listdir(dest))
    )
    partial = dest + ".partial"
    if occupied:
        # A kill right after the final name was given leaves a journal without data.
        if os.path.isdir(partial) and not {"data", "data.zip"} & set(os.listdir(partial)):
            shutil.rmtree(partial)
        raise ValueError(
            f"dest {dest} exists{'' if zipped else ' and is not an empty folder'}; delete it or "
            "choose another name"
        )
    return ZipOutput(dest) if zipped else FolderOutput(dest)


class Output(abc.ABC):
    """Journal and life cycle; the subclasses know how images are stored.

    Attributes:
      entries: number and archive entry of every image written.
      problems: ``(number, name, text, used)`` of odd images.
      next_index: the first image still to be done.
      shape: of all images, once there is one.
      uncommitted: images since the last commit.
    """

    def __init__(self, dest: str):
        self.dest = dest
        self.partial = dest + ".partial"
        self.entries: list[tuple[int, Entry]] = []
        self.problems: list[tuple[int, str, str, bool]] = []
        self.next_index = 0
        self.shape: tuple[int, int, int] | None = None
        self.uncommitted = 0
        self._committed = (0, 0)  # lengths of entries and problems
        self._worthless = False

    # ------------------------------------------------- what subclasses say

    @abc.abstractmethod
    def _open(self) -> None:
        """Open the data, created if absent."""

    @abc.abstractmethod
    def _intact(self) -> int:
        """How many of ``entries``, from the first, are on disk undamaged."""

    @abc.abstractmethod
    def _truncate(self) -> None:
        """Remove everything after ``entries``."""

    @abc.abstractmethod
    def _write(self, entry: Entry, record: bytes, png: bytes) -> None:
        """Append one image."""

    @abc.abstractmethod
    def _flush(self) -> None:
        """Hand what is written to the operating system."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Close what is open; may be called twice."""

    @abc.abstractmethod
    def _publish(self, metadata: bytes) -> None:
        """Complete the data and give them their final name."""

    # ----------------------------------------------------------- life cycle

    @contextlib.contextmanager
    def begin(self, job: dict[str, Any]) -> Iterator[None]:
        """Hold the output open, continued if the same job was interrupted.

        Raises:
          ValueError: if another process is writing it, if what is there belongs to
            another job, or if it cannot be written.
        """
        try:
            os.makedirs(self.partial, exist_ok=True)
            lock = open(os.path.join(self.partial, "lock"), "wb")
        except OSError as error:
            raise ValueError(f"dest {self.dest} cannot be written ({error})") from error
        try:
            with lock:
                _lock(lock, self.dest)
                self._load_journal(job)
                self._open()
                try:
                    self._keep_intact()
                    self._rewrite_journal(job)
                    yield
                    self._worthless = True
                finally:
                    self._worthless |= not self.entries
                    self._close()
        finally:
            # Published, or never begun: nothing to go on from.
            if self._worthless:
                shutil.rmtree(self.partial)

    def add(
        self, index: int, png: bytes | None, problems: list[tuple[int, str, str, bool]]
    ) -> None:
        """Image ``index``, the next one; ``png`` None leaves a gap."""
        assert index == self.next_index, (index, self.next_index)
        if png is not None:
            entry, record = stored_record(image_name(index), png)
            self._write(entry, record, png)
            self.entries.append((index, entry))
        self.problems += problems
        self.next_index += 1
        self.uncommitted += 1

    def commit(self) -> None:
        """Make everything so far survive a kill."""
        if self.uncommitted:
            self._flush()
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(self._line())
        self.uncommitted = 0
        self._committed = (len(self.entries), len(self.problems))

    def require_space(self, image_size: int, count: int) -> None:
        """ValueError unless ``count`` images of that many bytes fit on the disk."""
        need = count * (image_size + 200)  # headers, names and labels
        free = shutil.disk_usage(self.partial).free
        if need > free:
            raise ValueError(
                f"dest {self.dest} needs {need / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB "
                "free; make room or choose another disk"
            )

    def finish(self, metadata: bytes) -> None:
        """Complete the output and give it its final name."""
        self.commit()
        self._publish(metadata)

    # -------------------------------------------------------------- journal

    @property
    def _journal(self) -> str:
        return os.path.join(self.partial, "journal")

    def _line(self) -> str:
        entries, problems = self._committed
        line = {
            "next": self.next_index,
            "shape": self.shape,
            "entries": [[i, e.size, e.crc] for i, e in self.entries[entries:]],
            "problems": self.problems[problems:],
        }
        return json.dumps(line) + "\n"

    def _load_journal(self, job: dict[str, Any]) -> None:
        try:
            with open(self._journal, encoding="utf-8") as file:
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return
        if not lines or not lines[0].endswith("\n"):
            return
        header = json.loads(lines[0])
        was = header.get("job", {})
        other = sorted(key for key in job if job[key] != was.get(key))
        if header.get("format") != _FORMAT or other:
            raise ValueError(
                f"{self.partial} holds an unfinished conversion of another kind: "
                + "; ".join(f"{key} was {was.get(key)}, now {job[key]}" for key in other)
                + ". Repeat that command, or delete the folder to start anew"
            )
        for text in lines[1:]:
            if not text.endswith("\n"):  # the kill came while it was written
                break
            line = json.loads(text)
            self.entries += [(i, Entry(image_name(i), *rest)) for i, *rest in line["entries"]]
            self.problems += [tuple(problem) for problem in line["problems"]]
            self.next_index = line["next"]
            self.shape = tuple(line["shape"]) if line["shape"] else None

    def _keep_intact(self) -> None:
        intact = self._intact()
        if intact < len(self.entries):
            self.next_index = self.entries[intact][0]
            del self.entries[intact:]
            self.problems = [p for p in self.problems if p[0] < self.next_index]
            if not self.entries:
                self.shape = None
        self._truncate()

    def _rewrite_journal(self, job: dict[str, Any]) -> None:
        with open(self._journal + ".new", "w", encoding="utf-8") as file:
            file.write(json.dumps({"format": _FORMAT, "job": job}) + "\n" + self._line())
        os.replace(self._journal + ".new", self._journal)
        self._committed = (len(self.entries), len(self.problems))


class ZipOutput(Output):
    """An archive; on disk it is always a prefix of the finished one."""

    _file: BinaryIO | None = None

    def _open(self) -> None:
        path = os.path.join(self.partial, "data.zip")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._file = os.fdopen(descriptor, "r+b")

    def _intact(self) -> int:
        self._file.seek(0)
        for count, (_, entry) in enumerate(self.entries):
            record = self._file.read(entry.record_size)
            if stored_record(entry.name, record[-entry.size :]) != (entry, record):
                return count
        return len(self.entries)

    def _end(self) -> int:
        return sum(entry.record_size for _, entry in self.entries)

    def _truncate(self) -> None:
        self._file.truncate(self._end())
        self._file.seek(self._end())

    def _write(self, entry: Entry, record: bytes, png: bytes) -> None:
        self._file.write(record)

    def _flush(self) -> None:
        self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _publish(self, metadata: bytes) -> None:
        entry, record = stored_record(METADATA, metadata)
        entries = [e for _, e in self.entries] + [entry]
        self._file.write(record + central_directory(entries))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._close()
        os.replace(os.path.join(self.partial, "data.zip"), self.dest)


class FolderOutput(Output):
    """A folder with a file per image."""

    def _path(self, name: str) -> str:
        return os.path.join(self.partial, "data", *name.split("/"))

    def _open(self) -> None:
        os.makedirs(os.path.join(self.partial, "data"), exist_ok=True)

    def _intact(self) -> int:
        for count, (_, entry) in enumerate(self.entries):
            try:
                with open(self._path(entry.name), "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                return count
            if (len(data), zlib.crc32(data)) != (entry.size, entry.crc):
                return count
        return len(self.entries)

    def _truncate(self) -> None:
        known = {entry.name for _, entry in self.entries}
        root = os.path.join(self.partial, "data")
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.relpath(path, root).replace(os.sep, "/") not in known:
                    os.remove(path)

    def _write(self, entry: Entry, record: bytes, png: bytes) -> None:
        path = self._path(entry.name)
        try:
            file = open(path, "wb")
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(path, "wb")
        with file:
            file.write(png)

    def _flush(self) -> None:
        pass  # every file is closed when it is written

    def _close(self) -> None:
        pass

    def _publish(self, metadata: bytes) -> None:
        with open(self._path(METADATA), "wb") as file:
            file.write(metadata)
            file.flush()
            os.fsync(file.fileno())
        if os.path.isdir(self.dest):
            os.rmdir(self.dest)  # empty, and in the way on Windows
        os.rename(os.path.join(self.partial, "data"), self.dest)


def _lock(file: BinaryIO, dest: str) -> None:
    """Refuse a second writer; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing stops two of them
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"dest {dest} is being written by another process; wait for it or choose another name"
        ) from error
