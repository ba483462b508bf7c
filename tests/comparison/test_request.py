"""Systems of a comparison: their settings, varied values and names."""

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.request import System, varied


def test_settings_apply_to_systems_that_know_them():
    argv = ["--model=LLMRec,EASE", "--loss=dpo,kpo", "--dataset=x", "--beta=2", "--kpo_k=3"]
    request = read_request([*argv, "--EASE.reg_weight=9", "--dpo.beta=5", "--LLMRec.epochs=1"])
    dpo, kpo, ease = request.systems
    known = {dpo: {"dataset", "beta"}, kpo: {"dataset", "beta", "kpo_k"}, ease: {"dataset"}}
    common = {"dataset": "x", "epochs": "1"}
    assert request.settings_of(kpo, known) == {**common, "beta": "2", "kpo_k": "3"}
    assert request.settings_of(dpo, known) == {**common, "beta": "5"}
    assert request.settings_of(ease, known) == {"dataset": "x", "reg_weight": "9"}


def test_unknown_setting_applies_to_all_systems():
    request = read_request(["--model=EASE,Pop", "--bta=1"])
    known = {system: {"beta"} for system in request.systems}
    assert all(request.settings_of(system, known) == {"bta": "1"} for system in request.systems)


def test_prefixed_setting_applies_to_systems_that_know_it():
    argv = ["--model=LLMRec,EASE", "--loss=sft,dpo", "--LLMRec.beta=3", "--LLMRec.bta=1"]
    request = read_request([*argv, "--tune={'LLMRec.beta': [1, 2], 'LLMRec.bta': [5]}"])
    sft, dpo, ease = request.systems
    known = {sft: {"sft_epochs"}, dpo: {"sft_epochs", "beta"}, ease: {"beta"}}
    assert request.settings_of(sft, known) == {"bta": "1"}
    assert request.settings_of(dpo, known) == {"bta": "1", "beta": "3"}
    assert request.settings_of(ease, known) == {}
    assert request.search_space(sft, known) == {"bta": [5]}
    assert request.search_space(dpo, known) == {"bta": [5], "beta": [1, 2]}


def test_a_systems_own_setting_is_not_tuned():
    argv = ["--model=EASE", "--vary={'reg_weight': [1, 2]}", "--tune={'reg_weight': [3, 4]}"]
    request = read_request(argv)
    one, two = varied(request.systems[0], request.vary, {"reg_weight"})
    assert (one.name, two.name) == ("EASE reg_weight=1", "EASE reg_weight=2")
    assert one.own == (("reg_weight", "1"),)
    assert request.search_space(one, {one: {"reg_weight"}}) == {}


def test_varied_systems_are_all_combinations():
    system = System("LLMRec", "dpo")
    found = list(varied(system, {"beta": [1, 2], "k": [5], "epochs": [3, 4]}, {"beta", "epochs"}))
    assert [dict(each.own) for each in found] == [
        {"beta": "1", "epochs": "3"},
        {"beta": "1", "epochs": "4"},
        {"beta": "2", "epochs": "3"},
        {"beta": "2", "epochs": "4"},
    ]
    assert list(varied(system, {"k": [5]}, {"beta"})) == [system]


def test_systems_are_equal_by_content():
    assert System("LLMRec", "dpo") == System("LLMRec", "dpo") != System("LLMRec", "sft")
