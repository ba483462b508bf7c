"""MIND: histories before the log, clicks of impressions, titles."""

LOG = (
    "1\tU1\t11/15/2019 10:22:32 AM\tN1 N2\tN3-1 N4-0\n"
    "2\tU2\t11/15/2019 12:00:00 PM\t\tN4-1\n"
    "3\tU1\t11/14/2019 8:00:00 AM\tN1 N2\tN1-1 N3-0\n"
)
NEWS = (
    'N1\tnews\tus\tQuoted "title" &amp; more\tAbstract\thttps://x\t[]\t[]\n'
    "N2\tsports\tgolf\tTwo\t\thttps://x\t[]\t[]\n"
    "N3\tnews\tus\tThree\t\thttps://x\t[]\t[]\n"
    "N4\tnews\tus\t\t\thttps://x\t[]\t[]\n"
    "N5\tnews\tus\tNever clicked\t\thttps://x\t[]\t[]\n"
)
FIRST = 1573718400  # 2019-11-14 8:00, the first impression of U1


def test_clicks_follow_the_history(convert):
    made = convert("mind", {"behaviors.tsv": LOG, "news.tsv": NEWS})
    assert made.rows("inter") == [
        ["U1", "N1", str(FIRST - 2)],
        ["U1", "N2", str(FIRST - 1)],
        ["U1", "N3", "1573813352"],
        ["U2", "N4", "1573819200"],
    ]  # U1's later click on N1 is a repetition
    assert made.items("title")["N1"] == ('Quoted "title" & more',)
    assert made.items("category")["N5"] == ("news",)  # the catalogue is all news
    assert made.items("title")["N4"] == ("",)


def test_without_histories(convert):
    made = convert("mind", {"behaviors.tsv": LOG, "news.tsv": NEWS}, "--no-history")
    assert [row[:2] for row in made.rows("inter")] == [["U1", "N3"], ["U2", "N4"], ["U1", "N1"]]


def test_several_parts(convert):
    later = "1\tU1\t11/16/2019 1:00:00 AM\tN1 N2 N3\tN4-1\n2\tU3\t11/16/2019 1:00:00 AM\tN2\tN1-1\n"
    files = {
        "MINDsmall_train/behaviors.tsv": LOG,
        "MINDsmall_train/news.tsv": NEWS,
        "MINDsmall_dev/behaviors.tsv": later,
        "MINDsmall_dev/news.tsv": NEWS,
    }
    made = convert("mind", files)
    assert sum(row[0] == "U1" for row in made.rows("inter")) == 4
    assert [row[1] for row in made.rows("inter") if row[0] == "U3"] == ["N2", "N1"]
    assert not made.rejected


def test_rejects(convert):
    bad = "4\tU1\t2019-11-15\tN1\tN2-1\n5\t\t11/15/2019 1:00:00 PM\tN1\tN2-1\nhalf a line\n"
    made = convert("mind", {"behaviors.tsv": LOG + bad, "news.tsv": NEWS})
    assert [reason for _, _, reason in made.reasons()] == [
        "time that is not like 11/15/2019 10:22:32 AM",
        "empty id",
        "1 columns instead of 5",
    ]
