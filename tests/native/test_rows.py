"""Tables that are written row by row."""

from native.rows import Rows

FIELDS, KEY = ("net", "side", "ms"), ("net", "side")


def test_rows_are_on_the_disk_at_once_and_known_to_the_next(tmp_path):
    path = tmp_path / "new" / "table.csv"
    table = Rows(path, FIELDS, KEY)
    table.add({"net": "a, b", "side": 224, "ms": 1.5, "more": "not written"})
    assert path.read_text() == 'net,side,ms\n"a, b",224,1.5\n'
    again = Rows(path, FIELDS, KEY)
    assert {"net": "a, b", "side": 224} in again
    assert {"net": "a, b", "side": 384} not in again
    again.add({"net": "c", "side": 384, "ms": 2.0})
    assert path.read_text().splitlines()[1:] == ['"a, b",224,1.5', "c,384,2.0"]


def test_a_row_that_was_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("net,side,ms\na,224,1.0\nb,22")
    table = Rows(path, FIELDS, KEY)
    assert {"net": "a", "side": 224} in table
    table.add({"net": "b", "side": 224, "ms": 2.0})
    assert path.read_text() == "net,side,ms\na,224,1.0\nb,224,2.0\n"


def test_a_table_of_other_columns_is_kept_beside_the_new_one(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text("net,value\na,1.0\n")
    assert {"net": "a", "side": 224} not in Rows(path, FIELDS, KEY)
    assert path.read_text() == "net,side,ms\n"
    (before,) = tmp_path.glob("table-before-*.csv")
    assert before.read_text() == "net,value\na,1.0\n"
    assert before.name in capsys.readouterr().err


def test_a_table_that_holds_nothing_is_begun_anew(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("net,si")
    Rows(path, FIELDS, KEY)
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "net,side,ms\n"


def test_without_a_path_nothing_is_kept(tmp_path):
    table = Rows(None, FIELDS, KEY)
    table.add({"net": "a", "side": 224, "ms": 1.0})
    assert {"net": "a", "side": 224} in table
    assert not list(tmp_path.iterdir())
