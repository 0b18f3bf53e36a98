"""python -m jaxgen COMMAND: what one does with a run folder, with what it made, and with data."""

import difflib
import sys
from pathlib import Path

from jaxgen.commands import compare, data, evaluate, export, paths, replay, reproduce, sample
from jaxgen.commands.flags import explain
from jaxgen.errors import UserError
from jaxgen.terminal import say

USAGE = """usage: python -m jaxgen COMMAND ...

  sample RUN       draw samples from a trained model:     python -m jaxgen sample runs/vae_mnist --num 64 --out grid.png
                   (a folder as --out holds a file of each)
  interpolate RUN  from latents to others:                python -m jaxgen interpolate runs/vae_mnist --out paths.gif
  traverse RUN     one latent at a time:                  python -m jaxgen traverse runs/vae_mnist --dims 3 7
  arithmetic RUN   add what tells two labels apart:       python -m jaxgen arithmetic runs/vae_mnist --minus 3 --plus 8
  reproduce FILE   make again what one of these wrote:    python -m jaxgen reproduce grid.png
  evaluate RUN     measure it on its test data:           python -m jaxgen evaluate runs/vae_mnist --nll-samples 5000
  export RUN       a sampler that needs JAX alone, and its weights: --out sampler.jaxexport
  compare RUN RUN ...  settings, figures, curves and samples side by side, on a page (--out comparison.html)
  replay RUN       find what made a run stop for numbers that are not finite
  data prepare NAME --from DIR                            prepare a data set from its raw files, without a network
  data inception FILE.pth --out inception.npz             convert the published weights of FID's network, with PyTorch

Each has a --help of its own: python -m jaxgen sample --help"""

HELP = {"-h", "--help", "--help-all"}
MAKERS = {"sample": (sample.Flags, sample.files_of)} | paths.MAKERS  # what `reproduce` can make again
# Of a run folder; what follows it is the command's own, further folders too.
ON_RUN = {"sample": sample.run, "export": export.run, "evaluate": evaluate.run} | paths.COMMANDS
ON_RUN |= {"compare": compare.run, "replay": replay.run}
ON_DATA = {"prepare": (data.prepare, "a data set's name"), "inception": (data.inception, "a file")}
# The flags of each, and the word that comes before them.
FLAGS = {command: ("RUN", kind) for command, (kind, _) in MAKERS.items()}
FLAGS |= {"export": ("RUN", export.Export), "evaluate": ("RUN", evaluate.Evaluate), "compare": ("RUN", compare.Compare)}
FLAGS |= {"replay": ("RUN", replay.Replay), "reproduce": ("FILE", reproduce.Flags)}
FLAGS |= {"prepare": ("NAME", data.Prepare), "inception": ("FILE.pth", data.Inception)}


def main(args: list[str]) -> None:
    if not args or args[0] in HELP or (args[0] == "data" and set(args[1:2]) & HELP):
        say(USAGE)
        return
    names = [*ON_RUN, "reproduce", "data"]
    if args[0] not in names:
        close = difflib.get_close_matches(args[0], names, n=1)
        raise UserError(f"no command {args[0]!r}{f'; did you mean {close[0]}?' if close else ''}\n{USAGE}")
    if args[0] == "data" and (len(args) < 2 or args[1] not in ON_DATA):
        raise UserError(f"data wants to know what to do: {' or '.join(ON_DATA)}\n{USAGE}")
    command, *rest = args[1:] if args[0] == "data" else args
    what = "a file" if command == "reproduce" else ON_DATA[command][1] if command in ON_DATA else "a run folder"
    if rest and rest[0] in HELP:
        explain(f"data {command}" if command in ON_DATA else command, *FLAGS[command])
    if not rest or rest[0].startswith("-"):
        raise UserError(f"{command} needs {what} as its first word\n{USAGE}")
    if command in ON_DATA:
        ON_DATA[command][0](rest[0], rest[1:])
    elif command == "reproduce":
        reproduce.run(Path(rest[0]), rest[1:], MAKERS)
    else:
        from jaxgen.folder import followed

        ON_RUN[command](followed(Path(rest[0])), rest[1:])


if __name__ == "__main__":
    from jaxgen.run import errors_in_one_line

    with errors_in_one_line():
        main(sys.argv[1:])
