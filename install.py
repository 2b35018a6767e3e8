"""Make the virtual environment that the Makefile's targets run in: `make` calls it, once.

    python3 install.py .venv [--constraints constraints.txt]

Says what is installed and how far the installation is. It may be stopped and started again; what is there stays.
Only the standard library is used, and nothing newer than Python 3.6: an older Python must be able to say that it is.
"""
import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent
OLDEST = 3, 10
GIGABYTES = 7  # disk that the installation takes while it runs: 5.5 GB stay, the rest is downloads
NETWORK = 'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Temporary failure|SSLError'
REMEDIES = (  # what pip says, what it means, what to do
    ('No space left|Errno 28', 'the disk is full', 'free 7 GB there and in the folder for temporary files (TMPDIR)'),
    (NETWORK, 'the package index cannot be reached', 'check the network, or the proxy or mirror that pip is set to'),
    ('from versions: none', 'no package index answered with packages',
     'check the network, or the proxy or mirror that pip is set to'),
    ('No matching distribution', 'a package has no version for this Python',
     'take Python 3.10 to 3.13: make PYTHON=python3.12'),
    ('ensurepip', 'this Python cannot make virtual environments', 'install its venv package (Debian: python3-venv)'))

FETCHED = re.compile(  # what pip says of a file: name, version, size
    r'\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^/\s]+?)-(\d[^-\s]*)-?\S* *(\([\d.]+ \w+\))?')


class InstallationError(Exception):
    """What went wrong and what to do, in one line."""


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='folder of the virtual environment')
    parser.add_argument('--constraints', help='file of versions to take: constraints.txt names some that passed')
    return parser


def main(args):
    folder = Path(args.folder).resolve()
    check(folder)
    started = time.time()
    print('installing the packages of requirements.txt (PyTorch is the largest: about 5 GB) into {}\n'
          '  2 to 15 minutes, by the network; Ctrl-C stops, and the same command goes on'.format(folder), flush=True)
    run([sys.executable, '-m', 'venv', str(folder)], started)
    python = folder / ('Scripts' if sys.platform == 'win32' else 'bin') / 'python'
    pip = [str(python), '-m', 'pip', 'install', '--disable-pip-version-check', '--progress-bar', 'off']
    limits = ['--constraint', args.constraints] if args.constraints else []
    run(pip + ['--requirement', str(REPO / 'requirements.txt')] + limits, started)
    print('  {} installed'.format(clock(started)))


def check(folder):
    """InstallationError for a Python that is too old, or for too little disk."""
    if sys.version_info < OLDEST:
        raise InstallationError('Python {}.{} is too old; take 3.10 to 3.13: make PYTHON=python3.12'.format(
            *sys.version_info[:2]))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(str(there)).free / 1e9
    if free < GIGABYTES and not (folder / 'pyvenv.cfg').exists():
        raise InstallationError('{} has {:.1f} GB free, {} are needed; free some, or clone to another disk'.format(
            there, free, GIGABYTES))


def run(command, started):
    """Run a command and print a line for each package that it fetches. InstallationError where it fails."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True) as child:
        for text in child.stdout:
            lines.append(text.rstrip())
            found = FETCHED.match(text)
            if found and '.metadata' not in text:
                print('  {} {} {} {}'.format(clock(started), *(part or '' for part in found.groups())), flush=True)
            elif text.startswith('Installing collected'):
                print('  {} unpacking; PyTorch takes a minute or more'.format(clock(started)), flush=True)
    if child.returncode:
        raise InstallationError(explanation(lines))


def explanation(lines):
    """The line for a failed installation. lines: what the command printed."""
    text = '\n'.join(lines)
    for pattern, meaning, remedy in REMEDIES:
        if re.search(pattern, text):
            return '{}; {}, then start it again'.format(meaning, remedy)
    errors = [line for line in lines if line.upper().startswith('ERROR')] or [line for line in lines if line] or ['']
    return '{}; mend it, then start it again'.format(errors[-1].replace('ERROR: ', ''))


def clock(started):
    """Minutes and seconds since `started`."""
    return '{:2d}:{:02d}'.format(*divmod(int(time.time() - started), 60))


if __name__ == '__main__':
    try:
        main(get_args_parser().parse_args())
    except InstallationError as error:
        print('error: installation: {}'.format(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        sys.exit(130)
