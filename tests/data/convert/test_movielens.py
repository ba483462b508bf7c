"""MovieLens as .dat and .csv, in UTF-8 and latin-1."""

import pytest

DAT = {
    "movies.dat": "1::Heat (1995)::Action|Crime\n2::Am\u00e9lie (2001)::Romance\n"
    "3::Alien::Aliens:: The Return (1990)::Horror\n"
    '4::"Great Performances" Cats (1998)::Musical\n',
    "ratings.dat": "1::1::5::978300760\n1::2::3.5::978302109\n2::4::0.5::978301968\n",
}  # fmt: skip
CSV = {
    "movies.csv": "movieId,title,genres\n1,Heat (1995),Action|Crime\n"
    '2,"American President, The (1995)",Comedy|Drama\n3,Nocturnal Animals,(no genres listed)\n',
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,4.5,964982931\n",
}


def test_dat(convert):
    made = convert("movielens", DAT)
    assert made.header("inter") == [
        "user_id:token",
        "item_id:token",
        "rating:float",
        "timestamp:float",
    ]
    assert made.rows("inter") == [
        ["1", "1", "5", "978300760"],
        ["1", "2", "3.5", "978302109"],
        ["2", "4", "0.5", "978301968"],
    ]
    assert made.items("movie_title", "release_year", "genre") == {
        "1": ("Heat", "1995", "Action Crime"),
        "2": ("Am\u00e9lie", "2001", "Romance"),
        "3": ("Alien::Aliens:: The Return", "1990", "Horror"),
        "4": ('"Great Performances" Cats', "1998", "Musical"),
    }
    assert made.report["rows"] == {"item": 4, "inter": 3}
    assert made.report["counts"] == {"users": 2, "encoding_of_movies": "utf-8"}
    assert not made.rejected


def test_dat_in_latin1_and_packed(convert):
    files = {
        "movies.dat.gz": DAT["movies.dat"].encode("latin-1"),
        "ratings.dat.gz": DAT["ratings.dat"],
    }
    made = convert("movielens", files)
    assert made.report["counts"]["encoding_of_movies"] == "latin-1"
    assert made.items("movie_title")["2"] == ("Am\u00e9lie",)
    assert len(made.rows("inter")) == 3


def test_csv(convert):
    made = convert("movielens", CSV)
    assert made.rows("inter") == [
        ["1", "1", "4.0", "964982703"],
        ["1", "3", "4.5", "964982931"],
    ]
    assert made.items("movie_title", "release_year", "genre") == {
        "1": ("Heat", "1995", "Action Crime"),
        "2": ("American President, The", "1995", "Comedy Drama"),
        "3": ("Nocturnal Animals", "", ""),
    }


def test_rejects(convert):
    made = convert(
        "movielens",
        {
            "movies.dat": DAT["movies.dat"] + "5:Broken\n1::Twice (1999)::Drama\n6::::Drama\n"
            "nan::Missing (1999)::Drama\n",
            "ratings.dat": "1::1::5::1\n1::1::5\n1::1::5.5::1\n1::1::3.3::1\n1::1::5::noon\n"
            "1::99::5::1\nNA::1::5::1\n::1::5::1\n\n",
        },
    )
    assert made.rows("inter") == [["1", "1", "5", "1"]]
    assert made.reasons() == [
        ("movies.dat", 5, "fewer than three columns"),
        ("movies.dat", 6, "movie listed twice"),
        ("movies.dat", 7, "movie without a title"),
        ("movies.dat", 8, "id that RecBole reads as a missing value"),
        ("ratings.dat", 2, "3 columns instead of 4"),
        ("ratings.dat", 3, "rating that is not between 0 and 5 in half stars"),
        ("ratings.dat", 4, "rating that is not between 0 and 5 in half stars"),
        ("ratings.dat", 5, "timestamp that is neither a Unix time nor a date"),
        ("ratings.dat", 6, "rating of a movie that the movie file lacks"),
        ("ratings.dat", 7, "id that RecBole reads as a missing value"),
        ("ratings.dat", 8, "empty id"),
    ]
    assert sum(made.report["rejected"].values()) == len(made.rejected)


def test_missing_files_are_named(conversion_error):
    message = conversion_error("movielens", {"movies.csv": CSV["movies.csv"]})
    assert "has no ratings.dat or ratings.csv" in message


@pytest.mark.parametrize("ratings", ["", "1::99::5::1\n"])
def test_nothing_left_is_an_error(conversion_error, ratings):
    message = conversion_error("movielens", {**DAT, "ratings.dat": ratings})
    assert "nothing to convert: 0 interactions and 4 items" in message


def test_html_entities_of_titles_are_decoded(convert):
    files = {
        "movies.csv": "movieId,title,genres\n1,Romy &amp; Michele&#39;s (1997),Comedy\n2,Up,X\n",
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,5,1\n1,2,4,2\n",
    }
    made = convert("movielens", files)
    assert made.items("movie_title", "release_year")["1"] == ("Romy & Michele's", "1997")
    assert made.report["counts"]["titles_with_html_entities"] == 1


def test_csv_in_another_encoding(convert, conversion_error):
    movies = "movieId,title,genres\n1,Am\u00e9lie (2001),X\n2,\u201cQuoted\u201d,X\n"
    ratings = "userId,movieId,rating,timestamp\n1,1,5,1\n1,2,4,2\n"
    files = {"movies.csv": movies.encode("cp1252"), "ratings.csv": ratings.encode("utf-16")}
    assert "not utf-8. Set --encoding" in conversion_error("movielens", files)
    files["ratings.csv"] = ratings
    made = convert("movielens", files, "--encoding=cp1252")
    assert made.items("movie_title") == {"1": ("Am\u00e9lie",), "2": ("\u201cQuoted\u201d",)}
    assert made.report["counts"]["encoding_of_movies"] == "cp1252"


def test_a_quotation_mark_that_is_not_closed_is_named(conversion_error):
    movies = ["movieId,title,genres", '1,"Open (1999),X', *(f"{n},M,X" for n in range(2, 3000))]
    files = {
        "movies.csv": "\n".join(movies) + "\n",
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,5,1\n",
    }
    said = conversion_error("movielens", files)
    assert "begins in line 2" in said and "not closed" in said


def test_100k(convert):
    """`u.data` and `u.item` of GroupLens' ml-100k: tabs, bars, latin-1, CR LF."""
    flags = "|0" * 19
    items = (
        f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy{flags[:-2]}|1\n"
        f"2|Am\u00e9lie | Two (2001)|01-Jan-2001||http://x|0|1{flags[:-4]}\n"
        f"267|unknown||||1{flags[:-2]}\n3|broken|0\n"
    )
    files = {
        "u.item": items.replace("\n", "\r\n").encode("latin-1"),
        "u.data": "196\t1\t3\t881250949\r\n186\t2\t5\t891717742\r\n186\t267\t1\t891717743\r\n",
    }
    made = convert("movielens", files)
    assert made.rows("inter") == [
        ["196", "1", "3", "881250949"],
        ["186", "2", "5", "891717742"],
        ["186", "267", "1", "891717743"],
    ]
    assert made.items("movie_title", "release_year", "genre") == {
        "1": ("Toy Story", "1995", "Western"),
        "2": ("Am\u00e9lie | Two", "2001", "Action"),
        "267": ("unknown", "", "unknown"),
    }
    assert made.reasons() == [("u.item", 4, "not a row of u.item")]


def test_dates_as_in_kaggles_copy(convert):
    files = {
        "movie.csv": CSV["movies.csv"],
        "rating.csv": 'userId,movieId,rating,timestamp\n1,1,3.5,"2005-04-02 23:53:47"\n'
        "1,2,4,2005-04-02\n1,3,4,yesterday\n",
    }
    made = convert("movielens", files)
    assert [row[3] for row in made.rows("inter")] == ["1112486027", "1112400000"]
    assert len(made.rejected) == 1
