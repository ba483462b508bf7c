"""Reddit-V2 from its published files to a recommendation, with EASE as the paper has it.

The files are made, in the two published forms: that of He et al. (AaronHeee/
LLMs-as-Zero-Shot-Conversational-RecSys, `data/reddit`: names with years, IMDb ids, a row per turn),
and that of Rank-GRPO (yaochenzhu/Rank-GRPO: chats, films as [title, year], the answers of different
people in rows of their own).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recbole_multdpo import recommend
from recbole_multdpo.data.convert.__main__ import main as convert
from recbole_multdpo.quick_start import run
from tests.integration.toy import SMALL

pytestmark = pytest.mark.integration
WORDS = ("Heat", "Alien", "Emma", "Up", "Amélie", "Brazil", "Ran", "Jaws")
# two films of each title, so that the year tells them apart
FILMS = [(title, str(1970 + 10 * number + n)) for n, title in enumerate(WORDS) for number in (0, 1)]
PARTS = {"train": 40, "validation": 12, "test": 12}


def named(film: int) -> str:
    return "{} ({})".format(*FILMS[film])


def talk(part: str, number: int) -> tuple[str, list[int], list[int]]:
    """A request, the films that it mentions and those that are recommended."""
    mentioned = [number % 16, (number + 2) % 16]
    request = (
        f"Something like {named(mentioned[0])}?\nOr {FILMS[mentioned[1]][0]} ({part} {number})"
    )
    return request, mentioned, [(number + 4) % 16, (number + 6) % 16]


def of_he_et_al(raw: Path) -> dict[str, Any]:
    """Train, valid and test; returns the counts that the converter must report."""
    names = {named(film): f"tt{film:07}" for film in range(16)}
    (raw / "entity2id.json").write_text(json.dumps(names))
    (raw / "item_ids.json").write_text(json.dumps([*names.values(), "tt9999999"]))  # has no name
    for part, file in {"train": "train", "validation": "valid", "test": "test"}.items():
        rows = []
        for number in range(PARTS[part]):
            request, mentioned, answers = talk(part, number)
            row = {
                "context": ["", request],
                "resp": "See these.",
                "rec": [f"tt{film:07}" for film in answers],
                "entity": [],
                "prev_entity": [f"tt{film:07}" for film in mentioned],
                "dialog_id": f"{part}_{number}",
                "turn_id": number,
                "is_user": 0,
                "entity_name": [],
                "input": f"\nUser: {request}\nSystem: ",
            }
            rows += [{**row, "rec": [], "is_user": 1}, row]  # the request itself recommends nothing
            if number % 4 == 0:  # another person's answer; a film mentioned; one that is no item
                more = [f"tt{film:07}" for film in ((number + 8) % 16, mentioned[0])]
                rows.append({**row, "rec": [*more, "tt0"], "resp": "Or these."})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (raw / f"{file}.jsonl").write_text(text)
    return {"turns": 80, "recommended_ids_that_are_no_items": 16}


def of_rank_grpo(raw: Path) -> dict[str, Any]:
    """JSON lines of the three parts; returns the counts that the converter must report."""
    catalogue = [[title, int(year)] for title, year in FILMS]
    (raw / "gt_catalog.json").write_text(json.dumps(catalogue))
    for part, size in PARTS.items():
        rows = []
        for number in range(size):
            request, mentioned, answers = talk(part, number)
            row = {
                "prompt": [{"content": request, "role": "user"}],
                "completion": [{"content": named(answers[0]), "role": "assistant"}],
                "seen_titles": [named(film) for film in mentioned],
                "groundtruth_with_release_year": [list(FILMS[film]) for film in answers],
            }
            rows.append(row)
            if number % 4 == 0:
                more = [FILMS[(number + 8) % 16], FILMS[mentioned[0]], ("Nowhere", "1950")]
                rows.append({**row, "groundtruth_with_release_year": [list(film) for film in more]})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (raw / f"{part}.jsonl").write_text(text)
    return {"turns": 80, "answers_outside_the_catalogue": 16}


@pytest.mark.parametrize("write", [of_he_et_al, of_rank_grpo])
def test_from_published_files_to_a_recommendation(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], dict[str, Any]],
) -> None:
    raw, data, run_dir = tmp_path / "raw", tmp_path / "dataset", tmp_path / "run"
    raw.mkdir()
    counts = write(raw)
    assert convert(["crs", "--input", str(raw), "--output", str(data / "reddit-v2")]) == 0
    report = json.loads((data / "reddit-v2" / "conversion.json").read_text())
    assert counts.items() <= report["counts"].items()
    # the answers of two people to one request are one set; 16 answers repeat a film of the request
    assert report["counts"]["conversations_per_part"] == {"train": 40, "valid": 12, "test": 12}
    assert report["counts"]["answers_that_were_mentioned_before"] == 16
    assert report["rows"]["item"] == 16

    small = [a for a in SMALL if a.split("=")[0] not in ("--dataset", "--tiny_vocab_size")]
    result = run(
        [
            *small,
            "--dataset=reddit-v2",
            "--loss=mult_dpo",
            "--assistant=EASE",
            "--assistant_weight=[0, 1, 10]",
            "--tiny_vocab_size=400",
            f"--data_path={data}",
            f"--run_dir={run_dir}",
        ]
    )
    assert result["context"] == "conversation" and result["num_items"] == 16
    assert result["num_users_evaluated"] == 12
    assert result["answers_left_out"] == [10, 3, 3]  # mentioned films are no answers
    assert {"ndcg@5"} <= result["valid_result"].keys() & result["test_result"].keys()
    assert result["assistant"]["model"] == "EASE" and len(result["assistant"]["curve"]) == 3
    steps = pd.read_csv(run_dir / "steps.csv")
    assert set(steps["stage"]) == {"sft", "preference"} and steps["loss"].notna().all()
    # two or three answers each, without those that were mentioned
    assert set(pd.read_csv(run_dir / "per_user.csv")["n_test"]) == {2, 3}

    request = f"I loved {named(0)}"
    asked = [str(run_dir), "--conversation", request, "--k=15", "--json"]
    assert recommend.main(asked) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    titles = [item["title"] for item in answer["recommendations"]]
    assert len(set(titles)) == 15 and named(0) not in titles and named(1) in titles
