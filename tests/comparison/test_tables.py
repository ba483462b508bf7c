"""Tables as text, Markdown and LaTeX, written out."""

import numpy as np
import pandas as pd
import pytest

from recbole_multdpo.comparison.tables import as_latex, as_markdown, as_text, make_table

MEAN = pd.DataFrame(
    {"ndcg@5": [0.25, 0.5, 0.125], "hit@5": [0.30001, 0.3, 0.1]},
    index=["EASE", "LLMRec mult_dpo", "Pop"],
)
STD = pd.DataFrame({"ndcg@5": [0.01, 0.02, 0.0], "hit@5": [np.nan] * 3}, index=MEAN.index)


@pytest.fixture
def table():
    return make_table(MEAN, STD, different={("Pop", "ndcg@5")})


def test_markdown(table):
    assert as_markdown(table) == (
        "|                 | ndcg@5                 | hit@5         |\n"
        "|-----------------|------------------------|---------------|\n"
        "| EASE            | <u>0.2500 ± 0.0100</u> | **0.3000**    |\n"
        "| LLMRec mult_dpo | **0.5000 ± 0.0200**    | **0.3000**    |\n"
        "| Pop             | 0.1250 ± 0.0000*       | <u>0.1000</u> |"
    )


def test_latex(table):
    assert [" ".join(line.split()) for line in as_latex(table).splitlines()] == [
        r"\begin{tabular}{lcc}",
        r"\toprule",
        r"& ndcg@5 & hit@5 \\",
        r"\midrule",
        r"EASE & \underline{0.2500 $\pm$ 0.0100} & \textbf{0.3000} \\",
        r"LLMRec mult\_dpo & \textbf{0.5000 $\pm$ 0.0200} & \textbf{0.3000} \\",
        r"Pop & 0.1250 $\pm$ 0.0000$^{*}$ & \underline{0.1000} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_text(table):
    assert as_text(table) == "\n".join(
        [
            "                 ndcg@5             hit@5",
            "EASE             0.2500 ± 0.0100 '  0.3000 ^",
            "LLMRec mult_dpo  0.5000 ± 0.0200 ^  0.3000 ^",
            "Pop              0.1250 ± 0.0000*   0.1000 '",
        ]
    )


def test_a_table_without_ranking_and_a_missing_value():
    mean = pd.DataFrame({"itemcoverage@5": [0.5, np.nan]}, index=["A", "B"])
    rows = as_markdown(make_table(mean, ranked=False)).splitlines()
    assert [row.split() for row in rows[2:]] == [
        ["|", "A", "|", "0.5000", "|"],
        ["|", "B", "|", "-", "|"],
    ]


def test_a_single_system_has_no_rank():
    assert "**" not in as_markdown(make_table(MEAN.iloc[:1], STD.iloc[:1]))
