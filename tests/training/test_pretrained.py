"""ImageNet weights: which are on the server, and how they come there with and without internet."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.core.management import CommandError, call_command

from training import pretrained
from training.ml.architectures import ARCHITECTURES, PublishedWeights
from xrayplatform.audit import AuditEntry

CONTENT = b"weights " * 1000
DIGEST = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
NAME = "MobileNetV3Small"


class Server:
    """A web server on this machine that answers every request with `status` and `body`."""

    def __init__(self):
        self.status, self.body, self.asked, self.promised = 200, CONTENT, [], None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                self.send_response(server.status)
                self.send_header("Content-Length", str(server.promised or len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *args):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=[0.01], daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("training.ml.architectures._BUCKET", (server := Server()).address)
    monkeypatch.setattr("training.pretrained.require_disk", lambda needed: None)
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """One architecture's published file is one of this test's own; the others are those that Keras publishes."""
    monkeypatch.setattr("training.pretrained.require_disk", lambda needed: None)
    weights = PublishedWeights("small_notop.h5", DIGEST, "some/folder")
    entry = ARCHITECTURES[NAME]
    monkeypatch.setitem(ARCHITECTURES, NAME, type(entry)(**(vars(entry) | {"pretrained": weights})))
    return weights


def run(capsys, *arguments):
    """The JSON object that the command printed, and its exit status."""
    status = 0
    try:
        call_command("pretrained", *arguments, "--json")
    except SystemExit as end:
        status = end.code
    return json.loads(capsys.readouterr().out), status


def states(answer):
    return {row["architecture"]: row["state"] for row in answer["architectures"]}


def folder():
    return pretrained.pretrained_folder()


def names():
    return sorted(path.name for path in folder().iterdir()) if folder().exists() else []


def test_the_list_names_file_hash_and_address_of_every_architecture_that_has_weights(db, capsys):
    answer, _ = run(capsys, "list")
    assert list(states(answer)) == [name for name in ARCHITECTURES if name != "Custom_CNN"]
    assert set(states(answer).values()) == {"absent"}
    assert answer["architectures"][0] == {
        "architecture": "EfficientNetB0",
        "state": "absent",
        "file": "efficientnetb0_notop.h5",
        "algorithm": "md5",
        "digest": "50bc09e76180e00e4465e1a485ddc09d",
        "url": "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
    }


def test_a_newer_file_is_checked_by_sha256_as_keras_does(db, capsys):
    answer, _ = run(capsys, "list")
    row = next(row for row in answer["architectures"] if row["architecture"] == "ConvNeXtTiny")
    assert (row["algorithm"], len(row["digest"])) == ("sha256", 64)


def test_fetch_downloads_verifies_and_records(db, capsys, server, published):
    answer, status = run(capsys, "fetch", NAME)
    assert (status, answer["installed"], states(answer)[NAME]) == (0, [NAME], "installed")
    assert (folder() / "small_notop.h5").read_bytes() == CONTENT
    assert server.asked == ["/some/folder/small_notop.h5"]
    entry = AuditEntry.objects.get(action="pretrained.fetch")
    assert entry.after == {"architecture": NAME, "file": "small_notop.h5", "md5": DIGEST}


def test_what_is_installed_is_not_downloaded_again(db, capsys, server):
    run(capsys, "fetch", NAME)
    answer, status = run(capsys, "fetch", NAME)
    assert (status, answer["installed"], len(server.asked)) == (0, [], 1)


def test_a_damaged_file_is_named_and_replaced(db, capsys, server):
    folder().mkdir()
    (folder() / "small_notop.h5").write_bytes(b"cut off")
    assert states(run(capsys, "list")[0])[NAME] == "damaged"
    assert states(run(capsys, "fetch", NAME)[0])[NAME] == "installed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": b"<html>Please log in</html>"}, "is not the published file: its MD5 is"),
        ({"body": CONTENT[:-5], "promised": len(CONTENT)}, "is not the published file: its MD5 is"),
        ({"status": 404}, "Not Found"),
        ({"body": CONTENT * 9}, "more than 50,000 bytes"),
    ],
)
def test_a_download_that_is_not_the_published_file_leaves_nothing_behind(
    db, capsys, server, monkeypatch, change, reason
):
    monkeypatch.setattr(pretrained, "MAX_BYTES", 50_000)
    vars(server).update(change)
    answer, status = run(capsys, "fetch", NAME)
    assert status == 1 and reason in answer["errors"][0]
    assert "pretrained add FILE" in answer["errors"][0] or "more than" in reason
    assert names() == []
    assert not AuditEntry.objects.exists()


def test_without_internet_the_answer_says_what_to_bring_from_where(db, capsys, server, monkeypatch):
    server.http.server_close()
    answer, status = run(capsys, "fetch", NAME)
    assert status == 1
    assert f"{server.address}some/folder/small_notop.h5 could not be downloaded: " in answer["errors"][0]
    assert "bring the file along and run `manage.py pretrained add FILE`" in answer["errors"][0]


def test_a_server_that_stops_answering_is_given_up(db, capsys, monkeypatch, published):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("training.ml.architectures._BUCKET", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setattr(pretrained, "TIMEOUT_SECONDS", 0.1)
        answer, status = run(capsys, "fetch", NAME)
    assert status == 1 and "timed out" in answer["errors"][0]


def test_one_failure_does_not_keep_the_others_from_coming(db, capsys, server):
    answer, status = run(capsys, "fetch", "VGG16", NAME)
    assert (status, answer["installed"]) == (1, [NAME])
    assert answer["errors"][0].startswith("VGG16: ")


@pytest.mark.parametrize(("name", "reason"), [("AlexNet", "there are EfficientNetB0"), ("Custom_CNN", "no published")])
def test_what_has_no_weights_is_refused_in_words(db, capsys, name, reason):
    answer, status = run(capsys, "fetch", name)
    assert status == 1 and reason in (answer.get("error") or answer["errors"][0])


def test_a_file_that_was_carried_in_is_known_by_its_hash_whatever_its_name(db, capsys, tmp_path):
    (tmp_path / "from the USB stick.bin").write_bytes(CONTENT)
    answer, status = run(capsys, "add", str(tmp_path / "from the USB stick.bin"))
    assert (status, answer["installed"], names()) == (0, [NAME], ["small_notop.h5"])
    assert AuditEntry.objects.get().action == "pretrained.add"


def test_a_file_that_nobody_published_is_refused_by_its_hash(db, capsys, tmp_path):
    (tmp_path / "small_notop.h5").write_bytes(b"something else")
    answer, status = run(capsys, "add", str(tmp_path / "small_notop.h5"))
    assert status == 1 and hashlib.md5(b"something else", usedforsecurity=False).hexdigest() in answer["errors"][0]
    assert "none of the published files" in answer["errors"][0] and names() == []


def test_a_file_that_is_not_there_is_said_to_be_missing(db, capsys, tmp_path):
    answer, status = run(capsys, "add", str(tmp_path / "nothing.h5"))
    assert status == 1 and "cannot be read: No such file" in answer["errors"][0]


def test_a_full_disk_is_said_before_the_download(db, capsys, server, monkeypatch):
    def full(needed):
        raise pretrained.NotEnoughDisk("Only 1 GB is free.")

    monkeypatch.setattr("training.pretrained.require_disk", full)
    answer, status = run(capsys, "fetch", NAME)
    assert status == 1 and "Only 1 GB is free." in answer["errors"][0] and server.asked == []


def test_without_an_audit_entry_nothing_is_installed(db, capsys, server, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("the database is read-only")

    monkeypatch.setattr("training.pretrained.audit.record", broken)
    assert run(capsys, "fetch", NAME)[1] == 1
    assert names() == []


def test_a_person_is_told_in_words(db, capsys, server):
    call_command("pretrained", "fetch", NAME)
    assert f"Installed the weights of {NAME}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "user", "allowed"),
    [
        (["list"], "bob", True),
        (["fetch", NAME], "bob", False),
        (["fetch", NAME], "alice", True),
    ],
)
def test_who_may_train_may_install_what_trainings_start_from(alice, bob, capsys, server, arguments, user, allowed):
    if not allowed:
        with pytest.raises(CommandError, match="bob has no role"):
            call_command("pretrained", *arguments, "--user", user)
        return
    call_command("pretrained", *arguments, "--user", user)
    assert [entry.actor.username for entry in AuditEntry.objects.all()] == ([user] if "fetch" in arguments else [])


def test_the_page_shows_what_is_there_and_what_to_do_about_the_rest(client, alice, capsys, server):
    run(capsys, "fetch", NAME)
    client.force_login(alice)
    page = client.get("/training/pretrained/").content.decode()
    assert page.count("not installed") == 6
    assert page.count("</i> installed") == 1
    assert DIGEST in page and "efficientnetb0_notop.h5" in page
    assert "pretrained fetch EfficientNetB0" in page and "pretrained add FILE" in page


def test_the_api_shows_the_same(api, alice, capsys, server):
    run(capsys, "fetch", NAME)
    api.force_authenticate(alice)
    answer = {row["id"]: row for row in api.get("/api/v1/architectures/").json()}
    assert list(answer) == list(ARCHITECTURES)
    assert answer[NAME]["pretrained"] == {
        "file_name": "small_notop.h5",
        "algorithm": "md5",
        "digest": DIGEST,
        "url": f"{server.address}some/folder/small_notop.h5",
        "state": "installed",
    }
    assert answer["VGG16"]["pretrained"]["state"] == "absent"
    assert answer["Custom_CNN"]["pretrained"] is None
