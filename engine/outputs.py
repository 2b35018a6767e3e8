"""The folders that an inference step fills: what made their files, `<folder>/run.json`, and which files are done.

run.json: {suffix: what decides the content of the folder's files of that suffix, and 'weights', where they lay}. It is
written before the first file. A file counts as done only where run.json says that it was made as it would be now.
"""
import contextlib
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from engine import files, runinfo
from engine.errors import UserError
from engine.ranks import Shard

NAME = 'run.json'
INFORMATION = {'weights'}  # may differ: files may move, their digest is compared
WAY_OUT = 'add --overwrite to make them anew, or choose another folder'


@dataclass(frozen=True)
class Output:
    """Files <folder>/<id><suffix>, one an image. made: JSON-ready dict of what decides their content, 'kind' first.

    home: the folder of run.json, `folder` unless given.
    """
    folder: Path
    suffix: str
    made: dict
    home: Path = None

    @property
    def run_file(self):
        """The path of run.json."""
        return Path(self.home or self.folder) / NAME

    @property
    def now(self):
        """`made` as JSON gives it back: lists for tuples."""
        return json.loads(json.dumps(self.made, default=str))

    def names(self):
        """The ids whose file exists, a set."""
        return {name.removesuffix(self.suffix) for name in os.listdir(self.folder)
                if name.endswith(self.suffix) and not name.startswith('.')}


def begin(outputs, ids, overwrite, shard=Shard()):
    """The ids of the shard of which some output is still to be made, in order; run.json says from now on what makes
    them.

    ids: of all shards. overwrite: all of the shard's; their files are removed first, so that a run which is stopped
    leaves no older ones. Where they were made otherwise, the first shard that comes removes the files of all shards:
    what run.json says is then true of every file, and the later shards find it said.
    UserError: two outputs would be the same files; a folder holds files that were made otherwise, or that nothing is
    known of, and not overwrite; with overwrite, such files of images that are not in `ids`, which would stay.
    """
    refuse_the_same(outputs)
    own = shard.of(ids)
    with alone(outputs[0].run_file.parent) as is_alone:
        replaced, others = (ids, 'that are not in the list') if is_alone else (own, 'that are not in the list or shard')
        for output in outputs:
            refuse_others(output, replaced, overwrite, others)
        if overwrite:
            for output in outputs:
                remove([output], replaced if changed(output) else own)
        for run_file in {output.run_file for output in outputs}:
            here = [output for output in outputs if output.run_file == run_file]
            if any(map(changed, here)):
                files.save_json(run_file, read(run_file) | {output.suffix: output.now for output in here})
    return unfinished(outputs, own)


def refuse_the_same(outputs):
    """UserError: two of the outputs would be the same files."""
    seen = set()
    for output in outputs:
        files_of = Path(output.folder).resolve(), output.suffix
        if files_of in seen:
            raise UserError(output.folder, f'was given for two sorts of {output.suffix} files', 'give two folders')
        seen.add(files_of)


@contextlib.contextmanager
def alone(folder):
    """Keep other processes out of a `with alone(folder)` until this one has left it. Yields whether they are kept out:
    not on a file system that locks no folders, as NFS. A shard must then leave the files of others as they are.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)  # and the lock with it, as when the process is killed


def unfinished(outputs, ids):
    """The ids of which some output is missing, in order."""
    return files.unfinished(ids, [(output.folder, output.suffix) for output in outputs])


def remove(outputs, ids):
    """Remove the files of these ids, those that there are."""
    for output in outputs:
        for name in output.names().intersection(ids):
            (Path(output.folder) / (name + output.suffix)).unlink(missing_ok=True)


def changed(output):
    """The names of what decides and is another than run.json says; all names where it says nothing."""
    return different(read(output.run_file).get(output.suffix), output.now)


def refuse_others(output, ids, overwrite, others):
    """UserError, as in `begin`, for one output. ids: whose files `overwrite` replaces; others: all but these, in words.
    """
    present = output.names()
    stays = present.difference(ids) if overwrite else present
    other = changed(output)
    if stays and other:
        origin = f'made with another {", ".join(other)}' if read(output.run_file).get(output.suffix) else \
            f'of which no {NAME} says what made them'
        if overwrite:
            raise UserError(output.folder, f'holds {len(stays)} files of images {others}, {origin}',
                            'remove them, or choose another folder')
        raise UserError(output.folder, f'holds {len(stays)} files {origin}', WAY_OUT)


def read(run_file):
    """The content of a run.json; {} where there is none. UserError: another content."""
    content = files.read_json(run_file, 'remove it and the files beside it, or choose another folder')
    content = {} if content is None else content
    if not (isinstance(content, dict) and all(isinstance(made, dict) and 'kind' in made for made in content.values())):
        raise UserError(run_file, 'does not say what made the files beside it',
                        'remove it and them, or choose another folder')
    return content


def different(then, now):
    """The names of what decides and differs. then: None where nothing is known."""
    then = then or {}
    return [key for key in {**now, **then} if key not in INFORMATION and then.get(key) != now.get(key)]


def origin(folder, suffix):
    """A digest of what made the files of a folder: of run.json's entry or, without one, of the first file's content."""
    made = read(Path(folder) / NAME).get(suffix)
    if made:
        decides = {key: value for key, value in made.items() if key not in INFORMATION}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    names = sorted(name for name in os.listdir(folder) if name.endswith(suffix) and not name.startswith('.'))
    return runinfo.digest(Path(folder) / names[0]) if names else None
