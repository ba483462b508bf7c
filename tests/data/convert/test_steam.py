"""UCSD's Steam: Python literals line by line."""

REVIEWS = (
    "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', "
    "u'page_order': 0, u'date': u'2017-12-17', u'text': u\"It's\\nmy\", u'early_access': False}\n"
    "{'username': 'None', 'product_id': '328100', 'date': '2017-08-02'}\n"
    "{'username': 'None', 'product_id': '725280', 'date': '2017-08-01'}\n"
)
GAMES = (
    "{u'app_name': u'Lost Summoner Kitty &amp; Co', u'title': u'x', u'genres': [u'Action', "
    "u'Indie'], u'tags': [u'Strategy'], u'id': u'725280', u'price': 4.99}\n"
    "{u'title': u'Real Pool\\t3D', u'id': u'328100'}\n"
    "{'app_name': 'no id'}\n"
)


def test_reviews_and_games(convert):
    files = {"steam_reviews.json.gz": REVIEWS, "steam_games.json.gz": GAMES}
    made = convert("steam", files, "--k-core=1")
    assert made.rows("inter") == [
        ["Chaos%20Syren", "725280", "1513468800"],
        ["%4Eone", "328100", "1501632000"],
        ["%4Eone", "725280", "1501545600"],
    ]
    assert made.items("title", "genres", "tags") == {
        "725280": ("Lost Summoner Kitty & Co", "Action, Indie", "Strategy"),
        "328100": ("Real Pool 3D", "", ""),
    }


def test_rejects_and_the_core(convert):
    files = {"steam_reviews.json": REVIEWS * 2 + "{'username': 'a'}\nnone\n"}
    made = convert("steam", {**files, "steam_games.json": GAMES}, "--k-core=1")
    assert [reason for _, _, reason in made.reasons()] == [
        "no user or no game",
        "neither JSON nor a Python literal",
    ]
    assert made.report["counts"]["interactions_repeated"] == 3


def test_nothing_is_left_of_a_small_file(conversion_error):
    said = conversion_error("steam", {"steam_reviews.json": REVIEWS, "steam_games.json": GAMES})
    assert "nothing to convert" in said
