"""Reading and writing settings as text: literals, command lines, YAML files."""

import math
from pathlib import Path

import pytest
import recbole
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime.reading import plain
from recbole_multdpo.settings.text import (
    SettingsLoader,
    dump_settings,
    parse_command_line,
    parse_literal,
    parse_setting,
    read_settings_file,
)

# Text that YAML can hold: no surrogates, no control characters.
texts = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs"])
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | texts
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_python_literals_are_read_back(value):
    assert parse_literal(repr(value)) == value


@given(st.dictionaries(st.text("abcdefgh_", min_size=1), values, min_size=1, max_size=5))
def test_settings_files_are_read_back(tmp_path_factory, settings):
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    file.write_text(dump_settings(settings), encoding="utf-8")
    read = read_settings_file(file)
    assert read == settings
    assert list(read) == list(settings)


@given(st.text() | values.map(str))
def test_any_text_gives_plain_data_or_a_value_error(text):
    try:
        value = parse_literal(text)
    except ValueError:
        return
    assert plain(value) == value or _has_nan(value)


def _has_nan(value):
    if isinstance(value, dict):
        return any(map(_has_nan, value.values())) or any(map(_has_nan, value))
    if isinstance(value, list):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)


CODE = "__import__('pathlib').Path({!r}).touch()"


@pytest.mark.parametrize(
    "wrap", ["{}", "[{}]", "({},)", "{{'a': {}}}", "[x for x in [{}]]", "f'{{{}}}'"]
)
def test_no_code_is_executed(tmp_path, wrap):
    target = tmp_path / "executed"
    code = CODE.format(str(target))
    eval(code)  # the control: this text does something when it is evaluated
    assert target.exists()
    target.unlink()
    parse_literal(wrap.format(code))
    assert not target.exists()


def test_code_stays_text():
    code = "__import__('os').system('x')"
    assert parse_literal(code) == code


def test_yaml_tags_construct_nothing():
    text = "[!!python/object/apply:os.system [x]]"
    assert parse_literal(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-3", -3),
        ("1_000", 1000),
        ("0x1f", 31),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("2.", 2.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("True", True),
        ("true", True),
        ("FALSE", False),
        ("no", False),
        ("None", None),
        ("~", None),
        ("null", None),
        ("", ""),
        ("  5 ", 5),
        ("'5'", "5"),
        ('"a b"', "a b"),
        ("a b", "a b"),
        ("[1, 'a', None, True]", [1, "a", None, True]),
        ("[movie_title]", ["movie_title"]),
        ("(5,10)", [5, 10]),
        ("{'RS':[0.8,0.1,0.1]}", {"RS": [0.8, 0.1, 0.1]}),
        ("{max_norm: 1e-1, norm_type: None}", {"max_norm": 0.1, "norm_type": None}),
        # text that looks like something else to Python or YAML
        ("[4,inf)", "[4,inf)"),
        ("(0,5]", "(0,5]"),
        ("012", "012"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1 # not a comment", "1 # not a comment"),
        ("a: b", "a: b"),
        ("- a", "- a"),
        ("*a", "*a"),
        ("<<", "<<"),
        ("1j", "1j"),
        ("b'x'", "b'x'"),
        ("nan", "nan"),
        ("[", "["),
        ("'a", "'a"),
    ],
)
def test_literals(text, value):
    read = parse_literal(text)
    assert read == value
    assert type(read) is type(value)


def test_values_nested_too_deeply_stay_text():
    for text in ("[" * 40 + "]" * 40, "[" * 100_000, "[&a [*a]]"):
        assert parse_literal(text) == text


def test_a_mapping_without_a_space_after_the_colon_is_refused():
    # YAML reads {max_norm:1.0} as the key "max_norm:1.0" without a value.
    with pytest.raises(ValueError, match="write max_norm: 1.0"):
        parse_literal("{max_norm:1.0}")


def test_a_mapping_with_a_key_twice_is_refused():
    with pytest.raises(ValueError, match="'a' is written twice"):
        parse_literal("{a: 1, a: 2}")


@pytest.mark.parametrize("key", ["dataset", "run_dir", "user_inter_num_interval"])
@pytest.mark.parametrize("text", ["100", "[0,5]", "1e5", "True"])
def test_text_settings_stay_text(key, text):
    assert parse_setting(key, text) == text
    assert parse_setting("other", text) != text


def test_text_settings_can_be_none():
    assert parse_setting("run_dir", "None") is None
    assert parse_setting("run_dir", "~") is None


def test_command_line():
    argv = ["--model=BPR", "--a=1", "--b=x=y=z", "--c=a b", "--d=", "--local_rank=3", "--a=1"]
    assert parse_command_line(argv) == {"model": "BPR", "a": 1, "b": "x=y=z", "c": "a b", "d": ""}


@pytest.mark.parametrize("argument", ["--local_rank=1", "--local-rank=1"])
def test_a_launchers_rank_is_dropped(argument):
    assert parse_command_line([argument]) == {}


@pytest.mark.parametrize(
    ("argv", "form"),
    [
        (["--epochs", "3"], "write --epochs=3"),
        (["--epochs"], "write --epochs=value"),
        (["--epochs", "--model=BPR"], "write --epochs=value"),
        (["-epochs=3"], "write --epochs=3"),
        (["-e", "3"], "write --e=3"),
        (["---epochs=3"], "write --epochs=3"),
        (["epochs=3"], "write --epochs=3"),
        (["epochs"], "write --key=value"),
        (["--"], "write --key=value"),
        (["--=3"], "write --key=value"),
        ([""], "write --key=value"),
    ],
)
def test_malformed_arguments(argv, form):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(argv)
    assert repr(argv[0]) in str(caught.value)
    assert form in str(caught.value)


def test_a_key_twice_with_different_values():
    with pytest.raises(ConfigError, match=r"--seed is given twice .*'1' and '2'"):
        parse_command_line(["--seed=1", "--seed=2"])


def test_malformed_values_name_the_setting():
    with pytest.raises(ConfigError, match=r"--clip_grad_norm=\{max_norm:1\}: a space"):
        parse_command_line(["--clip_grad_norm={max_norm:1}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "line 1: must be a mapping"),
        (b"just text\n", "line 1: must be a mapping"),
        (b"a: 1\nb: [1, 2\n", "line 3: not valid YAML"),
        (b"a: 1\n\tb: 2\n", "line 2: not valid YAML"),
        (b"a: 1\nb: 2\na: 3\n", "line 3: not valid YAML: the key 'a' is written twice"),
        (b"a: 1\nb: {c: 1, c: 2}\n", "line 2: not valid YAML: the key 'c' is written twice"),
        (b"a: 1\nb: \xff\xfe\n", "line 2: not UTF-8"),
        (b"a: 1\nb: '\x07'\n", "line 2: a character that YAML does not allow"),
        (b"a: 1\nb: !!python/name:os.system ''\n", "line 2: not valid YAML"),
        (b"a: &x [*x]\n", "nested more than"),
        (b"a: !!set {x}\n", "set is neither"),
        (b"1: a\n", "name must be text, got 1"),
    ],
)
def test_bad_settings_files(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_settings_file(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_missing_settings_files(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml does not exist"):
        read_settings_file(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_settings_file(tmp_path)


def test_settings_files_may_use_anchors_and_merging(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n")
    assert read_settings_file(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_recboles_property_files_mean_the_same():
    """Ours reads RecBole's files as RecBole does, but for the text None, which is None here."""
    loader = type("RecBoleLoader", (yaml.FullLoader,), {})
    loader.yaml_implicit_resolvers = {k: list(v) for k, v in loader.yaml_implicit_resolvers.items()}
    float_rule = SettingsLoader.yaml_implicit_resolvers["."]
    for tag, pattern in float_rule:
        loader.add_implicit_resolver(tag, pattern, list("-+0123456789."))
    files = sorted((Path(recbole.__file__).parent / "properties").glob("**/*.yaml"))
    assert len(files) > 80
    for file in files:
        text = file.read_text(encoding="utf-8")
        theirs = yaml.load(text, Loader=loader)
        ours = yaml.load(text, Loader=SettingsLoader)
        if file.stem == "FEARec":
            assert theirs.pop("fredom_type") == "None"
            assert ours.pop("fredom_type") is None
        assert ours == theirs, file


def test_the_yaml_library_is_left_as_it_was():
    """RecBole adds its number format to PyYAML's own loader; ours is separate."""
    assert yaml.safe_load("1e-4") == "1e-4"
    assert yaml.safe_load("012") == 10
