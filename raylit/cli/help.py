"""The help texts, written by hand: texts made from signatures are too long to read."""

COMMANDS = (
    "check",
    "fit",
    "validate",
    "test",
    "predict",
    "explain",
    "export",
    "tune",
    "ui",
    "runs",
    "sync",
    "register",
    "rerun",
    "data",
    "init",
)

# Those that a script with a LightningCLI has too.
OF_SCRIPTS = ("check", "explain", "export", "tune")

GENERAL = """\
usage: raylit COMMAND [flags]

commands:
  check      look for what is wrong with a model before it is trained
  fit        train a model
  validate   run its validation
  test       run its test
  predict    run its predict_step over data
  explain    tell how much each part of an input speaks for an output
  export     write a model to a file that runs without raylit
  tune       sweep: many fits with values drawn from a space
  ui         look at runs and sweeps in MLflow
  runs       the same in the terminal: list, show, compare, follow, delete
  sync       send to MLflow what a killed run or an unreachable server has left
  register   make the model of a run a version of a registered model
  rerun      fit again what a run was made of, and compare
  data       convert, describe and look at tables
  init       write a new project that runs

`raylit COMMAND -h` says more. A config file says what to run:
  raylit fit --config configs/digits.yaml --trainer.max_epochs 3

flags of all commands:
  --verbose   whole tracebacks, and what Ray says
  --version   print the version
  -h, --help  print this
  --print_completion SHELL  print what completes commands and flags in bash, zsh or tcsh

exit codes: 0 done, 1 failed, 2 wrong usage or config, 130 Ctrl-C, 143 SIGTERM"""

_CONFIG = """\
what to run (keys of a config file; as a flag, any key with dots: --trainer.max_epochs 3, \
--model.lr 0.01):
  --config FILE            YAML file; may be given several times, later ones and flags win
  --model CLASS            LightningModule, such as examples.digits.LitDigits     (model: \
{class_path: ..., init_args: ...})
  --data CLASS             LightningDataModule                                    (data: likewise)
  --trainer.NAME VALUE     an argument of raylit.Trainer; --trainer.help lists them
  --optimizer CLASS        torch optimizer, such as Adam, for a model without configure_optimizers
  --lr_scheduler CLASS     torch scheduler, such as StepLR
  --seed_everything N      seed of all random numbers; false: none. Default: true, which is 0"""

_OTHERS = """\
other flags:
{flags}  --print_config           print the whole config, which reproduces the run, and end
  --model.help CLASS       list the arguments of a class (also: data, optimizer, lr_scheduler)
  --ray.address ADDRESS    Ray cluster to run on; without it Ray is started on this machine if it \
is needed
  --verbose                whole tracebacks, and what Ray says"""


def _help(command: str, what: str, example: str, flags: str = "") -> str:
    return (
        f"usage: raylit {command} --config FILE [flags]\n\n{what}\n "
        f" {example}\n\n{_CONFIG}\n\n{_OTHERS.format(flags=flags)}"
    )


_ON = (
    "  --on WHERE               run it on a cluster: http://head:8265, a RayJob's file, or one of"
    " `ray up`. This folder is\n"
    "                           uploaded; passwords stay here, and are those of `ray start` there"
    " (docs/clusters.md)\n"
)
_CKPT = "  --ckpt_path PATH         checkpoint to load: a path, `last` or `best`\n"

HELP = {
    "check": _help(
        "check",
        "Look for what is wrong with a model before it is trained, and estimate what an epoch"
        " costs. Exit code 1 if there is a problem.",
        "raylit check --config configs/digits.yaml",
    ),
    "fit": _help(
        "fit",
        "Train a model.",
        "raylit fit --config configs/digits.yaml --trainer.num_workers 2",
        "  --ckpt_path PATH         checkpoint to go on from: a path, `last` or `best`\n"
        "  --resume                 go on from the newest checkpoint; an error if there is none\n"
        + _ON,
    ),
    "validate": _help(
        "validate",
        "Run the validation of a model once.",
        "raylit validate --config configs/digits.yaml --ckpt_path best",
        _CKPT + _ON,
    ),
    "test": _help(
        "test",
        "Run the test of a model once.",
        "raylit test --config configs/digits.yaml --ckpt_path best",
        _CKPT + _ON,
    ),
    "predict": _help(
        "predict",
        "Run predict_step over the data.",
        "raylit predict --config configs/digits.yaml --ckpt_path best --output predictions.pt",
        _CKPT + "  --output FILE            keep the predictions, for torch.load\n",
    ),
    "explain": _help(
        "explain",
        "Tell how much each part of the inputs in the validation data speaks for an output.",
        "raylit explain --config configs/digits.yaml --ckpt_path best --method saliency",
        _CKPT
        + "  --method METHOD          integrated_gradients, saliency, layer_gradcam, occlusion,\n"
        "                           feature_ablation or permutation. Default:"
        " integrated_gradients\n"
        "  --target TARGET          prediction, label or the index of an output. Default:"
        " prediction\n"
        "  --layer NAME             the embedding layer, where forward gets integers; the layer"
        " that layer_gradcam looks at\n"
        "  --output FILE            where to: FILE.npz and a picture, FILE.png. Default:"
        " explanation\n"
        "  --sanity_check true      compare with random weights\n",
    ),
    "export": _help(
        "export",
        "Write a model to a file that runs without raylit, and compare the two on validation data.",
        "raylit export --config configs/digits.yaml --ckpt_path best --format onnx",
        _CKPT
        + "  --format FORMAT          onnx, pt2 (torch.export), safetensors (weights alone) or"
        " mlflow\n"
        "                           (a folder for mlflow.pyfunc). Default: as the path says, else"
        " onnx\n"
        "  --path PATH              where to. Default: the name of the class, in this folder\n"
        "  --num_batches N          validation batches to compare on. Default: 4\n"
        "  --tolerance X            largest difference allowed, as a part of the largest output."
        " Default: 1e-5\n",
    ),
    "tune": _help(
        "tune",
        "Run a sweep: many fits of the config with values drawn from a space, on Ray Tune.",
        "raylit tune --config configs/digits.yaml --sweep configs/sweeps/digits.yaml",
        "  --sweep FILE             YAML file with space, metric, trials, ...\n"
        "  --sweep.KEY VALUE        a key of it, over the file: --sweep.trials 2\n"
        "  --resume [NAME]          go on with a sweep whose process has ended; without a name, the"
        " newest\n"
        "  --auto                   make the sweep file from the config, and test the best at the"
        " end\n"
        "  --budget TIME            how long that sweep takes. Default: 10m\n"
        "  --average K              also average the weights of the K best checkpoints of its best"
        " trial\n"
        "  --retrain [all|train]    then fit with the best values: on training and validation data,"
        " or as\n"
        "                           before; flags behind it count for that fit alone\n" + _ON,
    ),
    "ui": (
        """\
usage: raylit ui [flags]

Serve MLflow's pages with runs and sweeps, until Ctrl-C.

flags:
  --backend-store-uri URI  the store. Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in \
the current folder
  --host HOST              address to listen on. Default: 127.0.0.1, which only this machine reaches
  --port PORT              Default: 5000
  --auth                   ask for user and password; says where that of the first user, admin, is \
kept
  --verbose                show what MLflow says"""
    ),
    "runs": (
        """\
usage: raylit runs [ls] [flags]                 all runs, the newest first; sweeps as trees
       raylit runs show RUN                     one run: parameters, metrics with their course, \
files
       raylit runs compare RUN RUN ...          parameters that differ, and metrics
       raylit runs best METRIC [flags]          the best runs by a metric
       raylit runs tail RUN                     metrics as they come, until the run ends or Ctrl-C
       raylit runs diff RUN RUN                 what differs: parameters, commit, config
       raylit runs rm RUN ... --yes             delete runs (mlflow gc removes them for good)

RUN is an id, the first letters of one, a name, or `last`.
A run whose process is gone from this host is marked as KILLED; one elsewhere that nothing is \
heard of for ten minutes is shown as lost.

flags:
  --store URI              Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current \
folder
  --experiment NAME        only runs of this experiment
  --filter TEXT            ls, best: as MLflow's, "metrics.val_loss < 0.3 and params.`model.lr` = \
'0.01'"
  --order TEXT             ls: as MLflow's, "metrics.val_loss ASC"
  -n, --most N             ls, best: how many. Default: 30
  --mode min|max           best: Default: min
  --mark-killed            ls: also mark lost runs as KILLED
  --verbose                whole tracebacks"""
    ),
    "sync": (
        """\
usage: raylit sync [FOLDER] [flags]

Send what fits could not: the journals below FOLDER (default: the current one), each to the store \
that it names.
A value that is there already is not sent twice. Exit code 1 if something is left.

flags:
  --store URI              the store as the fit was given it, if it holds a password, which no \
journal does
  --verbose                whole tracebacks"""
    ),
    "register": (
        """\
usage: raylit register RUN --name NAME [flags]

Make the final model of a run a version of a registered model. Fits keep one with \
MLFlowLogger(log_model=True).
RUN is an id, the first letters of one, a name, or `last`.
  raylit register last --name digits --alias champion

flags:
  --name NAME              of the registered model, which is made if it is not there
  --alias ALIAS            of the version, such as champion: models:/NAME@ALIAS
  --store URI              Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current \
folder
  --experiment NAME        only runs of this experiment
  --verbose                whole tracebacks"""
    ),
    "rerun": (
        """\
usage: raylit rerun RUN [flags]

Fit again with the config of a run, which is printed first, with what differs: the commit, changes \
in no commit, a missing seed. Nothing is checked
out or installed. Afterwards the digests of the data and all values are compared. Exit code 1 if \
something differs.

flags:
  --print_config           print the config and end
  --store URI              Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current \
folder
  --experiment NAME        only runs of this experiment
  --verbose                whole tracebacks"""
    ),
    "data": (
        """\
usage: raylit data convert SOURCE TARGET [flags]
       raylit data describe SOURCE
       raylit data head SOURCE [-n ROWS]

Make Parquet or Arrow IPC of tables and of folders of images; tell what is in a table, and what \
raylit makes of each column; show its first rows.
SOURCE is Parquet, Arrow IPC, CSV or JSON lines: a file, a folder, a glob or a URL; for convert \
also a folder of images, in folders named as their labels.
  raylit data convert diamonds.csv diamonds.parquet

flags:
  --type COLUMN=TYPE       type of a column of text where the inferred one is wrong: --type \
price=float64
  --row-group-size ROWS    convert: rows in a row group. Default: about 8 MB, so that streaming \
mixes several
  --compression CODEC      convert: of Parquet. Default: zstd
  --columns A,B            convert: those to keep. Default: all
  --image-size HxW         convert: decode and resize images; without it their bytes are kept
  --force                  convert: write over a file that is there
  -n, --rows ROWS          head: how many. Default: 5
  --verbose                whole tracebacks"""
    ),
    "init": (
        """\
usage: raylit init NAME

Write a project into a new folder: a model, its data, configs, a sweep, tests that pass at once, \
and a README. Nothing is overwritten.
  raylit init my-project && cd my-project && python -m pytest"""
    ),
}


def help_of(command: str, program: str) -> str:
    """Return the help of a command as users of another program type it."""
    return HELP[command].replace(f"raylit {command}", f"{program} {command}")
