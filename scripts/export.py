"""An ordinary folder of any checkpoint of an unfinished run.

    python scripts/export.py RUN --step N OUT

RUN: `<output_dir>/<stage>.unfinished`. OUT: a folder that is not there yet; `transformers` and
every other tool load it. Of stage 3 it is the policy; `--role critic` exports the critic. The
parents and the base must be where they were when the run began.
"""

import argparse
from pathlib import Path

from cores.errors import UserError
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Read the run's configuration, build the model as the stage does, put the weights in, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="<output_dir>/<stage>.unfinished")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--step", type=int, required=True, help="the N of checkpoints/step-N")
    parser.add_argument("--role", choices=["actor", "critic"], default="actor", help="of stage 3")
    options = parser.parse_args(argv)
    run = options.run.expanduser().absolute()
    if options.out.exists():
        raise UserError(f"{options.out}: exists already. Give a folder that is not there yet.")

    from cores.files import read_json
    from cores.models import save_model
    from cores.run import checkpoint
    from cores.run.export import build
    from cores.runtime.launch import quiet

    quiet()
    state = read_json(run / "state.json", "Give the folder of an unfinished run.")
    folder = run / "checkpoints" / f"step-{options.step}"
    if not folder.is_dir():
        found = checkpoint.steps(run / "checkpoints")
        raise UserError(f"{folder}: there is no such checkpoint; there are those of steps {found}.")
    if problem := checkpoint.damage(folder, options.step):
        raise UserError(f"{folder}: damaged ({problem}). Choose another step.")
    numbers = read_json(folder / checkpoint.NUMBERS)
    saved = checkpoint.Checkpoint(folder, options.step, numbers)
    model, tokenizer, merge = build(state, run.parent, saved, options.role)
    save_model(model, tokenizer, options.out, merge)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    guarded(main)
