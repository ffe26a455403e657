"""A backup is the workspace at one moment, also in the middle of learning; a restored one answers the same, and no damage gets in."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_documents, tiny_questions
from typer.testing import CliRunner

from retain.cli.main import app
from retain.config import load_config
from retain.data.document import Document
from retain.workspace import Conflict, Damaged, NotFound, Store
from retain.workspace import backup as module
from retain.workspace.backup import back_up, restore
from retain.workspace.continual import ContinualLM
from retain.workspace.inbox import Arrival
from retain.workspace.ledger import Ledger
from retain.workspace.reports import Event
from retain.workspace.worker import Worker

SETTINGS = {
    "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "batch_tokens": 256, "learning_rate": 5e-3, "learner": "jitrl"},
    "study": {"writer": "none"}, "route": {"least_bits": 2.0, "threshold": 0.4}, "model": {"precision": "float32"}, "gate": {"attempts": 1},
}  # fmt: skip
QUESTIONS = [item.wordings[-1] for number in range(2) for item in tiny_questions(number)]


def opened(root: Path, model: Any, **more: Any) -> ContinualLM:
    return ContinualLM.open(root, model, config=load_config(None, SETTINGS), **more)


def answers(lm: ContinualLM) -> list[str]:
    return [lm.ask(question, max_tokens=16).text for question in QUESTIONS]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """A workspace of one document, with another one waiting, and a configuration."""
    root = tmp_path_factory.mktemp("learned") / "work"
    with opened(root, tiny_model) as lm:
        title, text = tiny_documents()[0]
        lm.learn(Document.from_text(text, title))
        lm.ledger.receive([Arrival(tiny_documents()[1][1].encode(), name="second")])
    (root / "config.yaml").write_text("learn:\n  rank: 8\n")
    return root


def test_a_restored_workspace_is_the_same(learned: Path, tmp_path: Path, tiny_model: Any) -> None:
    made = back_up(learned, tmp_path / "b.tar")
    assert made.objects > 2 and made.bytes == (tmp_path / "b.tar").stat().st_size
    assert (tmp_path / "b.tar").stat().st_mode & 0o077 == 0, "it holds every document: for nobody else"
    (tmp_path / "again").mkdir()  # an empty folder will do
    assert restore(tmp_path / "b.tar", tmp_path / "again").created_at == made.created_at
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "b.tar"], "nothing is left beside"
    assert (tmp_path / "again" / "config.yaml").read_text() == "learn:\n  rank: 8\n"
    with opened(learned, tiny_model) as before, opened(tmp_path / "again", tiny_model) as after:
        found = after.verify()
        assert found.ok, found.problems
        assert [update.id for update in after.log()] == [update.id for update in before.log()]
        assert answers(after) == answers(before)
        assert tiny_questions(0)[0].answer.lower() in answers(after)[0].lower(), "what was learned is there"
        assert after.ledger.waiting() == 1 and Worker(after).once(), "what waited is learned in the copy"
        assert after.ledger.waiting() == 0 and before.ledger.waiting() == 1, "the two are independent"


def test_in_the_middle_of_learning(tmp_path: Path, tiny_model: Any) -> None:
    made: list[Path] = []
    errors: list[BaseException] = []

    def during(event: Event) -> None:
        """Back up from another thread with files of its own, as another process would, whenever something happens."""
        if len(made) < 12:
            target = tmp_path / f"b{len(made)}.tar"
            made.append(target)

            def run() -> None:
                try:
                    back_up(tmp_path / "work", target)
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

    with opened(tmp_path / "work", tiny_model, progress=during) as lm:
        lm.ledger.receive([Arrival(text.encode(), name=title) for title, text in tiny_documents()[:2]])
        worker = Worker(lm)
        while worker.once():
            pass
        expected = answers(lm)
    assert not errors and len(made) > 3
    learning = 0
    for number, archive in enumerate(made):
        restore(archive, tmp_path / f"r{number}")
        with opened(tmp_path / f"r{number}", tiny_model) as lm:
            assert lm.ledger.check() == [] and lm.store.verify(lm.ledger.referenced_digests()) == []
            learning += lm.ledger.waiting() > 0
    assert learning > 1, "some were made while something was being learned"
    with opened(tmp_path / "r0", tiny_model) as lm:  # the earliest goes on from where it was, and ends with the same answers
        worker = Worker(lm)
        while worker.once():
            pass
        assert lm.verify().ok and answers(lm) == expected and len(lm.ledger.documents("committed")) == 2


def test_what_is_forgotten_while_it_is_copied(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(learned, tmp_path / "work")
    whole, tries = module._copy_ledger, []

    def slow(source: Path, target: Path) -> None:
        whole(source, target)
        tries.append(target)
        if len(tries) == 1:  # after the snapshot the object goes away: at first as if it had been collected
            study = next(iter(Ledger.open(tmp_path / "work" / "ledger.db", Store(tmp_path / "work"))._rows("SELECT digest FROM study")))[0]
            place = Store(tmp_path / "work").path(study)
            hidden.append((place, place.read_bytes()))
            place.unlink()
        else:
            hidden[0][0].write_bytes(hidden[0][1])

    hidden: list[tuple[Path, bytes]] = []
    monkeypatch.setattr(module, "_copy_ledger", slow)
    back_up(tmp_path / "work", tmp_path / "b.tar")
    assert len(tries) == 2
    monkeypatch.setattr(module, "_copy_ledger", whole)
    hidden[0][0].unlink()
    with pytest.raises(Damaged, match="which the ledger names"):
        back_up(tmp_path / "work", tmp_path / "c.tar")
    hidden[0][0].write_bytes(b"other bytes")
    with pytest.raises(Damaged, match="does not match"):
        back_up(tmp_path / "work", tmp_path / "c.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "work"], "no half of a backup"


def test_damaged_archives_leave_nothing(learned: Path, tmp_path: Path) -> None:
    back_up(learned, tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    ends = [0, 100, 512, 1500, len(whole) // 3, len(whole) // 2, len(whole) - 11_000]
    wrong = {f"cut at {end}": whole[:end] for end in ends}
    with tarfile.open(tmp_path / "b.tar") as tar:
        starts = {member.name: member.offset_data for member in tar}
    last_object = max(start for name, start in starts.items() if name.startswith("objects/"))
    for place in (starts["ledger.db"] + 5000, len(whole) // 2, last_object + 20):
        wrong[f"changed at {place}"] = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    wrong["text"] = b"not a tar at all" * 100
    for name, body in wrong.items():
        (tmp_path / "x.tar").write_bytes(body)
        with pytest.raises(Damaged) as refused:
            restore(tmp_path / "x.tar", tmp_path / "again")
        assert "\n" not in str(refused.value), name
    with tarfile.open(tmp_path / "b.tar") as tar:
        names = tar.getnames()
        members = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]

    def archive(names: list[str]) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(members.get(name, b""))
                tar.addfile(member, io.BytesIO(members.get(name, b"")))

    for left_out in names:
        if left_out != "config.yaml":
            archive([name for name in names if name != left_out])
            with pytest.raises(Damaged):
                restore(tmp_path / "x.tar", tmp_path / "again")
    for strange in ("../evil", "/tmp/evil", "objects/../evil", "lock"):
        archive([*names, strange])
        with pytest.raises(Damaged, match="does not belong"):
            restore(tmp_path / "x.tar", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "x.tar"]
    archive(names)
    restore(tmp_path / "x.tar", tmp_path / "again")  # the control: unchanged members are taken


def test_nothing_is_written_over(learned: Path, tmp_path: Path) -> None:
    back_up(learned, tmp_path / "b.tar")
    with pytest.raises(Conflict, match="exists already"):
        back_up(learned, tmp_path / "b.tar")
    with pytest.raises(Conflict, match="not empty"):
        restore(tmp_path / "b.tar", learned)
    with pytest.raises(NotFound, match="no folder"):
        back_up(learned, tmp_path / "none" / "b.tar")
    with pytest.raises(NotFound):
        restore(tmp_path / "none.tar", tmp_path / "again")
    with pytest.raises(NotFound, match="workspace"):
        back_up(tmp_path, tmp_path / "c.tar")


def test_on_the_command_line(learned: Path, tmp_path: Path) -> None:
    def retain(*words: str) -> Any:
        return CliRunner().invoke(app, list(words), prog_name="retain")

    done = retain("backup", str(tmp_path / "b.tar"), "-w", str(learned))
    assert done.exit_code == 0 and "objects" in done.stdout
    done = retain("restore", str(tmp_path / "b.tar"), "--workspace", str(tmp_path / "again"))
    assert done.exit_code == 0 and (tmp_path / "again" / "ledger.db").is_file()
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) // 2])
    for words, said in (
        (("restore", str(tmp_path / "x.tar"), "-w", str(tmp_path / "third")), "cannot be read to its end"),
        (("restore", str(tmp_path / "b.tar"), "-w", str(learned)), "not empty"),
        (("backup", str(tmp_path / "b.tar"), "-w", str(learned)), "exists already"),
        (("backup", str(tmp_path / "c.tar"), "-w", str(tmp_path / "none")), "no workspace"),
    ):
        done = retain(*words)
        assert done.exit_code == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "third").exists()
