"""``fastattn data``: its commands and their options. Defaults are those of BuildConfig."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastattn.cli.errors import clear_errors
from fastattn.cli.options import option, pairs
from fastattn.data.tasks import TASKS, check_task, name_columns

app = typer.Typer(help="Build labelled data for fine-tuning, and look at it.", no_args_is_help=True)


_LAYOUT, _FILES, _CHECKS, _SPLITS, _TRAINING, _RUN = (
    *("Columns and labels", "Files", "Checks", "Splits", "Training split alone", "Run"),
)


def _size(value: str) -> float | str:
    """A number of rows, a share, or a word that the check of the settings refuses."""
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError:
        return value


@app.command("build")
def build(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            help='Files (CSV, TSV, JSONL, JSON, Parquet, CoNLL, SQuAD, text), folders, "imdb", or '
            "data sets of the Hub. test=FILE says which split a source is.",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder for the data set.", show_default=False)],
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help=f"What the rows are for: {', '.join(TASKS)}.",
        ),
    ] = "classification",
    data_config: Annotated[
        str | None,
        option(
            panel=_LAYOUT,
            metavar="NAME",
            help="Configuration of a data set of the Hub that has several, such as sst2 of "
            "nyu-mll/glue; or of a folder with a copy of one.",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        option(
            panel=_LAYOUT,
            help='Column with the texts, tokens or contexts. Default: "text", "tokens", "context".',
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        option(
            panel=_LAYOUT,
            help='Column with the labels, tags or answers. Default: "label", "labels", "tags", '
            '"answers".',
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        option(
            panel=_LAYOUT,
            metavar="NAME=COLUMN",
            help="Any other column of the task; source=translation.en reaches into objects.",
        ),
    ] = None,
    label_map: Annotated[
        list[str] | None,
        option(
            panel=_LAYOUT,
            metavar="OLD=NEW",
            help="Names a label or tag anew; OLD= drops it. May be repeated.",
        ),
    ] = None,
    label_columns: Annotated[
        str, option(panel=_LAYOUT, help="Multilabel: columns of 0 and 1, as in toxic,rude.")
    ] = "",
    label_separator: Annotated[
        str, option(panel=_LAYOUT, help="Multilabel: between the labels of a cell.")
    ] = "|",
    plain_tags: Annotated[
        bool,
        option("--plain-tags", panel=_LAYOUT, help="Tags are classes of single tokens, not IOB2."),
    ] = False,
    encoding: Annotated[
        str,
        option(panel=_FILES, help="Of text files. auto: UTF-8, or another if there is no doubt."),
    ] = "auto",
    delimiter: Annotated[
        str | None, option(panel=_FILES, help="Of CSV and TSV files. Default: comma, tab.")
    ] = None,
    quotes: Annotated[
        bool, option("--quotes/--no-quotes", panel=_FILES, help="Whether cells may be quoted.")
    ] = True,
    token_column: Annotated[int, option(panel=_FILES, help="Of CoNLL files, counted from 0.")] = 0,
    tag_column: Annotated[int, option(panel=_FILES, help="Of CoNLL files; -1 is the last.")] = -1,
    whole_files: Annotated[
        bool, option("--whole-files", panel=_FILES, help="Each text file is one text.")
    ] = False,
    bad_rows: Annotated[
        str,
        option(
            panel=_CHECKS,
            metavar="stop|reject",
            help="Stop at a row that cannot be used, or reject it.",
        ),
    ] = "stop",
    repair: Annotated[
        bool,
        option("--repair/--no-repair", panel=_CHECKS, help="Put mojibake and accents right."),
    ] = True,
    min_words: Annotated[int, option(panel=_CHECKS, help="Shorter texts are rejected.")] = 1,
    max_words: Annotated[
        int | None, option(panel=_CHECKS, help="Longer texts are rejected.")
    ] = None,
    near_duplicates: Annotated[
        str,
        option(
            panel=_CHECKS,
            metavar="group|drop|keep",
            help="Keep them in one split, drop all but one, or do not look.",
        ),
    ] = "group",
    similarity: Annotated[
        float, option(panel=_CHECKS, help="Share of common 5-grams of near-duplicates.")
    ] = 0.8,
    suspects: Annotated[
        str,
        option(
            panel=_CHECKS,
            metavar="flag|drop|off",
            help="What to do with labels that are likely wrong.",
        ),
    ] = "flag",
    validation_size: Annotated[
        Any,
        option(panel=_SPLITS, metavar="N|SHARE", parser=_size, help="Default: a tenth."),
    ] = None,
    test_size: Annotated[
        Any,
        option(panel=_SPLITS, metavar="N|SHARE", parser=_size, help="Default: a tenth."),
    ] = None,
    group_column: Annotated[
        str | None,
        option(panel=_SPLITS, help="Rows with the same value there stay in one split."),
    ] = None,
    seed: Annotated[int, option(panel=_SPLITS, help="Another number, another split.")] = 0,
    balance: Annotated[
        str,
        option(
            panel=_TRAINING, metavar="none|downsample|upsample", help="As many rows of each class."
        ),
    ] = "none",
    augment: Annotated[
        int, option(panel=_TRAINING, help="Varied copies of each row: words deleted, swapped.")
    ] = 0,
    format: Annotated[
        str,
        option(
            panel=_RUN,
            metavar="jsonl|parquet",
            help="Of the splits.",
        ),
    ] = "jsonl",
    tokenizer: Annotated[
        str, option(panel=_RUN, help="For the report: minilm-l6, a folder, a name on the Hub.")
    ] = "minilm-l6",
    max_length: Annotated[
        int, option(panel=_RUN, help="For the report: tokens after which training cuts.")
    ] = 512,
    overwrite: Annotated[
        bool, option("--overwrite", panel=_RUN, help="Replace a data set built there.")
    ] = False,
    progress: Annotated[
        bool, option("--progress/--quiet", panel=_RUN, help="Show progress and the result.")
    ] = True,
    debug: Annotated[bool, option("--debug", panel=_RUN, help="Show an error's traceback.")] = (
        False
    ),
) -> None:
    """Build a checked data set with splits from the files you have.

    Finds empty, broken, duplicate, contradicting and near-duplicate rows, and labels that are
    likely wrong; splits without leaks; writes a report.html, and every row that was left out to
    rejects.jsonl with its reason. `fastattn finetune --data OUTPUT` trains on it.
    """
    with clear_errors(debug):
        settings = {
            name: value
            for name, value in context.params.items()
            if name
            not in ("debug", "text_column", "label_column", "column", "label_map", "label_columns")
        }
        check_task(task)
        columns = pairs("data build", "column", column or ())
        columns = name_columns(task, text_column, label_column, columns)
        labels = pairs("data build", "label_map", label_map or (), "OLD=NEW", empty=True)
        # Only now: a message about an option does not wait for what a build needs.
        from fastattn.data.build import BuildConfig
        from fastattn.data.build import build as run

        config = BuildConfig(
            **settings,
            columns=columns,
            labels=labels,
            label_columns=tuple(name.strip() for name in label_columns.split(",") if name.strip()),
        )
        report = run(config)
        if progress:
            _print_summary(report, output)


@app.command("show")
def show(
    folder: Annotated[str, typer.Argument(help="A folder that `fastattn data build` made.")],
    rows: Annotated[int, typer.Option(help="First rows of each split to print.", min=0)] = 2,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Print what a built data set holds and what was found in building it."""
    with clear_errors(debug):
        import json
        from itertools import islice

        from fastattn.data.built import read_description, read_report, read_split

        description = read_description(folder)
        report = read_report(folder)
        _print_summary(report, folder)
        for split in description["files"] if rows else ():
            for row in islice(read_split(folder, split), rows):
                text = json.dumps(row, ensure_ascii=False)
                typer.echo(f"{split:12}{text if len(text) <= 160 else text[:157] + '...'}")


def _print_summary(report: dict[str, Any], folder: str) -> None:
    splits = ", ".join(f"{split} {rows:,}" for split, rows in report["splits"].items())
    lines = [
        ("read", f"{report['rows_read']:,} rows for {report['task']}"),
        ("splits", f"{splits}; no text and no near-duplicate is in two of them"),
    ]
    if report["near_duplicates"]["action"] == "keep":
        lines[1] = ("splits", f"{splits}; no text is in two of them")
    rejected = report["rejected"]
    words = [f"{rows:,} {reason.replace('_', ' ')}" for reason, rows in rejected.items()]
    lines.append(("rejected", ", ".join(words) or "none"))
    labels = report["labels"].get("train", {})
    if labels:
        common = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{label} {rows:,}" for label, rows in common[:8])
        lines.append(("labels", shown + (", ..." if len(labels) > 8 else "")))
    near = report["near_duplicates"]
    if near["clusters"]:
        lines.append(
            ("alike", f"{near['rows_in_clusters']:,} rows in {near['clusters']:,} clusters")
        )
    if report["suspects"] and report["suspects"]["suspicious"]:
        lines.append(("suspicious", f"{report['suspects']['suspicious']:,} labels"))
    padding = next(b for b in report["padding"]["batches"] if b["kind"] == "stock padding")
    lines.append(
        (
            "padding",
            f"{padding['padding']:.0%} of the tokens of stock batches of {padding['batch_size']}; "
            f"{padding['times_the_work']:.2f} times the work",
        )
    )
    lines += [("note", warning) for warning in report["warnings"]]
    lines.append(("report", f"{folder}/report.html"))
    for name, line in lines:
        typer.echo(f"{name:12}{line}")
