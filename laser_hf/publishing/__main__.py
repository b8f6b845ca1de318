"""`python -m laser_hf.publishing convert`: bring a model of another toolkit in."""

from __future__ import annotations

import argparse
import sys

from .convert import ConversionError, add_options, convert_checkpoint


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m laser_hf.publishing", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_options(commands)
    arguments = parser.parse_args(argv)
    try:
        record = convert_checkpoint(
            arguments.checkpoint,
            arguments.output_dir,
            base=arguments.base,
            model_type=arguments.model_type,
            revision=arguments.revision,
            num_attention_heads=arguments.num_attention_heads,
            do_normalize={"true": True, "false": False, None: None}[arguments.do_normalize],
            overwrite=arguments.overwrite_output_dir,
        )
    except ConversionError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    dropped = ", ".join(record["dropped"]) or "nothing"
    print(f"{record['layout']}: {record['tensors']} tensors converted, left out: {dropped}")
    for note in record["notes"]:
        print(f"Note: {note}")
    if record["changed_since_base"] is not None:
        print(f"Differs from {arguments.base} in: {', '.join(record['changed_since_base']) or 'nothing'}")
    print(f'AutoModel.from_pretrained("{arguments.output_dir}") loads it.')
    return 0


if __name__ == "__main__":
    sys.exit(main())
