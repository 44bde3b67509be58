import io
import tarfile

import pytest

from retinanet_tpu import errors
from retinanet_tpu.serving.browser import onnxruntime_web

FILES = {
    "ort.wasm.min.js": b"/*!\n * ONNX Runtime Web v1.30.0\n */ var ort;",
    "ort-wasm-simd-threaded.mjs": b"export default 1;",
    "ort-wasm-simd-threaded.wasm": b"\0asm",
}
RUNTIME = onnxruntime_web.Runtime("1.30.0", *(FILES[n].decode() for n in FILES))
RUNTIME = RUNTIME._replace(wasm=b"\0asm")
COMMAND = r"npm pack onnxruntime-web@1\.30\.0"


def write_archive(path, files, *links):
    with tarfile.open(path, "w:gz") as archive:
        for link in links:
            archive.addfile(link)
        for name, content in files.items():
            for folder in ("package/dist", "package/other"):
                member = tarfile.TarInfo(f"{folder}/{name}")
                data = content if folder == "package/dist" else b"not this"
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path, files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def test_an_archive_of_npm_is_read(tmp_path):
    path = write_archive(tmp_path / "web.tgz", FILES)
    assert onnxruntime_web.read(str(path)) == RUNTIME


@pytest.mark.parametrize("folder", ["", "dist", "package/dist"])
def test_an_unpacked_package_is_read(tmp_path, folder):
    write_folder(tmp_path / "web" / folder, FILES)
    assert onnxruntime_web.read(str(tmp_path / "web")) == RUNTIME


def test_a_script_without_a_version_is_read(tmp_path):
    write_folder(tmp_path / "web", FILES | {"ort.wasm.min.js": b"var ort;"})
    assert onnxruntime_web.read(str(tmp_path / "web")).version == ""


def test_without_the_package_the_error_has_the_command(tmp_path):
    with pytest.raises(errors.MissingFileError, match=f"not exist.*{COMMAND}"):
        onnxruntime_web.read(str(tmp_path / "no.tgz"))


@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_missing_files_are_named(tmp_path, write):
    files = {n: c for n, c in FILES.items() if not n.endswith(".wasm")}
    write(tmp_path / "web", files)
    lacks = r"lacks dist/ort-wasm-simd-threaded\.wasm; "
    with pytest.raises(errors.MissingFileError, match=f"{lacks}.*{COMMAND}"):
        onnxruntime_web.read(str(tmp_path / "web"))


def test_a_corrupt_archive_is_refused(tmp_path):
    path = write_archive(tmp_path / "web.tgz", FILES)
    content = path.read_bytes()
    for corrupt in (b"html", content[:-40], content[:20] + b"x" * 90):
        path.write_bytes(corrupt)
        with pytest.raises(errors.UserError, match=f"cannot be read.*{COMMAND}"):
            onnxruntime_web.read(str(path))


@pytest.mark.parametrize("name", ["ort.wasm.min.js", "ort-wasm-simd-threaded.mjs"])
def test_a_corrupt_script_is_refused(tmp_path, name):
    path = write_archive(tmp_path / "web.tgz", FILES | {name: b"\xff\xfe\xfd"})
    with pytest.raises(errors.UserError, match=f"{name} is not UTF-8; .*{COMMAND}"):
        onnxruntime_web.read(str(path))


@pytest.mark.parametrize("link_type", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_an_archive_are_not_followed(tmp_path, link_type):
    files = dict(FILES)
    del files["ort-wasm-simd-threaded.wasm"]
    for name, is_complete in (("readme", True), ("ort-wasm-simd-threaded.wasm", False)):
        link = tarfile.TarInfo(f"package/dist/{name}")
        link.type, link.linkname = link_type, "package/dist/absent"
        path = tmp_path / f"{name}.tgz"
        write_archive(path, FILES if is_complete else files, link)
        if is_complete:
            assert onnxruntime_web.read(str(path)) == RUNTIME
            continue
        with pytest.raises(errors.MissingFileError, match="lacks dist/ort-wasm"):
            onnxruntime_web.read(str(path))
