"""python -m wsimil.testing.parity PATH...: files, or folders searched for *.npz. Exits 1 if anything differs."""

from __future__ import annotations

import sys
from pathlib import Path

from wsimil.testing.parity.replay import replay_file


def main(arguments: list[str]) -> int:
    """One line a file, and below it what differs."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    files: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        files += sorted(path.rglob("*.npz")) if path.is_dir() else [path]
    failed = 0
    for path in files:
        report = replay_file(path)
        verdict = "FAIL" if report.failures else "ok"
        sys.stdout.write(f"{path}: {verdict}: {report.line()}\n")
        for failure in report.failures:
            sys.stdout.write(f"    {failure}\n")
        sys.stdout.flush()
        failed += bool(report.failures)
    sys.stdout.write(f"{len(files)} files, {failed} failed\n")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
