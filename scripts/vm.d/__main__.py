"""The command line of scripts/vm: build the guest image, list the shapes, run a command in a guest."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from guest import Boot, only_guest, run_guest
from image import Image, ImageError, build_image
from shape import GRAMMAR, NAMED, Shape, ShapeError, asked, parse_shape

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "vm"
DEFAULT_SECONDS = 600.0
EXIT_USAGE = 2
EXIT_CANNOT = 3


def main() -> int:
    """Returns the exit code: that of the guest's command for ``run``, 2 for a bad shape, 3 if no guest can run here."""
    # Split here: argparse would remove any further -- from the command.
    words, command = _cut(sys.argv[1:])
    options = _parser().parse_args(words, argparse.Namespace(command=command))
    try:
        return int(options.act(options))
    except ShapeError as error:
        print(f"vm: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ImageError as error:
        print(f"vm: {error}", file=sys.stderr)
        return EXIT_CANNOT


def _cut(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        description="Runs a command of the project in an emulated machine of a given shape: QEMU without KVM, "
        "Debian's kernel, this machine's own root, read-only, under an overlay in memory. No network, one at a time.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", help="fetch the kernel and build the initramfs, once (run does this automatically)"
    )
    build.add_argument("--again", action="store_true", help="build even if it exists, from the newest packages")
    build.set_defaults(act=_build)
    shapes = commands.add_parser("shapes", help="list the named shapes")
    shapes.add_argument("--json", action="store_true", help="with every core and node expected in its guest")
    shapes.set_defaults(act=_shapes)
    run = commands.add_parser(
        "run",
        help="boot, run a command in the checkout, exit with its exit code",
        usage="scripts/vm run [--timeout SECONDS] [--results DIR] [--append TEXT] SHAPE -- COMMAND…",
    )
    run.add_argument("shape", metavar="SHAPE", help=f"{', '.join(NAMED)}; or {GRAMMAR}")
    run.add_argument(
        "--timeout", type=float, default=DEFAULT_SECONDS, metavar="SECONDS", help="kill the guest after this time"
    )
    run.add_argument(
        "--results", type=Path, metavar="DIR", help="keep the files that the guest writes to $VM_RESULTS, and its log"
    )
    run.add_argument("--append", default="", metavar="TEXT", help="additional kernel parameters")
    run.set_defaults(act=_run)
    return parser


def _build(options: argparse.Namespace) -> int:
    started = time.monotonic()
    with only_guest(CACHE / "lock"):
        image = build_image(CACHE, _say, again=options.again)
    _say(f"{image.kernel.parent.relative_to(REPOSITORY)} is ready ({time.monotonic() - started:.1f} s)")
    return 0


def _shapes(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps({name: asked(shape) for name, shape in NAMED.items()}, indent=1))
        return 0
    for shape in NAMED.values():
        print(f"{shape.name:20} {_grid(shape):34} {shape.why}")
    return 0


def _run(options: argparse.Namespace) -> int:
    if not options.command:
        raise ShapeError("no command; use scripts/vm run SHAPE -- COMMAND…")
    shape = parse_shape(options.shape)
    with only_guest(CACHE / "lock"):
        image = build_image(CACHE, _say)
        with _results(options.results) as results:
            (results / "asked.json").write_text(json.dumps(asked(shape), indent=1))
            return run_guest(_boot(options, shape, image, results))


def _boot(options: argparse.Namespace, shape: Shape, image: Image, results: Path) -> Boot:
    return Boot(shape, image, options.command, REPOSITORY, results, options.timeout, options.append)


@contextlib.contextmanager
def _results(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        yield Path(folder).resolve()


def _grid(shape: Shape) -> str:
    nodes = "+".join(f"{node.cores}:{node.mebibytes}" for node in shape.nodes)
    grid = "x".join(map(str, (shape.sockets, shape.dies, shape.cores, shape.threads)))
    return f"{grid}@{nodes}" if nodes else grid


def _say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
