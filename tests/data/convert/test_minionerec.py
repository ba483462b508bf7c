"""MiniOneRec's and D3's CSV with their info file."""

HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
TRAIN = (
    HEADER
    + 'A22,"[\'Glue, 2 oz\', ""It\'s""]",Base,"[\'117\', \'5\']",118,"[\'<a>\']",<b>\n'
    + 'A22,"[\'Glue, 2 oz\', ""It\'s"", \'Base\']",Drill,"[117, 5, 118]",7,x,y\n'
    + "B,\"['Drill']\",Gorilla,\"['7']\",117,x,y\n"
)
VALID = HEADER + "A22,\"['Base', 'Drill']\",Valid one,\"['118', '7']\",8,x,y\n"
TEST = HEADER + "A22,\"['Drill', 'Valid one']\",Test one,\"['7', '8']\",9,x,y\n"
INFO = "<a_1><b_2>\tGorilla Glue &amp; Co\t117\n<c>\tUnused\t200\n\tno id\t\n"
FILES = {
    "train/Industrial.csv": TRAIN,
    "valid/Industrial.csv": VALID,
    "test/Industrial.csv": TEST,
    "info/Industrial.txt": INFO,
}


def test_prefixes_become_one_list(convert):
    made = convert("minionerec", FILES)
    assert made.rows("train.inter") == [
        ["A22", "117", "0"],
        ["A22", "5", "1"],
        ["A22", "118", "2"],
        ["A22", "7", "3"],
        ["B", "7", "0"],
        ["B", "117", "1"],
    ]
    assert made.rows("valid.inter") == [["A22", "8", "4"]]
    assert made.rows("test.inter") == [["A22", "9", "5"]]
    titles = made.items("title")
    assert titles["117"] == ("Gorilla Glue & Co",) and titles["5"] == ("It's",)
    assert titles["9"] == ("Test one",) and titles["200"] == ("Unused",)
    assert "benchmark_filename: [train, valid, test]" in made.yaml
    assert [(file[-3:], line) for file, line, _ in made.reasons()] == [("txt", 3)]


def test_d3_has_no_semantic_ids(convert):
    rows = "user_id,history_item_id,item_id\nu,\"['1']\",2\n"
    test = "user_id,history_item_id,item_id\nu,\"['1', '2']\",3\n"
    files = {"train.csv": rows, "test.csv": test, "info.txt": "One\t1\nTwo\t2\nThree\t3\n"}
    made = convert("minionerec", files)
    assert made.items("title") == {"1": ("One",), "2": ("Two",), "3": ("Three",)}
    assert made.rows("test.inter") == [["u", "3", "2"]]
    assert "benchmark_filename: [train, test]" in made.yaml


def test_nothing_in_a_row_is_run(convert, tmp_path):
    mark = tmp_path / "run"
    attack = f"A,x,T,\"__import__('pathlib').Path('{mark}').touch()\",5,x,y\n"
    made = convert("minionerec", {**FILES, "train/Industrial.csv": TRAIN + attack})
    assert not mark.exists()
    assert any("history that is no list" in reason for _, _, reason in made.reasons())


def test_missing_parts(conversion_error):
    said = conversion_error("minionerec", {"train/x.csv": TRAIN})
    assert "has no train and test part" in said
