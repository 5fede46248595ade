"""Many pictures in one command: which files, where the results go, and what is finished already."""

import glob
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from tqdm.auto import tqdm

from ex4lib import files, images
from ex4lib.cli.options import PICTURES
from ex4lib.optimisation import Result

#: Files that a folder is searched for.
READABLE = (*PICTURES, ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".ppm", ".tga")
#: What one picture may fail with while the others go on; RuntimeError is torch's, for example of too little memory.
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)


def expand(sources: Sequence[str]) -> list[str]:
    """Files, URLs and shipped names as they are; folders and patterns such as ``photos/*.jpg`` as sorted files."""
    found: list[str] = []
    for source in sources:
        path = Path(source).expanduser() if "://" not in source else None
        if path is not None and len(source) < 4096 and path.is_dir():
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in READABLE and file.is_file())
        elif path is not None and any(sign in source for sign in "*?[") and not path.exists():
            inside = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        else:
            inside = [source]
        if not inside:
            raise ValueError(f"there is no picture in {source!r}")
        found += inside
    return list(dict.fromkeys(found))


def targets(photographs: Sequence[str], output: Path, ending: str) -> list[Path]:
    """Where each result goes: ``output`` itself if it is a picture file, else files in the folder ``output``."""
    if output.suffix.lower() in PICTURES and not output.is_dir():
        if len(photographs) > 1:
            raise ValueError(f"the output of {len(photographs)} pictures must be a folder, got {str(output)!r}")
        return [output]
    if len(photographs) == 1 and output.suffix and not output.exists():
        raise ValueError(f"the output must end in {' or '.join(PICTURES)} or be a folder, got {output.name!r}")
    found: list[Path] = []
    for photograph in photographs:
        stem, number = Path(photograph.rstrip("/").split("?")[0]).stem[:100] or "picture", 2
        path = output / f"{stem}.{ending.lstrip('.')}"
        while path in found:
            path, number = output / f"{stem}-{number}.{ending.lstrip('.')}", number + 1
        found.append(path)
    return found


def run(
    photographs: Sequence[str],
    paths: Sequence[Path],
    settings: dict,
    recipe: Callable[[images.Tensor], Result],
    *,
    keep_alpha: bool = False,
    quality: int = 95,
    size: int | None = None,
) -> None:
    """Apply ``recipe`` to every photograph and write the results, skipping those finished with equal settings.

    A photograph that fails is reported at the end (exit code 1) and does not stop the others. Ctrl-C keeps the best
    picture so far and ends with code 130.
    """
    failures = []
    several = len(photographs) > 1
    pairs = zip(photographs, paths, strict=True)
    with tqdm(pairs, total=len(photographs), unit="picture", disable=not several, leave=False) as bar:
        for photograph, path in bar:
            try:
                photo = images.load(photograph, size)
                record = {"content": photograph, "content_sha256": files.picture_sha256(photo), **settings}
                record = json.loads(json.dumps(record, default=str))
                before = images.metadata(path).get("ex4lib") if several and path.is_file() else None
                if before == json.dumps(record):
                    bar.write(f"{path}: finished before", file=sys.stdout)
                    continue
                result = recipe(photo)
                record |= {"interrupted": True} if result.interrupted else {}
                opacity = images.alpha(photograph) if keep_alpha else None
                metadata = {"ex4lib": json.dumps(record)}
                images.save(result.image.cpu(), path, metadata=metadata, alpha=opacity, quality=quality)
            except FAILURES as error:
                if not several:
                    raise
                failures.append(f"{photograph}: {reason(error)}")
                continue
            for note in result.notes:
                bar.write(note, file=sys.stderr)
            kind = "interrupted, the best picture so far" if result.interrupted else f"loss {result.loss:.4g}"
            bar.write(f"{path}: {result.evaluations} evaluations in {result.seconds:.1f} s, {kind}", file=sys.stdout)
            if result.interrupted:
                sys.exit(130)
    if failures:
        summary = f"ex4lib: {len(failures)} of {len(photographs)} pictures failed:"
        typer.echo("\n  ".join([summary, *failures]), err=True)
        sys.exit(1)


def reason(error: BaseException) -> str:
    """An error as one line; too little memory, which torch reports as a RuntimeError, with what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{str(error.filename)[:200]!r} cannot be read or written: {error.strerror.lower()}"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        return "the memory is too small for this: choose a smaller --size, or --tile 512"
    return text
