"""The installation: what it shows, and that what stops it is said in one line."""
import subprocess
import sys
import time

import pytest
from helpers import REPO

import install


def test_a_line_is_shown_for_each_package_that_is_fetched(capsys):
    said = ['Collecting torch>=2.6', '  Downloading torch-2.14.1-cp311-cp311-linux_x86_64.whl.metadata (30 kB)',
            '  Downloading torch-2.14.1-cp311-cp311-linux_x86_64.whl (906.5 MB)',
            '  Using cached tqdm-4.67.1-py3-none-any.whl (78 kB)',
            'Processing /wheels/numpy-2.4.6-cp311-cp311-x.whl (from -r requirements.txt (line 3))',
            'Requirement already satisfied: pip', 'Installing collected packages: torch, tqdm, numpy']
    install.run([sys.executable, '-c', f'print({chr(10).join(said)!r})'], time.time())
    assert capsys.readouterr().out.splitlines() == [
        '   0:00 torch 2.14.1 (906.5 MB)', '   0:00 tqdm 4.67.1 (78 kB)', '   0:00 numpy 2.4.6 ',
        '   0:00 unpacking; PyTorch takes a minute or more']


@pytest.mark.parametrize('said, line', [
    ("WARNING: Retrying … NewConnectionError('<…>: [Errno 101] Network is unreachable')\n"
     'ERROR: No matching distribution found for torch>=2.6', 'the package index cannot be reached; check the network'),
    ('ERROR: Could not find a version that satisfies the requirement torch>=2.6 (from versions: none)\n'
     'ERROR: No matching distribution found for torch>=2.6', 'no package index answered with packages; check the net'),
    ('ERROR: Could not find a version that satisfies the requirement torch>=2.6 (from versions: 1.0, 1.1)\n'
     'ERROR: No matching distribution found for torch>=2.6', 'a package has no version for this Python; take Python 3'),
    ('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device', 'the disk is full;'),
    ('The virtual environment was not created successfully because ensurepip is not available.', 'this Python cannot'),
    ('ERROR: something else\nmore', 'something else; mend it, then start it again')])
def test_what_stops_pip_is_said_in_one_line(said, line):
    explanation = install.explanation(said.splitlines())
    assert explanation.startswith(line)
    assert explanation.endswith('then start it again') and '\n' not in explanation


def test_a_failing_command_ends_the_installation():
    with pytest.raises(install.InstallationError, match='the disk is full'):
        install.run([sys.executable, '-c', 'raise OSError(28, "No space left on device")'], time.time())


def test_a_python_that_is_too_old_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(install.sys, 'version_info', (3, 9, 18))
    with pytest.raises(install.InstallationError, match=r'Python 3\.9 is too old'):
        install.check(tmp_path)


def test_too_little_disk_is_refused_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(install.shutil, 'disk_usage', lambda path: type('usage', (), {'free': 2e9}))
    with pytest.raises(install.InstallationError, match=r'has 2\.0 GB free, 7 are needed'):
        install.check(tmp_path / 'not' / 'yet')
    (tmp_path / 'pyvenv.cfg').touch()  # an installation that was interrupted has taken its disk already
    install.check(tmp_path)


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
    (tmp_path / 'file').touch()
    done = subprocess.run([sys.executable, REPO / 'install.py', tmp_path / 'file'], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: installation: ') and done.stderr.count('\n') == 1


def test_every_requirement_of_the_scripts_has_a_version_that_passed():
    names = [line.split('#')[0].split('>=')[0].strip() for line in (REPO / 'requirements.txt').read_text().splitlines()]
    constrained = [line.split('==')[0].strip() for line in (REPO / 'constraints.txt').read_text().splitlines()
                   if not line.startswith('#')]
    for name in filter(None, names):
        assert name in constrained, name
