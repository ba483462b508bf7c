"""Command line: `recbole-multdpo --key=value ...`, or `python -m recbole_multdpo`.

Nothing heavy is imported before it is needed, so that `--help` and mistakes are answered at once.
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from recbole_multdpo import __version__
from recbole_multdpo.errors import ConfigError, MultDPOError, system_error
from recbole_multdpo.runtime.shown_text import show

USAGE = """\
usage: {prog} --model=NAME --dataset=NAME [--key=value ...]

Train and evaluate a recommender: LLMRec, a language model aligned with set-wise preferences, or any
model of RecBole on the same data, split and metrics.

Settings
  --key=value            one setting; a value is a number, True, False, None, text, a list or a
                         mapping: --topk=[5,10]   --eval_args="{{'order': 'TO'}}"
  --config_files="A B"   YAML files with settings; the later file wins
  --protocol=NAME        split, filters, metrics and cut-offs of published tables together
  Precedence: command line > --config_files > the protocol > the data folder's own file > the data
  set's, the model's and the overall file of this package > RecBole's defaults. A key that does not
  exist is an error.

What there is
{overview}

More help
  --help=NAME            a setting or a loss: its default, values and effect
  --help=losses          every loss in a line; likewise models, datasets, protocols, settings
  --version              the version

Comparison
  --model=A,B --loss=c,d   every model, LLMRec with every loss, on the same split and metrics
  --seeds=3                so many seeds, from --seed on; or the seeds: --seeds=2020,2021
  --EASE.reg_weight=250    of one model, loss or assistant; a plain one goes to all that have it
  --tune="{{'beta': [0.3, 1, 3], 'EASE.reg_weight': [100, 250]}}"   chosen on the validation part
  --vary="{{'beta': [0.1, 1]}}"   one system of every value
  --experiment=FILE        all of this as a YAML file; or one that comes with the package:
                           {experiments}
  --jobs=2                 so many runs at a time
  --baseline=EASE          what the others are tested against; without it, the best

Several processes: the same command, started by torchrun or deepspeed
  torchrun --nproc_per_node=2 -m recbole_multdpo --model=LLMRec --dataset=ml-100k
  deepspeed --num_gpus=8 --module recbole_multdpo --deepspeed=zero2 --backbone=NAME ...

Where the settings are described, in {properties}
  overall.yaml           every model: seed, device, run_dir, split, metrics, ...
  model/LLMRec.yaml      the language model: backbone, loss, beta, sft_epochs, epochs, ...
  dataset/*.yaml         ml-100k, goodreads, redial, ...: columns, what is a positive
  https://recbole.io/docs/user_guide/config_settings.html   RecBole's own

Examples
  {prog} --model=LLMRec --dataset=ml-100k --loss=mult_dpo
  {prog} --model=EASE --dataset=ml-100k --reg_weight=250
  {prog} --model=LLMRec --dataset=ml-100k --assistant=EASE
  {prog} --model=LLMRec --dataset=ml-100k --epochs=8 --run_dir=runs/long
  {prog} --resume=runs/long       (continue an interrupted run)
  {prog} --model=LLMRec --dataset=ml-100k --resume=auto   (or start)
  {prog} --model=LLMRec,EASE --loss=dpo,mult_dpo --dataset=ml-100k --seeds=3

With a finished run: python -m recbole_multdpo.COMMAND RUN_FOLDER
  recommend, explain, demo (a web page), evaluate, export, plots; each has --help
Before a run
  python -m recbole_multdpo.data.convert   raw files become a data set
  python -m recbole_multdpo.backbones      language models to start from
  python -m recbole_multdpo.compat         versions, and what is patched in RecBole
In Python: recbole_multdpo.run(model="LLMRec", dataset="ml-100k"), recbole_multdpo.Recommender

Results are written to one folder per run: config.yaml, run.log, result.json, per_user.csv,
tensorboard/ and checkpoints/; by default under saved/. A comparison's folder holds those of its
runs, tables.md, tables.tex, runs.csv, significance.csv, results.json, tuning.csv and report.html.
"""


def usage() -> str:
    """The text of `--help`: how it was called, and what is there on this machine."""
    from recbole_multdpo.settings import help as texts
    from recbole_multdpo.settings.layers import experiments_folder, properties_folder

    names = ", ".join(sorted(file.stem for file in experiments_folder().glob("*.yaml")))
    return USAGE.format(
        prog=program(),
        overview=texts.overview(),
        experiments=f"\n{' ' * 27}".join(textwrap.wrap(names, 73)),
        properties=_shown(properties_folder()),
    )


def program() -> str:
    """The command as it was called."""
    name = Path(sys.argv[0]).name
    if name.startswith("recbole-multdpo"):
        return "recbole-multdpo"
    return f"python {name}" if name == "run_recbole_multdpo.py" else "python -m recbole_multdpo"


def _shown(folder: Path) -> Path:
    """A path relative to the working directory where it is inside."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        Exit status: 0 done, 1 a run of a comparison failed, 2 a user error (printed without a
        traceback), 130 interrupted by Ctrl-C, 143 by SIGTERM. Other errors are bugs and are raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # from the deepspeed launcher, which also sets LOCAL_RANK
    arguments = [text for text in arguments if not text.startswith("--local_rank=")]
    if {"-h", "--help"} & set(arguments):
        show(usage().rstrip())
        return 0
    if "--version" in arguments:
        print(f"recbole-multdpo {__version__}")
        return 0
    topics = [text.partition("=")[2] for text in arguments if text.startswith("--help=")]
    try:
        if topics:
            from recbole_multdpo.settings.help import explained

            show("\n\n".join(map(explained, topics)))
            return 0
        from recbole_multdpo.trained.start import start

        return start(arguments)[1]
    except MultDPOError as error:
        _report(error)
        return 2
    except OSError as error:
        show(f"error: {system_error(error)}", sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        show(str(error) or "interrupted before the run began", sys.stderr)
        return getattr(error, "exit_status", 130)  # of an Interrupted


def _report(error: MultDPOError) -> None:
    """Print an error; once if all processes of the run have the same one."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        hint = "\n(--help shows how settings are written.)" if _is_about_form(error) else ""
        show(f"error: {error}{hint}", sys.stderr)
    elif _was_distributed():  # before, all fail alike, as on a setting
        show(f"error in process {rank}: {error}", sys.stderr)


def _is_about_form(error: MultDPOError) -> bool:
    """True if a setting is missing or not written as one: other messages say all there is."""
    forms = ("cannot read the argument", "no model is given", "no dataset is given")
    return isinstance(error, ConfigError) and str(error).startswith(forms)


def _was_distributed() -> bool:
    from recbole_multdpo.runtime import processes  # imports torch

    return processes.was_distributed()


if __name__ == "__main__":
    sys.exit(main())
