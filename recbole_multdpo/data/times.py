"""Times of interactions: numbers, or dates, which are read as seconds since 1970 in UTC.

Times are float64. Ambiguous dates, such as 03/04/2020, are refused, and so are different times that
float64 rounds to one number, such as nanoseconds since 1970 that are 100 apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from recbole_multdpo.errors import DataError

_CLOCK = r"(?:(?:T|\s+)(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
_ZONE = r"\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}}){_CLOCK}{_ZONE}", re.IGNORECASE)
# dates with dots are day first everywhere; with slashes it depends on the country
_DAY_FIRST = re.compile(rf"(\d{{1,2}})(\.)(\d{{1,2}})\.(\d{{4}}){_CLOCK}{_ZONE}", re.IGNORECASE)

# year and month: as a number, October (.1) would come before February (.2)
_YEAR_MONTH = re.compile(r"(?:19|20)\d{2}\.(?:0?[1-9]|1[0-2])")
# decimal numbers of at most so many digits differ in float64
EXACT_DIGITS = 15

NUMBER, DATE, ZONED_DATE = "a number", "a date without a time zone", "a date with a time zone"
_REMEDY = (
    "Write numbers that grow with time, such as Unix seconds, or dates such as 2024-05-31, "
    "2024-05-31 13:45:00, 2024-05-31T13:45:00+02:00 or 31.05.2024"
)


def seconds_of(text: str) -> tuple[float, str] | None:
    """Parse a time as a number and its kind.

    Args:
        text: a number in any unit, which is returned unchanged; or a date, with or without a time
            of day, fractions of a second and a time zone. Without a zone it is taken as UTC.

    Returns:
        The number, for dates seconds since 1970 in UTC; and NUMBER, DATE or ZONED_DATE. None for
        anything else and for ambiguous texts.
    """
    found = _exactly(text.strip())
    return None if found is None else (float(found[0]), found[1])


def _exactly(text: str) -> tuple[Decimal, str] | None:
    """`seconds_of` as an exact decimal number."""
    try:
        number = float(text)
    except ValueError:
        return _seconds_of_date(text)
    if not math.isfinite(number) or _YEAR_MONTH.fullmatch(text):
        return None
    return Decimal(text), NUMBER


def _seconds_of_date(text: str) -> tuple[Decimal, str] | None:
    if match := _YEAR_FIRST.fullmatch(text):
        year, _, month, day, *rest = match.groups()
    elif match := _DAY_FIRST.fullmatch(text):
        day, _, month, year, *rest = match.groups()
    else:
        return None
    hour, minute, second, fraction, zone = rest
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0)
        )
        moment = moment.replace(tzinfo=timezone(_offset(zone)))
    except ValueError:  # a 30th of February
        return None
    seconds = Decimal(int(moment.timestamp())) + Decimal(f"0.{fraction or 0}")
    return seconds, ZONED_DATE if zone else DATE


def _offset(zone: str | None) -> timedelta:
    """Offset of a zone such as +02:00, -0530 or Z; None is UTC."""
    if zone is None or zone[0] not in "+-":
        return timedelta(0)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -offset if zone[0] == "-" else offset


def times_needed_by(config: Mapping[str, Any]) -> str | None:
    """The setting for which the split or the training depends on times; None if none does.

    Args:
        config: the run's settings, with a language model's if it is one.
    """
    if not config["benchmark_filename"]:  # benchmark files are already split and filtered
        if config["eval_args"]["order"] == "TO":
            protocol = config["protocol"]
            return "eval_args order TO" + (f" (protocol={protocol})" if protocol else "")
        if config["rm_dup_inter"] is not None:
            return f"rm_dup_inter={config['rm_dup_inter']}"
    if config["history_split"] == "temporal" and config["context"] == "history":
        return "history_split=temporal"
    return None


def check_time_column(
    where: str, field: str, columns: Mapping[str, str], needed_by: str | None
) -> None:
    """Refuse a file without times if a setting needs them.

    Args:
        where: file and line, for messages.
        field: the column of times.
        columns: RecBole's type of every column.
        needed_by: the setting that needs times; None if none does.

    Raises:
        DataError: the column is missing, or RecBole would not read it as numbers.
    """
    if needed_by is None or columns.get(field) == "float":
        return
    if field not in columns:
        raise DataError(
            f"{where}: {needed_by} needs times, but there is no column {field!r}. Add "
            f"{field}:float, or set --TIME_FIELD to the column that has them."
        )
    raise DataError(
        f"{where}: {needed_by} needs times, but RecBole would number the values of "
        f"{field}:{columns[field]} by first appearance. Write {field}:float, which accepts numbers "
        "and dates."
    )


class TimeColumn:
    """Reads a column of times value by value: all must be numbers, or dates of one kind.

    Attributes:
        field: name of the column.
        needed_by: the setting that needs the times; None if none does.
    """

    def __init__(self, field: str, needed_by: str | None = None) -> None:
        self.field = field
        self.needed_by = needed_by
        self._kind: str | None = None
        self._where = ""
        self._exact: dict[float, Decimal] = {}  # times of more than `EXACT_DIGITS`

    def number(self, where: str, value: str) -> float:
        """Parse the next value with `seconds_of`.

        Args:
            where: file and line, for messages.
            value: the field's text.

        Raises:
            DataError: the value is not a time, differs in kind from earlier ones, or equals a
                different earlier time in float64.
        """
        found = _exactly(value.strip())
        if found is None:
            raise DataError(
                f"{where}: {self.field} is {value[:40]!r}, which is not an unambiguous time. "
                f"{_REMEDY}; or remove the row, or remove {self.field} from --load_col."
            )
        exact, kind = found
        if self._kind is None:
            self._kind, self._where = kind, where
        elif kind != self._kind:
            raise DataError(
                f"{where}: {self.field} is {kind}, but {self._kind} in {self._where}. Write all "
                "times in one form, so that they can be sorted."
            )
        number = float(exact)
        if len(exact.as_tuple().digits) > EXACT_DIGITS:
            other = self._exact.setdefault(number, exact)
            if other != exact:
                raise DataError(
                    f"{where}: {self.field} is {value[:40]!r}, and another row's time is equal in "
                    "float64, which has 15 digits. Write times in a larger unit, such as whole "
                    "microseconds, or count from a later day."
                )
        return number
