"""Times of interactions: numbers, or dates as text, which are read as seconds since 1970 in UTC.

Whatever is sorted by time is sorted as read, in float64. What cannot be read without guessing, such
as 03/04/2020, is refused rather than put into some order; so are times that float64 cannot tell
apart, such as nanoseconds since 1970 that are 100 apart.
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
# with dots a date is written day first everywhere; with strokes it depends on the country
_DAY_FIRST = re.compile(rf"(\d{{1,2}})(\.)(\d{{1,2}})\.(\d{{4}}){_CLOCK}{_ZONE}", re.IGNORECASE)

# a year and a month, in which October would be 0.1 and come before February
_YEAR_MONTH = re.compile(r"(?:19|20)\d{2}\.(?:0?[1-9]|1[0-2])")
# any two decimal numbers of no more digits are two numbers in float64
EXACT_DIGITS = 15

NUMBER, DATE, ZONED_DATE = "a number", "a date without a time zone", "a date with a time zone"
_REMEDY = (
    "Write numbers that grow with time, such as Unix seconds, or dates such as 2024-05-31, "
    "2024-05-31 13:45:00, 2024-05-31T13:45:00+02:00 or 31.05.2024"
)


def seconds_of(text: str) -> tuple[float, str] | None:
    """A time as a number, and of which kind it is.

    Args:
        text: a number, which stays as it is, whatever its unit; or a date, with or without a time
            of day, fractions of a second and a time zone. Without a zone it is taken as UTC.

    Returns:
        The number, for dates seconds since 1970 in UTC; and NUMBER, DATE or ZONED_DATE. None where
        the text is none of them or has more than one meaning.
    """
    found = _exactly(text.strip())
    return None if found is None else (float(found[0]), found[1])


def _exactly(text: str) -> tuple[Decimal, str] | None:
    """`seconds_of`, before rounding."""
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
    """Of a zone such as +02:00, -0530, Z; none is UTC."""
    if zone is None or zone[0] not in "+-":
        return timedelta(0)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -offset if zone[0] == "-" else offset


def what_needs_times(config: Mapping[str, Any]) -> str | None:
    """The setting by which times decide what is trained or tested, None where nothing does.

    Args:
        config: the run's settings; those of a language model where it is one.
    """
    if not config["benchmark_filename"]:  # whose rows are split and filtered already
        if config["eval_args"]["order"] == "TO":
            return "eval_args order TO"
        if config["rm_dup_inter"] is not None:
            return f"rm_dup_inter={config['rm_dup_inter']}"
    if config["history_split"] == "temporal" and config["context"] == "history":
        return "history_split=temporal"
    return None


def check_time_column(
    where: str, field: str, columns: Mapping[str, str], needed_by: str | None
) -> None:
    """Refuse a file without times where they decide.

    Args:
        where: file and line, for messages.
        field: the column of times.
        columns: RecBole's type of every column.
        needed_by: what needs times; None where nothing does.

    Raises:
        DataError: the column is missing, or RecBole would not read it as numbers.
    """
    if needed_by is None or columns.get(field) == "float":
        return
    if field not in columns:
        raise DataError(
            f"{where}: {needed_by} needs times, and there is no column {field!r}. Add "
            f"{field}:float, or set --TIME_FIELD to the column that has them."
        )
    raise DataError(
        f"{where}: {needed_by} needs times, and {field}:{columns[field]} would be numbered by "
        f"first appearance. Write {field}:float, which takes numbers and dates."
    )


class TimeColumn:
    """Reads a column of times, one value after the other: all numbers, or all dates of a kind.

    Attributes:
        field: name of the column.
        needed_by: the setting by which the times decide, None where nothing depends on them.
    """

    def __init__(self, field: str, needed_by: str | None = None) -> None:
        self.field = field
        self.needed_by = needed_by
        self._kind: str | None = None
        self._where = ""
        self._exact: dict[float, Decimal] = {}  # of times of more than `EXACT_DIGITS`

    def number(self, where: str, value: str) -> float:
        """The next value as a number; see `seconds_of`.

        Args:
            where: file and line, for messages.
            value: as it stands there.

        Raises:
            DataError: it is no time, of another kind than those before, or so near to one of them
                that float64 takes them for one time.
        """
        found = _exactly(value.strip())
        if found is None:
            raise DataError(
                f"{where}: {self.field} is {value[:40]!r} and no time of one meaning. {_REMEDY}; "
                f"or remove the row, or leave {self.field} out of --load_col."
            )
        exact, kind = found
        if self._kind is None:
            self._kind, self._where = kind, where
        elif kind != self._kind:
            raise DataError(
                f"{where}: {self.field} is {kind}, and {self._kind} in {self._where}. Write all "
                "times in one way, or they cannot be put in order."
            )
        number = float(exact)
        if len(exact.as_tuple().digits) > EXACT_DIGITS:
            other = self._exact.setdefault(number, exact)
            if other != exact:
                raise DataError(
                    f"{where}: {self.field} is {value[:40]!r}, and another row's time is so near "
                    "that both are one number in float64, which has 15 digits. Write times in a "
                    "larger unit, such as whole microseconds, or counted from a later day."
                )
        return number
