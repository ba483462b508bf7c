"""The property file of a converted data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder
from recbole_multdpo.settings.layers import dataset_file, properties_folder, shared_settings
from recbole_multdpo.settings.text import read_settings_file

LEAVE_ONE_OUT = """\
eval_args:                       # each user's last item is for test, the one before it for
  split: {'LS': valid_and_test}  #   validation
  group_by: user
  order: TO
"""


def property_file(
    folder: DatasetFolder,
    about: str,
    columns: Sequence[str],
    *,
    positive: float | None = None,
    split: str = "",
    text: str = "title",
    year: str | None = None,
    template: str = "items",
) -> str:
    """The text of a property file that needs no other one.

    Args:
        folder: the data set's folder.
        about: a sentence on the data.
        columns: columns of the `.inter` file.
        positive: least rating of a positive; None if every row is one.
        split: lines that set the split; empty for the default, 8/1/1 of each user in random order.
        text: column of the `.item` file with an item's text.
        year: column that tells items of the same text apart.
        template: words of the prompt.
    """
    ratings = "~                  # every row is a positive"
    if positive is not None:
        ratings = f'{{rating: "[{positive:g},inf)"}}   # ratings kept, as positives'
    lines = [
        f"# {folder.name}: {about}",
        "load_col:                        # columns loaded per atomic file",
        f"  inter: [{', '.join(columns)}]",
        "  item: [item_id]                # the catalogue is every item of the .item file",
        f"val_interval: {ratings}",
        "normalize_all: False             # numbers stay as they are",
        *split.splitlines(),
        "",
        f"item_text_fields: [{text}]",
        f"item_year_field: {year or '~'}",
        f"prompt_template: {template}",
    ]
    return "\n".join(lines + _undone(folder.name, lines)) + "\n"


def _undone(name: str, lines: Sequence[str]) -> list[str]:
    """Defaults of what our property file of a data set of the same name would set."""
    file = dataset_file(name)
    if file is None:
        return []
    given = {line.partition(":")[0] for line in lines}
    own = [properties_folder() / each for each in ("model/LLMRec.yaml", "overall.yaml")]
    defaults = reduce(or_, map(read_settings_file, own), shared_settings())
    ours = [key for key in read_settings_file(file) if key not in given]
    found = {key: defaults[key] for key in ours if key in defaults and key != "eval_args"}
    return [f"{key}: {'~' if value is None else repr(value)}" for key, value in found.items()]
