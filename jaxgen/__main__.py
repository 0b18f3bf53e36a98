"""python -m jaxgen sample | evaluate | export | replay | data: what one does with a run folder, and with data."""

import difflib
import sys
from pathlib import Path

from jaxgen.commands import data, evaluate, export, replay, sample
from jaxgen.errors import UserError

USAGE = """usage: python -m jaxgen COMMAND ...

  sample RUN     draw samples from a trained model:   python -m jaxgen sample runs/vae_mnist --num 64 --out grid.png
                 (a folder as --out holds a file of each)
  evaluate RUN   measure it on its test data:         python -m jaxgen evaluate runs/vae_mnist --nll-samples 5000
  export RUN     write a sampler that runs without this project, and its weights:
                                                      python -m jaxgen export runs/vae_mnist --out sampler.jaxexport
  replay RUN     find what made a run stop for numbers that are not finite
  data prepare NAME --from DIR                        prepare a data set from its raw files, without a network
  data inception FILE.pth --out inception.npz         convert the published weights of FID's network, with PyTorch

Each has a --help of its own."""


# Of a run folder.
COMMANDS = {"sample": sample.run, "evaluate": evaluate.run, "export": export.run, "replay": replay.run}
ON_DATA = {"prepare": (data.prepare, "a data set's name"), "inception": (data.inception, "a file")}


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if args[0] not in (*COMMANDS, "data"):
        close = difflib.get_close_matches(args[0], [*COMMANDS, "data"], n=1)
        raise UserError(f"no command {args[0]!r}{f'; did you mean {close[0]}?' if close else ''}\n{USAGE}")
    task, what = COMMANDS.get(args[0]), "a run folder"
    if args[0] == "data":
        if len(args) < 2 or args[1] not in ON_DATA:
            raise UserError(f"data wants to know what to do: {' or '.join(ON_DATA)}\n{USAGE}")
        args = args[1:]
        task, what = ON_DATA[args[0]]
    if len(args) < 2 or args[1].startswith("-"):
        raise UserError(f"{args[0]} needs {what} as its first word\n{USAGE}")
    task(Path(args[1]) if args[0] in COMMANDS else args[1], args[2:])


if __name__ == "__main__":
    from jaxgen.run import errors_in_one_line

    with errors_in_one_line():
        main(sys.argv[1:])
