"""Files in folders and archives, whole and damaged."""

import gzip
import io
import lzma
import tarfile

import pytest

from espalier.data.source import Archive, Folder, read, stored_name
from espalier.errors import DataError

TEXT = bytes(range(256)) * 8


def packed(path, files, mode):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"some/folder/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_plain_file_goes_before_compressed(write_files, tmp_path):
    write_files(tmp_path, {"a": b"plain", "a.gz": gzip.compress(b"gz"), "b.xz": lzma.compress(b"xz")})
    folder = Folder(tmp_path)
    assert read(folder, "a").data == b"plain"
    assert read(folder, "none", "b").data == b"xz"
    assert stored_name(folder, "none", "c") is None


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_archive(ending, tmp_path):
    path = packed(tmp_path / f"x.{ending}", {"a": TEXT, "b.gz": gzip.compress(b"gz")}, f"w:{ending[4:]}")
    archive = Archive.open(path)
    assert archive.names() == {"a", "b.gz"}
    assert read(archive, "a").data == TEXT
    assert read(archive, "b").data == b"gz"
    assert read(archive, "b").place == f"{path}:b.gz"


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_compressed_file_wrong(ending, compress, damage, tmp_path):
    whole = compress(TEXT)
    middle = len(whole) // 2
    content = {"truncated": whole[:-9], "foreign": b"no such data",
               "changed": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1:]}[damage]
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(Folder(tmp_path), "a")
    assert str(error.value).startswith(f"{tmp_path}/a{ending} is corrupt or truncated {ending} data (")
    assert str(error.value).endswith("): get the file again")


@pytest.mark.parametrize(("name", "content"), [("a", b""), ("a.gz", gzip.compress(b"", mtime=0))])
def test_empty_file_wrong(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(Folder(tmp_path), "a")
    assert str(error.value) == f"{tmp_path}/{name} is empty: get the file again"


def test_file_missing_wrong(tmp_path):
    with pytest.raises(DataError) as error:
        read(Folder(tmp_path / "nowhere"), "a", "b")
    assert str(error.value) == (f"A file of the data set is missing: tried {tmp_path}/nowhere/a, {tmp_path}/nowhere/b, "
                                "each also with .gz and .xz; put it there")


def test_file_unreadable_wrong(tmp_path):
    with pytest.raises(DataError) as error:
        Folder(tmp_path).stored("gone")
    assert str(error.value) == (f"{tmp_path}/gone cannot be read (No such file or directory): check the path and its "
                                "permissions")


@pytest.mark.parametrize("content", [b"no archive", None])
def test_archive_wrong(content, tmp_path):
    path = packed(tmp_path / "x.tar", {"a": TEXT}, "w:")
    path.write_bytes(content or path.read_bytes()[:700])
    with pytest.raises(DataError) as error:
        Archive.open(path)
    assert str(error.value).startswith(f"The archive {path} is corrupt or truncated (")
    assert str(error.value).endswith("): get it again")


@pytest.mark.parametrize("ending", ["gz", "xz"])
def test_archive_compressed_wrong(ending, tmp_path):
    path = packed(tmp_path / f"x.tar.{ending}", {"a": TEXT}, f"w:{ending}")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=f"is corrupt or truncated .{ending} data"):
        Archive.open(path)
