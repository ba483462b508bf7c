"""Last-FM of HetRec 2011, whole and with CoLaKG's split."""

ARTISTS = (
    "id\tname\turl\tpictureURL\n"
    "51\tDuran Duran\thttp://x\thttp://y\n"
    '52\t"Weird" & Co\thttp://x\t\n'
    "53\tBj\u00f6rk\thttp://x\thttp://y\n"
)


def test_hetrec(convert):
    files = {
        "artists.dat": ARTISTS,
        "user_artists.dat": "userID\tartistID\tweight\r\n2\t51\t138\r\n2\t52\t116\r\n3\t51\t1\r\n",
    }
    made = convert("lastfm", files)
    assert made.rows("inter") == [["2", "51"], ["2", "52"], ["3", "51"]]
    assert made.items("title") == {"51": ("Duran Duran",), "52": ('"Weird" & Co',)}
    assert "inter: [user_id, item_id]" in made.yaml


def test_artists_in_latin1_and_a_core(convert):
    plays = "userID\tartistID\tweight\n" + "".join(
        f"{user}\t{artist}\t1\n" for user in range(2) for artist in (51, 53)
    )
    files = {"artists.dat": ARTISTS.encode("latin-1"), "user_artists.dat": plays + "9\t52\t1\n"}
    made = convert("lastfm", files, "--k-core=2")
    assert made.items("title") == {"51": ("Duran Duran",), "53": ("Bj\u00f6rk",)}


def test_colakg(convert):
    files = {
        "artists.dat": ARTISTS,
        "train.txt": "0 0 1\n1 1\n",
        "test.txt": "0 2\n1 0 9\n",
        "item_map.txt": "51 0\n52 1\n53 2\n",
    }
    made = convert("lastfm", files)
    assert made.rows("train.inter") == [["0", "51"], ["0", "52"], ["1", "52"]]
    assert made.rows("test.inter") == [["0", "53"], ["1", "51"]]
    assert made.items("title")["53"] == ("Bj\u00f6rk",)
    assert "benchmark_filename: [train, test]" in made.yaml
    assert made.reasons() == [("test.txt", 2, "item that item_map.txt lacks")]


def test_what_is_missing_is_named(conversion_error):
    assert "has no user_artists.dat" in conversion_error("lastfm", {"artists.dat": ARTISTS})
    files = {"train.txt": "0 0\n", "test.txt": "0 1\n"}
    assert "has no item_map.txt" in conversion_error("lastfm", files)
    assert "split already" in conversion_error("lastfm", {}, "--k-core=5")


def test_a_renamed_column_is_named(conversion_error):
    files = {"artists.dat": ARTISTS, "user_artists.dat": "user\tartistID\n1\t51\n"}
    said = conversion_error("lastfm", files)
    assert "user_artists.dat, line 1: no column userID; it has user, artistID" in said
