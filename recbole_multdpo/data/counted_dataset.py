"""RecBole's data sets with our file reader and with counts of the interactions they drop.

RecBole silently drops interactions while it loads: of users and items without a row in the `.user`
and `.item` file, outside `val_interval`, repeated ones, and those of rare users and items. Here
every loss is counted by reason; kept and lost interactions add up to those read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from recbole.config import Config
from recbole.data import dataset as recbole_datasets
from recbole.data.dataset import Dataset
from recbole.data.dataset import dataset as recbole_dataset
from recbole.data.interaction import cat_interactions
from recbole.utils import FeatureSource, FeatureType, ModelType

from recbole_multdpo.data.atomic_file import AtomicFile, open_file, read_table
from recbole_multdpo.data.low_ratings import LowRatings, reads_low_ratings
from recbole_multdpo.data.times import TimeColumn, times_needed_by
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime.console import log_detail

# reasons that no setting asks for: any loss for them is a warning
_NO_ENTITY = "no entity in .link and .kg"  # RecBole's knowledge models need one
_UNASKED = ("no row in .user", "no row in .item", "empty value", _NO_ENTITY)


@dataclass(frozen=True)
class Amount:
    """Number of interactions, and of the users and items that have one."""

    rows: int
    users: int
    items: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.rows + other.rows, self.users + other.users, self.items + other.items)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.rows - other.rows, self.users - other.users, self.items - other.items)

    def __str__(self) -> str:
        return f"{self.rows:,} interactions of {self.users:,} users with {self.items:,} items"


@dataclass
class RowCounts:
    """Interactions read, lost by reason, and kept.

    Attributes:
        read: all interactions of the files.
        kept: interactions of the data set.
        lost: lost interactions by reason. A user or item is lost with its last interaction.
    """

    read: Amount
    kept: Amount
    lost: dict[str, Amount] = field(default_factory=dict)

    def check(self) -> None:
        """Raise AssertionError unless kept and lost interactions add up to those read."""
        rest = self.read
        for amount in self.lost.values():
            rest -= amount
        if rest != self.kept:
            raise AssertionError(f"{self.kept} are kept, but the counts of losses leave {rest}")

    def as_dict(self) -> dict[str, Any]:
        """The counts as written to `result.json`."""
        lost = {reason: vars(amount) for reason, amount in self.lost.items()}
        return {"read": vars(self.read), "kept": vars(self.kept), "lost": lost}

    def log(self) -> None:
        """Log the losses in one line; a warning if no setting asks for one, or if it is large."""
        if not self.lost:
            return
        parts = "; ".join(
            f"{reason}: {amount.rows:,} rows, {amount.users:,} users, {amount.items:,} items"
            for reason, amount in self.lost.items()
        )
        unasked = [reason for reason in self.lost if reason in _UNASKED]
        message = f"{self.read} in the files, {self.kept} left. Left out: {parts}"
        rare = sum(amount.rows for reason, amount in self.lost.items() if "num_interval" in reason)
        if unasked:
            message += f". Check the files: no setting asks for {', '.join(unasked)}"
            if any(reason.startswith("no row") for reason in unasked):
                message += " (--filter_inter_by_user_or_item=False keeps these)"
        elif 2 * rare > self.read.rows:
            message += ". More than half are lost with rare users and items"
        else:
            log_detail(message)
            return
        getLogger().warning(message)


class CountedDataset(Dataset):
    """RecBole's `Dataset` with our file reader, counts of dropped interactions, and low ratings.

    Attributes:
        row_counts: interactions read, lost and kept.
        low_ratings: rows whose rating `val_interval` drops as too low; None if it limits no rating.
        known_parts: of a part of the split, the parts of which it has rows: 0 training,
            1 validation, 2 test.
    """

    row_counts: RowCounts
    low_ratings: LowRatings | None = None
    known_parts: tuple[int, ...] = ()

    def _from_scratch(self) -> None:
        self._low_rows: pd.DataFrame | None = None
        super()._from_scratch()
        if self._low_rows is not None:
            self.low_ratings = LowRatings.of(self, self._low_rows)
            self._low_rows = None

    def build(self) -> list[Dataset]:
        """RecBole's parts of the split."""
        parts: list[Dataset] = super().build()
        for number, part in enumerate(parts):
            part.known_parts = (number,)
        if self.low_ratings is not None and self.config["eval_args"]["order"] == "TO":
            self.low_ratings.cut(self, parts)
        return parts

    @property
    def low_pairs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Users and items of all ratings below `val_interval`; None if nothing depends on them."""
        if self.low_ratings is None or not reads_low_ratings(self.config):
            return None
        return self.low_ratings.users, self.low_ratings.items

    def low_rated_items(self, parts: Sequence[int] | None = None) -> UserItems:
        """Items that each user rated below `val_interval`, oldest first; their levels mean nothing.

        Args:
            parts: parts of the split to take them from; None for those of this part.
        """
        if self.low_ratings is None:
            return UserItems.from_lists([[]] * self.user_num)
        return self.low_ratings.known(self, self.known_parts if parts is None else parts)

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        """RecBole's method, with `read_table` in place of `pandas.read_csv`."""
        ids = {
            FeatureSource.INTERACTION: [self.uid_field, self.iid_field],
            FeatureSource.USER: [self.uid_field],
            FeatureSource.ITEM: [self.iid_field],
        }
        of_interactions = source == FeatureSource.INTERACTION
        intervals = list(self.config["val_interval"] or ())  # they drop empty values
        file = open_file(Path(filepath), self.config)
        self._own_ids |= {file.own_id}

        def read_csv(path: str, usecols: list[str], **kwargs: Any) -> pd.DataFrame:
            names = [column.partition(":")[0] for column in usecols]
            id_fields = ids[source] if isinstance(source, FeatureSource) and source in ids else []
            if not of_interactions:
                table = read_table(file, names, id_fields)
                _check_number_lists(file, table, self.config["seq_separator"])
                _check_one_row_each(file.path, table, id_fields)
                return table
            times = TimeColumn(self.time_field, times_needed_by(self.config))
            return read_table(file, names, id_fields, intervals, times)

        # RecBole splits the first line at every separator, so it gets one without quotation marks
        columns = zip(file.columns, file.types, strict=True)
        header = file.separator.join(f"{name}:{kind}" for name, kind in columns) + "\n"
        with (
            patch.object(recbole_dataset, "pd", SimpleNamespace(read_csv=read_csv)),
            patch.object(
                recbole_dataset, "open", lambda *_, **__: io.StringIO(header), create=True
            ),
        ):
            return super()._load_feat(filepath, source)

    def _load_user_or_item_feat(
        self, token: str, dataset_path: str, source: FeatureSource, field_name: str
    ) -> pd.DataFrame | None:
        feat = super()._load_user_or_item_feat(token, dataset_path, source, field_name)
        if feat is not None:
            self._ids_in_files[source] = feat[getattr(self, field_name)].copy()
        return feat

    def _get_preset(self) -> None:
        super()._get_preset()
        self._ids_in_files: dict[FeatureSource, pd.Series] = {}
        self._own_ids: set[str | None] = set()

    def _set_alias(self, alias_name: str, default_value: list[str]) -> None:
        super()._set_alias(alias_name, default_value)
        # no column has a name that `open_file` has replaced
        names = self.alias[alias_name]
        self.alias[alias_name] = names[[name not in self._own_ids for name in names]]

    def _amount(self) -> Amount:
        feat = self.inter_feat
        return Amount(len(feat), feat[self.uid_field].nunique(), feat[self.iid_field].nunique())

    @contextmanager
    def _counting(self, reason: str) -> Iterator[None]:
        """Count the interactions that the body drops."""
        before = self._amount()
        yield
        lost = before - self._amount()
        if lost.rows:
            known = self.row_counts.lost.get(reason, Amount(0, 0, 0))
            self.row_counts.lost[reason] = known + lost

    def _drop(self, dropped: pd.Series, reason: str) -> None:
        with self._counting(reason):
            self.inter_feat.drop(self.inter_feat.index[dropped], inplace=True)

    def _data_processing(self) -> None:
        read = self._amount()
        self.row_counts = RowCounts(read, read)
        super()._data_processing()

    def _data_filtering(self) -> None:
        super()._data_filtering()
        self.row_counts.kept = self._amount()
        self.row_counts.check()
        self.row_counts.log()

    def _remove_duplication(self) -> None:
        with self._counting(f"rm_dup_inter={self.config['rm_dup_inter']}"):
            super()._remove_duplication()

    def _filter_by_field_value(self) -> None:
        for name in self.config["val_interval"] or ():
            if name in self.inter_feat:
                self._drop(self.inter_feat[name].isna(), "empty value")
        rating = self.config["RATING_FIELD"]
        limited = rating in (self.config["val_interval"] or ()) and rating in self.inter_feat
        limited = limited and self.field2type[rating] == FeatureType.FLOAT
        fields = (self.uid_field, self.iid_field, rating, self.time_field)
        before = self.inter_feat[[f for f in fields if f in self.inter_feat]] if limited else None
        with self._counting("val_interval"):
            super()._filter_by_field_value()
        if before is not None:
            self._low_rows = before[before[rating] < self.inter_feat[rating].min()]

    def _filter_inter_by_user_or_item(self) -> None:
        if self.config["filter_inter_by_user_or_item"] is True:
            for source, feat, id_field, file in (
                (FeatureSource.USER, self.user_feat, self.uid_field, ".user"),
                (FeatureSource.ITEM, self.item_feat, self.iid_field, ".item"),
            ):
                if feat is None:
                    continue
                in_file = self.inter_feat[id_field].isin(self._ids_in_files[source])
                self._drop(~in_file, f"no row in {file}")
                # in the file, but removed by val_interval
                self._drop(~self.inter_feat[id_field].isin(feat[id_field]), "val_interval")
        super()._filter_inter_by_user_or_item()

    def _filter_by_inter_num(self) -> None:
        with self._counting("user_inter_num_interval, item_inter_num_interval"):
            super()._filter_by_inter_num()

    def _filter_link(self) -> None:  # of KnowledgeBasedDataset
        with self._counting(_NO_ENTITY):
            super()._filter_link()

    def _remap_ID_all(self) -> None:
        # before RecBole adds its own rows to the tables and fills them too
        for feat in (getattr(self, name) for name in self.feat_name_list):
            for name in feat.select_dtypes(np.float64):
                if count := int(feat[name].isna().sum()):
                    getLogger().warning(
                        f"{count:,} of {len(feat):,} values of {name} are empty: RecBole replaces "
                        f"them by the mean. Remove {name} from --load_col to avoid this."
                    )
        super()._remap_ID_all()


def _check_number_lists(file: AtomicFile, table: pd.DataFrame, separator: str) -> None:
    """Refuse a list of numbers that RecBole could not read, or would read as NaN."""
    kinds = dict(zip(file.columns, file.types, strict=True))
    for name in [name for name, kind in kinds.items() if kind == "float_seq" and name in table]:
        for value in table[name]:
            try:
                numbers = [float(part) for part in value.split(separator) if part]
            except ValueError:
                numbers = [np.nan]
            if not np.isfinite(numbers).all():
                raise DataError(
                    f"{file.path}: {name} is {value[:40]!r} and not a list of finite numbers "
                    f"separated by {separator!r}. Fix the row, set --seq_separator, or remove "
                    f"{name} from --load_col."
                )


def _check_one_row_each(path: Path, table: pd.DataFrame, id_fields: Sequence[str]) -> None:
    """Refuse a second row of a user or item: RecBole looks up features by row number."""
    for name in id_fields:
        repeated = table[name][table[name].duplicated()]
        if len(repeated):
            raise DataError(
                f"{path}: duplicate {path.suffix[1:]} {repeated.iloc[0]!r} (rows that repeat a "
                f"{name}: {len(repeated):,}). Keep one row of each."
            )


def dataset_class(config: Config) -> type[CountedDataset]:
    """The data set class of a RecBole model, chosen as in `create_dataset` of RecBole 1.2.1.

    Unlike `create_dataset`, this does not unpickle a data set saved on disk.
    """
    own = getattr(recbole_datasets, f"{config['model']}Dataset", None)
    if own is not None:
        return counted(own)
    kinds = {
        ModelType.SEQUENTIAL: recbole_datasets.SequentialDataset,
        ModelType.KNOWLEDGE: recbole_datasets.KnowledgeBasedDataset,
    }
    return counted(kinds.get(config["MODEL_TYPE"], Dataset))


@cache
def counted(dataset_class: type[Dataset]) -> type[CountedDataset]:
    """Subclass one of RecBole's data set classes with `CountedDataset` as the first base."""
    if issubclass(dataset_class, CountedDataset):
        return dataset_class
    made = type(dataset_class.__name__, (CountedDataset, dataset_class), {})
    # pickle must find the class: RecBole's checkpoints contain some models' data set
    made.__qualname__ = f"Counted{dataset_class.__name__}"
    globals()[made.__qualname__] = made
    return made


def train_and_valid(parts: list[Dataset]) -> Dataset:
    """Training and validation part concatenated into one training part."""
    both = parts[0].copy(cat_interactions([part.inter_feat for part in parts[:2]]))
    both.known_parts = (0, 1)
    return both


def fitted_part(information: str, parts: list[Dataset]) -> Dataset:
    """The part that the tested weights are fitted to: with refit, validation rows as well."""
    return train_and_valid(parts) if information == "refit" else parts[0]
