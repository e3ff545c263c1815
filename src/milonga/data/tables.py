"""The one reader of tables: CSV with any delimiter, JSON, JSON lines and Parquet, as rows that say where they stand.

Reading is strict. A table that a correct writer wrote is read back equal; a damaged one is refused with its file, its
line and what to do. A cell never moves into another column, and no part of a cell is cut.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milonga.core.errors import DataError, brief

DELIMITERS = (",", "\t", ";", "|")
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", *JSON_SUFFIXES, ".parquet")
# Column names of this field's data sets; they decide which delimiter a table has, and any case of them counts.
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")
PATH_COLUMNS = ("location", "file_name", "audio", "path", "file")
CLIP_COLUMNS = ("clip", *PATH_COLUMNS, "audiocap_id", "youtube_id", "start_time")
NUMBERED = re.compile(r"caption_?\d+")  # Clotho's caption_1 to caption_5
BYTE_ORDER_MARKS = (  # UTF-32's begins with UTF-16's
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
FOREIGN = (
    (b"PK\x03\x04", "is a spreadsheet or a zip archive: save the table as CSV (UTF-8)"),
    (b"\x1f\x8b", "is compressed: unpack it first"),
    (b"PAR1", "is Parquet: give it the suffix .parquet"),
    (b"version https://git-lfs", "is a git-lfs pointer, not the table: fetch it with git lfs pull"),
)
BATCH = 16  # rows of Parquet that are read at once: they may hold audio


@dataclass(frozen=True)
class Row:
    """A row of a table: where it stands (`FILE, line 7`), and its cells by column."""

    where: str
    cells: dict[str, Any]


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a table in their order: Parquet or JSON by the suffix, else text with a delimiter and a header.

    The delimiter is a comma, tab, semicolon or bar, whichever gives the header its known columns. The encoding is
    UTF-8, or UTF-16 or UTF-32 with a byte order mark. JSON is a list of objects, one object a line, or an object with
    one such list. Of Parquet `columns` limits what is read. Raises DataError for a file that is missing, damaged or
    ambiguous.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    text = read_text(path)
    yield from _json_rows(path, text) if path.suffix.lower() in JSON_SUFFIXES else _csv_rows(path, text)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; DataError for anything else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    for magic, advice in FOREIGN:
        if data.startswith(magic):
            raise DataError(f"{path} {advice}")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not {'UTF-8' if 'utf-8' in encoding else encoding.upper()} at byte {error.start}; "
            "save the table as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line}: holds a NUL character, so it is damaged or not UTF-8; save it as UTF-8")
    return text


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    """The rows of a text table; every row has as many cells as the header."""
    delimiter, text, skipped = _delimiter(path, text)
    records = _records(path, text, delimiter, skipped)
    _, header = next(records, (0, []))
    if not any(header):
        raise DataError(f"{path}: the file is empty; it needs a header with a column `caption`")
    names = [_column_name(cell) for cell in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header has the column {twice[0]} twice; rename one of them")
    quoting = f"put a text that holds {_named(delimiter)} in double quotes"
    for line, cells in records:
        where = f"{path}, line {line}"
        if not any(cells) and len(cells) > 1:  # what spreadsheets leave below a table
            continue
        if len(cells) < len(names):
            raise DataError(f"{where}: {_count(cells)} where the header has {len(names)}; add the missing ones")
        # The first column may be an index without a name; text below another column without one is part of a caption.
        unnamed = [cell for place, cell in enumerate(cells) if place and (place >= len(names) or not names[place])]
        if any(cell.strip() for cell in unnamed):
            raise DataError(f"{where}: {_count(cells)} where the header names {sum(map(bool, names))}; {quoting}")
        if cells == header:
            raise DataError(f"{where}: the header stands here again; delete that line")
        yield Row(where, {name: cell for name, cell in zip(names, cells, strict=False) if name})


def _count(cells: Sequence[str]) -> str:
    return f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"


def _column_name(cell: str) -> str:
    """A header's cell without spaces around it; a known name in small letters."""
    name = cell.strip()
    return name.lower() if _is_known(name) else name


def _is_known(name: str) -> bool:
    lower = name.strip().lower()
    return lower in (*CAPTION_COLUMNS, *CLIP_COLUMNS) or NUMBERED.fullmatch(lower) is not None


def _named(delimiter: str) -> str:
    return {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}[delimiter]


def _delimiter(path: Path, text: str) -> tuple[str, str, int]:
    """The delimiter by which the header has the most known columns, the table's text, and how many lines precede it.

    A first line `sep=;`, which spreadsheets write, decides it. Raises DataError where two do equally well.
    """
    stated = re.match(r"sep=([,;|\t])\r?\n", text)
    if stated:
        return stated[1], text[stated.end() :], 1
    known: dict[str, int] = {}
    for delimiter in DELIMITERS:
        try:
            _, header = next(_records(path, text, delimiter), (0, []))
        except DataError:  # a header with quotes that fit another delimiter
            continue
        known[delimiter] = sum(map(_is_known, header)) if len(header) > 1 else 0
    best = [delimiter for delimiter in known if known[delimiter] == max(known.values())]
    if len(best) > 1 and known[best[0]]:
        raise DataError(f"{path}: the header may be divided by {' or '.join(map(_named, best))}; use one of them only")
    return best[0] if len(best) == 1 else "\t" if path.suffix.lower() == ".tsv" else ",", text, 0


def _records(path: Path, text: str, delimiter: str, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a text table by RFC 4180, with any of the three line ends; blank lines are passed over.

    Stricter than `csv`, which cannot say whether a cell stood in quotes: a quote that is not closed, text after a
    closing quote and a stray quote inside a cell are refused, for each of them may have moved a cell.
    """
    end = rf"({re.escape(delimiter)}|\r\n|\r|\n|\Z)"
    quoted = re.compile(rf' *"([^"]*(?:""[^"]*)*)" *{end}')
    opening = re.compile(r' *"')
    plain = re.compile(rf"([^{re.escape(delimiter)}\r\n]*){end}")
    place, line, cells, first = 0, skipped + 1, list[str](), skipped + 1
    while place < len(text) or cells:
        in_quotes = opening.match(text, place) is not None
        match = (quoted if in_quotes else plain).match(text, place)
        if match is None:
            closed = re.compile(r' *"[^"]*(?:""[^"]*)*"').match(text, place)
            fault = "text follows a closing double quote" if closed else "a double quote opens here and is never closed"
            raise DataError(f'{path}, line {line}: {fault}; write a quote inside a quoted text twice ("")')
        cell, terminator = match[1].replace('""', '"') if in_quotes else match[1], match[2]
        if not in_quotes and delimiter != "\t" and cell.count('"') % 2:
            raise DataError(
                f"{path}, line {line}: a double quote stands alone inside a cell; "
                'put the cell in double quotes and write the quote inside it twice ("")'
            )
        cells.append(cell)
        line += len(re.findall(r"\r\n|\r|\n", match[0])) if in_quotes else terminator not in ("", delimiter)
        place = match.end()
        if terminator != delimiter:
            if in_quotes or len(cells) > 1 or cells[0]:
                yield first, cells
            cells, first = [], line


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    """The objects of a JSON list, of the one list in an object (WavCaps'), or of JSON lines."""
    value, body = None, text.strip("\ufeff \t\r\n")
    one_line = path.suffix.lower() == ".json" and "\n" not in body  # as json.dump writes an object by default
    if body.startswith("["):
        value = _json(body, str(path))
    elif body.startswith("{") and (one_line or not _is_json(body.split("\n", 1)[0])):
        value = _json(body, str(path), "a list of objects or one object a line is expected")
        lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
        value = lists[0] if len(lists) == 1 else [value]
    if value is not None:
        for number, item in enumerate(value, 1):
            yield _json_row(item, f"{path}, item {number}")
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _json_row(_json(line, where, "one object a line is expected"), where)


def _json_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object; one object for each clip is expected")
    if len(value) > 1 and all(isinstance(part, (list, dict)) for part in value.values()):
        raise DataError(f"{where}: an object of columns; write one object for each clip (pandas: orient='records')")
    return Row(where, {_column_name(name): cell for name, cell in value.items()})


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json(text: str, where: str, advice: str = "a list of objects is expected") -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); {advice}") from error


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    """The rows of a Parquet file, a few at a time: published shards hold half a gigabyte each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            names = [name for name in table.schema_arrow.names if columns is None or name in columns or _is_known(name)]
            as_read = {name: name if name in (columns or ()) else _column_name(name) for name in names}
            number = 0
            for batch in table.iter_batches(BATCH, columns=names, use_threads=False):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", {as_read[name]: cell for name, cell in cells.items()})
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {brief(error)}") from error
