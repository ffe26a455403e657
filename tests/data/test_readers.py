from __future__ import annotations

import json
import socket
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retain.data import DataError, Message, QuestionAnswer, read_path


def read(path, **options):
    notes = []
    found = list(read_path(path, on_note=notes.append, **options))
    return found, [str(note) for note in notes]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path, *records):
    return write(path, "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))


def pdf(path, *pages, encrypt=False):
    """A PDF file written by hand: one line of text for each string of each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        stream = "BT /F1 12 Tf 14 TL 72 720 Td " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        resources = "<< /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {resources} /Contents {len(objects)} 0 R >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    write(
        path, f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    )
    if encrypt:
        import pypdf

        writer = pypdf.PdfWriter(clone_from=path)
        writer.encrypt("secret", algorithm="RC4-128")
        writer.write(path)
    return path


def test_text_markdown_and_code(tmp_path):
    write(tmp_path / "a.txt", "It sails at nine.")
    write(tmp_path / "b.md", "# The Ferry\r\n\r\nIt is red.")
    write(tmp_path / "c.py", "def sail():\n    return 9\n")
    found, notes = read(tmp_path, domain="boats", importance=0.9)
    assert [(document.title, document.kind, document.text) for document in found] == [
        ("a.txt", "text", "It sails at nine."),
        ("The Ferry", "text", "# The Ferry\n\nIt is red."),
        ("c.py", "code", "def sail():\n    return 9\n"),
    ]
    assert {(document.domain, document.importance) for document in found} == {("boats", 0.9)}
    assert found[0].source == str(tmp_path / "a.txt") and notes == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("Café".encode("utf-8-sig"), False),
        ("Café".encode("utf-16"), False),
        ("Café".encode("utf-32"), False),
        ("Café".encode("cp1252"), True),
    ],
)
def test_encodings(tmp_path, data, told):
    found, notes = read(write(tmp_path / "a.txt", data))
    assert found[0].text == "Café"
    assert any("read as Windows-1252" in note for note in notes) == told


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\t", "the file is empty"),
        ("a.txt", b"\xef\xbb\xbf \n", "the file is empty"),
        ("a.txt", b"MZ\x00\x00\x01\x02" * 50, "binary data"),
        ("a.md", bytes(range(1, 256)) * 20, "not text|binary"),
        ("a.txt", b"\xff\xfe" + b"\x00\xd8" * 3, "marked as UTF-16-LE but broken"),
        ("a.pdf", b"%PDF-1.4 rubbish", "not a readable PDF"),
        ("a.pdf", b"plain text", "not a readable PDF"),
        ("a.docx", b"PK rubbish", "not a Word document"),
        ("a.docx", b"\xd0\xcf\x11\xe0 old", "an old Word file"),
        ("a.html", b"<html><script>x()</script></html>", "the page holds no text"),
        ("a.jsonl", b"\n\n", "the file is empty"),
        ("a.json", b"{nope", "line 1: not JSON"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, name, data, message):
    path = write(tmp_path / name, data)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_path_gets_a_suggestion_at_once(tmp_path):
    write(tmp_path / "report.txt", "text")
    with pytest.raises(DataError, match=r"does not exist \(did you mean 'report.txt'\?\)"):
        read_path(tmp_path / "reprot.txt")
    with pytest.raises(DataError, match=r"the folder '.*nowhere' does not exist either"):
        read_path(tmp_path / "nowhere" / "a.txt")


def test_wrong_metadata_is_told_at_once(tmp_path):
    with pytest.raises(DataError, match="domain"):
        read_path(tmp_path, domain="../x")
    with pytest.raises(DataError, match="importance"):
        read_path(tmp_path, importance=2.0)


def test_html_keeps_the_content_and_loses_the_frame(tmp_path):
    paragraph = "<p>The ferry sails at nine from the old pier, and it carries forty people, two bicycles and one patient goat.</p>"
    head = "<html><head><title>The Ferry</title><script>var x = 1</script></head>"
    page = f"{head}<body><nav>Home | About</nav><article><h1>Ferry</h1>{paragraph * 5}"
    found, _ = read(write(tmp_path / "a.html", page + "<h2>Tickets</h2><p>Two pounds each, café.</p></article></body></html>"))
    assert found[0].title == "The Ferry"
    assert "patient goat" in found[0].text and "## Tickets" in found[0].text and "café" in found[0].text
    assert "var x" not in found[0].text


def test_a_tiny_page_and_its_own_encoding(tmp_path):
    page = '<html><head><meta charset="iso-8859-2"><style>p {}</style></head><body><p>Łódź to miasto.</p></body></html>'
    found, _ = read(write(tmp_path / "a.htm", page.encode("iso-8859-2")))
    assert "Łódź to miasto." in found[0].text and "{}" not in found[0].text


def test_pdf(tmp_path):
    path = pdf(tmp_path / "a.pdf", ["The ferry is an exam-", "ple of a well-", "known boat, a well-known one."], ["Page two."], [])
    found, notes = read(path)
    assert "an example of" in found[0].text and "well-known boat" in found[0].text
    assert found[0].text.endswith("\n\nPage two.")
    assert any("no text on 1 of 3 pages" in note for note in notes)
    with pytest.raises(DataError, match="may be a scan"):
        read(pdf(tmp_path / "scan.pdf", []))


def test_a_locked_pdf_is_told(tmp_path):
    with pytest.raises(DataError, match="locked with a password"):
        read(pdf(tmp_path / "a.pdf", ["Secret."], encrypt=True))


def test_docx(tmp_path):
    import docx

    document = docx.Document()
    document.core_properties.title = "Ferry handbook"
    document.add_heading("Tickets", 2)
    document.add_paragraph("Two pounds each.")
    document.add_paragraph("Dogs go free", style="List Bullet")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Adult", "2.00"
    document.save(str(tmp_path / "a.docx"))
    found, _ = read(tmp_path / "a.docx")
    assert found[0].title == "Ferry handbook"
    assert found[0].text == "## Tickets\n\nTwo pounds each.\n\n- Dogs go free\n\n| Adult | 2.00 |"


def test_a_zip_that_is_no_word_document(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(DataError, match="not a readable Word document"):
        read(tmp_path / "a.docx")


def test_jsonl_forms(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"text": "It sails at nine.", "title": "Ferry", "importance": 1, "domain": "boats"},
        "",
        {"prompt": "When?", "completion": "At nine."},
        {"instruction": "Translate.", "input": "Hund", "output": "dog", "text": "ignored"},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"},
            ]
        },
        {"conversations": [{"from": "human", "value": "Hey"}, {"from": "gpt", "value": "You"}]},
        {"text": "It is red.", "questions": [{"question": "Colour?", "answer": "red", "evidence": "It is red."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Parts"}]}, {"role": "assistant", "content": "Yes"}]},
    )
    found, _ = read(path)
    ferry, talk, shared, red, parts, pairs = found
    assert (ferry.title, ferry.importance, ferry.domain, ferry.source) == ("Ferry", 1.0, "boats", f"{path}:1")
    assert talk.messages == (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Ho")) and talk.kind == "dialogue"
    assert shared.messages == (Message("user", "Hey"), Message("assistant", "You"))
    assert red.pairs == (QuestionAnswer("Colour?", "red"),) and red.kind == "text"
    assert parts.messages[0].content == "Parts"
    assert pairs.kind == "pairs" and pairs.pairs == (QuestionAnswer("When?", "At nine."), QuestionAnswer("Translate.\n\nHund", "dog"))
    assert "When?\nAt nine." in pairs.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{oops", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ({"txet": "x"}, "line 2: .*'txet'.*did you mean 'text'"),
        ({"prompt": "x"}, "no known form"),
        ({"text": 3}, "line 2, field 'text': expected text, found int"),
        ({"text": " "}, "line 2, field 'text': empty"),
        ({"prompt": "x", "completion": None}, "field 'completion': missing"),
        ({"messages": "x"}, "field 'messages': expected a list"),
        ({"messages": []}, "without words"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "asistant", "content": "x"}]},
            r"messages\[1\].role'.*did you mean 'assistant'",
        ),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\].value': missing"),
        ({"text": "x", "questions": [{"question": "y"}]}, r"questions\[0\].answer': missing"),
        ({"text": "x", "domain": "a b"}, "line 2, field 'domain'"),
        ({"text": "x", "importance": 7}, "line 2, field 'importance'"),
        ({"question": "Who?", "answer": "Bob"}, "must not be learned.*'prompt' and 'completion'"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        read(jsonl(tmp_path / "a.jsonl", {"text": "fine"}, record))


def test_json_files(tmp_path):
    found, _ = read(write(tmp_path / "a.json", json.dumps([{"text": "One."}, {"text": "Two."}])))
    assert [document.text for document in found] == ["One.", "Two."]
    squad = {
        "data": [{"title": "T", "paragraphs": [{"context": "It ran.", "qas": [{"question": "What ran?", "answers": [{"text": "It"}]}]}]}]
    }
    found, _ = read(write(tmp_path / "b.json", json.dumps(squad)))
    assert found[0].text == "It ran." and found[0].pairs == (QuestionAnswer("What ran?", "It"),)
    found, _ = read(write(tmp_path / "c.json", '{"name": "ferry", "version": 3}'))
    assert found[0].kind == "code" and '"ferry"' in found[0].text
    with pytest.raises(DataError, match=r"record 2: a record of no known form"):
        read(write(tmp_path / "d.json", '[{"text": "x"}, {"y": 1}]'))
    with pytest.raises(DataError, match="must not be learned"):
        read(write(tmp_path / "e.json", '[{"question": "x", "answer": "y"}]'))


def test_a_folder_tells_everything_it_leaves_out(tmp_path):
    write(tmp_path / "b" / "two.txt", "Two.")
    write(tmp_path / "a" / "one.txt", "One.")
    write(tmp_path / "README", "Readme.")
    for name in (".hidden.txt", ".git/config.txt", "node_modules/x.js", "photo.jpg", "empty.md", "bad.jsonl"):
        write(tmp_path / name, "" if name == "empty.md" else "{" if name == "bad.jsonl" else "content")
    write(tmp_path / "rubbish.txt", b"\x00\x01" * 100)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "again.txt").symlink_to(tmp_path / "a" / "one.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    found, notes = read(tmp_path)
    assert [document.text for document in found] == ["Readme.", "One.", "Two."]
    told = {note.split(": left out: ")[0].removeprefix(f"{tmp_path}/"): note.split(": left out: ")[1] for note in notes}
    assert told.pop("bad.jsonl").startswith("line 1: not JSON")
    assert told.pop("rubbish.txt").startswith("binary data")
    assert told == {
        ".hidden.txt": "hidden",
        ".git": "hidden",
        "node_modules": "a folder of tools",
        "photo.jpg": "unknown kind '.jpg'",
        "empty.md": "the file is empty",
        "b/loop": "a link back to a folder that was read",
        "b/again.txt": "the same file was read already",
        "dangling.txt": "a link that leads nowhere",
    }


def test_a_folder_without_readable_files_is_an_error(tmp_path):
    write(tmp_path / "photo.jpg", "x")
    with pytest.raises(DataError, match="no readable file"):
        read(tmp_path)


def test_a_file_of_unknown_kind_is_read_when_it_is_text(tmp_path):
    found, notes = read(write(tmp_path / "notes.xyz", "It is red."))
    assert found[0].text == "It is red." and "unknown kind '.xyz'" in notes[0]
    with pytest.raises(DataError, match="binary"):
        read(write(tmp_path / "photo.jpg", b"\xff\xd8\x00\x01" * 99))


def test_what_is_no_file_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.txt"))
        with pytest.raises(DataError, match="neither a file nor a folder"):
            read(tmp_path / "s.txt")


@given(data=st.binary(max_size=200), name=st.sampled_from(["a.txt", "a.html", "a.pdf", "a.docx", "a.jsonl", "a.json", "a.py"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_with_a_data_error(tmp_path, data, name):
    path = write(tmp_path / name, data)
    try:
        found, _ = read(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(document.text.strip() for document in found)
