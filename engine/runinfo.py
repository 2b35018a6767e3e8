"""What a run was: arguments, code version, packages, hardware. Written beside results, so that they can be repeated."""
import contextlib
import datetime
import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from engine.errors import UserError
from engine.files import REPO

PACKAGES = ('torch', 'torchvision', 'numpy', 'scipy', 'opencv-python-headless', 'pillow', 'timm',
            'pydensecrf2')


def describe(settings, device=None, **extra):
    """The run as a JSON-ready dict: time, command, settings (dict), git commit, versions, hardware, and `extra`.

    device: what computed, in words (engine/device.py); this machine's processor unless given.
    """
    info = {'time': datetime.datetime.now().isoformat(timespec='seconds'), 'command': sys.argv, 'settings': settings}
    return {**info, **extra, 'git_commit': git_commit(), 'python': platform.python_version(),
            'packages': versions(), 'platform': platform.platform(), 'device': device or processor()}


def stored_settings(session):
    """The settings in <session>.json, which a training run writes; {} where there is none that can be read."""
    path = Path(f'{session}.json')
    with contextlib.suppress(OSError, ValueError, RecursionError):
        info = json.loads(path.read_text(encoding='utf-8'))
        return info['settings'] if isinstance(info, dict) and isinstance(info.get('settings'), dict) else {}
    return {}


def settings_of(weights):
    """The settings of the run that wrote weights <session>.pth, from the <session>.json beside them; {} without one."""
    return stored_settings(Path(weights).with_suffix(''))


def check_classes(weights, classes):
    """UserError where weights were trained on other classes than those of a ClassSet, as the <session>.json beside them
    says. Without it the number of channels must do, which loading compares."""
    stored = settings_of(weights).get('classes')
    if isinstance(stored, list) and stored != list(classes.foreground):
        raise UserError(weights, f'was trained on {_few(stored)}, not on those of {classes.name}: '
                                 f'{_few(classes.foreground)}', 'choose the --dataset that it was trained on')


def _few(names, most=3):
    """The number of classes and the first of them, in words."""
    return f'{len(names)} classes ({", ".join(map(str, names[:most]))}{", …" if len(names) > most else ""})'


def line(info):
    """A run's description in one line, for the log."""
    parts = [f'{key} {info[key]}' for key in ('total_batch', 'seed', 'max_step') if key in info]
    packages = [f'{name} {info["packages"][name]}' for name in ('torch', 'numpy')]
    return ', '.join([*parts, f'commit {info["git_commit"]}', f'python {info["python"]}', *packages, info['device']])


def digest(path):
    """SHA-256 of a file's content, in hexadecimal; of a folder, of the names and sizes of its files."""
    found = hashlib.sha256()
    if Path(path).is_dir():
        files = sorted((entry.name, entry.stat().st_size) for entry in Path(path).iterdir())
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    with open(path, 'rb') as file:
        while block := file.read(2 ** 20):
            found.update(block)
    return found.hexdigest()


def fingerprint(count, content):
    """Words for a content (bytes) of `count` things: two of them are equal where the contents are."""
    return f'{count} ({hashlib.sha256(content).hexdigest()[:16]})'


def fingerprint_of_ids(ids):
    """fingerprint of a list of ids, whose order counts."""
    return fingerprint(len(ids), '\n'.join(ids).encode())


def git_commit():
    """The short commit of this code, with '+changes' where files differ from it; 'unknown' outside a checkout.

    A record of runs (.jsonl) may differ: ablation.py --record adds a line to it after each, and it is no code.
    """
    def git(*words):
        command = ['git', '-C', str(REPO), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        changed = git('status', '--porcelain', '-uno', '--', '.', ':!*.jsonl')
        return git('rev-parse', '--short', 'HEAD') + ('+changes' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def versions():
    """{package: installed version, or 'absent'} of what the numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = 'absent'
    return found


def processor():
    """Words for this machine's processor."""
    return f'CPU {platform.processor() or platform.machine()}'
