"""Both layouts: what is read, and what is said when something is wrong."""

import numpy as np
import pytest

from laser_hf.errors import LaserError
from laser_hf.superb.features import Utterance
from laser_hf.superb.qbe.data import read_data, read_quesst


def test_tables(task_folder):
    found = read_data(task_folder)
    assert [query.name for query in found.queries] == ["q0", "q1"]
    assert (found.queries[0].start, found.queries[0].duration) == (0.3125, 0.375)
    assert found.documents[1] == Utterance("b", task_folder / "b.wav", speaker="2")
    np.testing.assert_array_equal(found.targets, [[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(found.trials, [[False, True, True], [True, False, False]])
    assert (found.layout, found.collection, found.gain) == ("tsv", None, 1.0)


def test_revision_names_the_task(task_folder):
    before = read_data(task_folder).revision()
    assert read_data(task_folder).revision() == before
    (task_folder / "targets.tsv").write_text("query\tdocument\nq0\ta\n")
    assert read_data(task_folder).revision() != before


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("targets.tsv", "query\tdocument\nq9\ta\n", "unknown query or document: q9, a"),
        ("targets.tsv", "query\n", "no column document"),
        ("targets.tsv", "query\tdocument\n", "no line below its header"),
        ("targets.tsv", "query\tdocument\nq0\n", "line 2: expected the fields query, document"),
        (
            "documents.tsv",
            "document\taudio\tspeaker\na\ta.wav\t1\na\tb.wav\t2\n",
            r"documents.tsv, line 3: the file names a twice",
        ),
        ("documents.tsv", "document\taudio\tspeaker\n\ta.wav\t1\n", r"documents.tsv, line 2: the name is empty"),
        (
            "queries.tsv",
            "query\taudio\tstart_seconds\tduration_seconds\tspeaker\nq0\ta.wav\tsoon\t1\t1\n",
            "line 2: expected a start from 0 on and a positive duration, got soon and 1",
        ),
    ],
)
def test_tables_are_checked(task_folder, table, content, message):
    (task_folder / table).write_text(content)
    with pytest.raises(LaserError, match=message):
        read_data(task_folder)


@pytest.mark.parametrize("times", ["nan\t1", "-0.1\t1", "0\t0", "0\t-1", "0\tinf"])
def test_times_are_checked(task_folder, times):
    header = "query\taudio\tstart_seconds\tduration_seconds\tspeaker\n"
    (task_folder / "queries.tsv").write_text(f"{header}q0\ta.wav\t{times}\t1\n")
    with pytest.raises(LaserError, match=r"queries.tsv, line 2: expected a start from 0 on and a positive duration"):
        read_data(task_folder)


def test_tables_of_other_systems(task_folder):
    whole = read_data(task_folder)
    for name in ("queries.tsv", "documents.tsv", "targets.tsv"):
        text = (task_folder / name).read_text()
        (task_folder / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = read_data(task_folder)
    assert (found.queries, found.documents) == (whole.queries, whole.documents)
    np.testing.assert_array_equal(found.targets, whole.targets)
    for encoding in ("latin-1", "utf-16"):
        (task_folder / "targets.tsv").write_text("query\tdocument\nq0\tb\nqé\ta\n", encoding=encoding)
        with pytest.raises(LaserError, match=r"targets.tsv, line \d: not UTF-8"):
            read_data(task_folder)


def test_folders_without_a_task_are_refused(task_folder, tmp_path):
    (task_folder / "documents.tsv").unlink()
    with pytest.raises(LaserError, match=r"lacks documents\.tsv"):
        read_data(task_folder)
    with pytest.raises(LaserError, match=r"expected queries\.tsv, documents\.tsv, targets\.tsv, or QUESST 2014"):
        read_data(tmp_path)
    with pytest.raises(LaserError, match="there is no folder"):
        read_data(tmp_path / "nowhere")


@pytest.mark.parametrize("split", ["dev", "eval"])
def test_quesst(quesst_folder, split):
    found = read_data(quesst_folder.parent, split)  # the folder around it is taken too
    assert [query.name for query in found.queries] == [f"quesst14_{split}_0001", f"quesst14_{split}_0002"]
    assert found.queries[0].audio == quesst_folder / f"{split}_queries" / f"quesst14_{split}_0001.wav"
    assert [document.name for document in found.documents] == [f"quesst14_0000{n}" for n in range(1, 5)]
    assert all(utterance.audio.is_file() for utterance in (*found.queries, *found.documents))
    np.testing.assert_array_equal(found.targets, [[True, True, False, False], [False] * 4])
    assert found.trials.all()
    assert found.split == split
    assert found.gain == pytest.approx(0.7079, abs=1e-4)
    assert found.collection.targets.shape == (3, 5)
    assert found.collection.targets.sum() == 3
    assert found.collection.targets[2, 4]  # the Albanian query in the Albanian document


@pytest.mark.parametrize(
    "missing",
    [
        "scoring/language_key_eval.lst",
        "scoring/language_key_utterances.lst",
        "scoring/groundtruth_quesst14_eval/quesst14_eval.rttm",
        "scoring/groundtruth_quesst14_eval/quesst14_eval.ecf.xml",
        "scoring/groundtruth_quesst14_eval/quesst14_eval.tlist.xml",
    ],
)
def test_quesst_says_which_file_is_missing(quesst_folder, missing):
    path = quesst_folder / missing
    path.unlink()
    names = [path.name, str(path.parent)]
    if "groundtruth" in missing:
        names[0] = "*." + path.name.split(".", 1)[1]
    with pytest.raises(LaserError) as error:
        read_data(quesst_folder)
    assert all(name in str(error.value) for name in names)


def test_quesst_is_checked(quesst_folder):
    truth = quesst_folder / "scoring" / "groundtruth_quesst14_eval"
    languages = quesst_folder / "scoring" / "language_key_eval.lst"
    english = languages.read_text()
    languages.write_text(english.replace("nnenglish", "czech"))
    with pytest.raises(LaserError, match="lists nothing in 'nnenglish'; it has albanian, czech"):
        read_quesst(quesst_folder, "eval")
    languages.write_text(english + "quesst14Database/eval_queries/lost.wav\n")
    with pytest.raises(LaserError, match="line 4: expected a path and a language"):
        read_quesst(quesst_folder, "eval")
    languages.write_text(english)
    rttm = truth / "quesst14_eval.rttm"
    whole = rttm.read_text()
    rttm.write_text(whole + "LEXEME quesst14_00001 1\n")
    with pytest.raises(LaserError, match="line 11: expected LEXEME DOCUMENT"):
        read_quesst(quesst_folder)
    rttm.write_text("LEXEME quesst14_00005 1 0.0 1.0 quesst14_eval_0003 lex SELF <NA>\n")
    with pytest.raises(LaserError, match="no target among the nnenglish"):
        read_quesst(quesst_folder)
    rttm.write_text(whole)
    (truth / "quesst14_eval.tlist.xml").write_text("<termlist><term")
    with pytest.raises(LaserError, match="no well-formed XML"):
        read_quesst(quesst_folder)
    (truth / "quesst14_eval.tlist.xml").write_text('<termlist><term termid="quesst14_eval_0001"/></termlist>')
    with pytest.raises(LaserError, match="1 recordings of the language lists are not in the term list"):
        read_quesst(quesst_folder)


def test_unknown_names_in_the_ground_truth_are_counted(quesst_folder, caplog):
    rttm = quesst_folder / "scoring" / "groundtruth_quesst14_eval" / "quesst14_eval.rttm"
    rttm.write_text(rttm.read_text() + "LEXEME quesst14_99999 1 0.0 1.0 quesst14_eval_0001 lex SELF <NA>\n")
    assert read_quesst(quesst_folder).targets.sum() == 2
    assert "1 lines name a query or document of neither list" in caplog.text
