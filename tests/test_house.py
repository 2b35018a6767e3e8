"""The house: which package may import which, what a script loads, how long a function is, what is cited.

docs of the layout: CONTRIBUTING.md.
"""
import ast
import re
import subprocess
import sys

import pytest

from engine.files import REPO

# What each package may import of ours, beside itself. Scripts may import everything but other scripts.
LEAVES = {'engine.errors', 'engine.files', 'engine.safe_pickle'}  # every package but tool may import them
ALLOWED = {
    'tool': set(),
    'network': {'tool'},
    'data': {'network', 'tool'},
    'voc12': {'data', 'network', 'tool'},
    'coco14': {'data', 'network', 'tool'},
    'engine': {'data', 'network', 'tool'},
    'report': {'engine', 'data', 'network', 'tool'},
    'segmentation': {'engine', 'data', 'network', 'tool'},
    'toy': {'engine', 'data', 'network', 'tool', 'voc12'},
    'reference': {'network', 'tool'},
    'benchmarks': {'engine', 'data', 'network', 'tool', 'voc12', 'segmentation', 'reference', 'report'},
}
SCRIPTS = [
    'contrast_train.py', 'contrast_infer.py', 'eval.py', 'aff_prepare.py', 'aff_train.py', 'aff_infer.py',
    'segmentation/experiment/train.py', 'segmentation/experiment/test.py', 'segmentation/server_archive.py',
    'predict.py', 'reproduce.py', 'demo.py', 'ablation.py', 'voc12/prepare.py', 'coco14/prepare.py', 'toy/make.py',
    'toy/centred_box.py', 'toy/pretrain.py', 'benchmarks/bench.py', 'benchmarks/gpu.py']
HEAVY = ('torch', 'torchvision', 'scipy', 'matplotlib')
LONGEST = 50  # lines of a function
SOURCES = [path for path in sorted(REPO.rglob('*.py'))
           if path.relative_to(REPO).parts[0] in (*ALLOWED, 'tests') or path.parent == REPO]
MODULES = [path for path in SOURCES if path.relative_to(REPO).parts[0] in ALLOWED
           and str(path.relative_to(REPO)) not in SCRIPTS]


def name_of(path):
    """The dotted name of a module."""
    parts = path.relative_to(REPO).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports_of(path):
    """The dotted names that a file imports: of `from a import b` both a.b, where that is a module, and else a."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = {f'{node.module}.{alias.name}' for alias in node.names}
            found = {name for name in inner if exists(name)}
            names.update(found or {node.module})
    return names


def exists(name):
    """Whether a dotted name is a module or package of ours."""
    path = REPO / name.replace('.', '/')
    return path.with_suffix('.py').is_file() or (path / '__init__.py').is_file()


def ours(names):
    """Those of dotted names that belong to this repository's packages."""
    return {name for name in names if name.split('.')[0] in ALLOWED}


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_arrows_point_down(path):
    package = name_of(path).split('.')[0]
    leaves = set() if package == 'tool' else LEAVES
    for name in ours(imports_of(path)) - leaves:
        assert name.split('.')[0] in ALLOWED[package] | {package}, f'{name_of(path)} must not import {name}'


def test_no_import_goes_in_a_circle():
    arrows = {name_of(path): ours(imports_of(path)) for path in MODULES}
    finished = set()

    def walk(name, trail):
        assert name not in trail, ' -> '.join([*trail[trail.index(name):], name])
        if name not in finished:
            for other in arrows.get(name, ()):
                walk(other, [*trail, name])
            finished.add(name)
    for name in arrows:
        walk(name, [])


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST, f'{node.name} has {lines} lines'


def in_first_block(function, node):
    """Whether an import stands among the imports that begin a function, after its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    for statement in body:
        if statement is node:
            return True
        if not isinstance(statement, (ast.Import, ast.ImportFrom)):
            return False
    return False


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_imports_stand_at_the_top_or_first_in_main(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    first = function.name == 'main' and in_first_block(function, node)
                    assert first, f'{path.name}:{node.lineno} imports inside {function.name}'


def run_and_see_what_is_loaded(script, *argv):
    """What a script prints, and which of HEAVY it has loaded by its end."""
    code = ('import runpy, sys\n'
            f'sys.argv = {[script, *argv]!r}\n'
            f'sys.path[0] = {str((REPO / script).parent)!r}\n'
            'try:\n'
            f'    runpy.run_path({str(REPO / script)!r}, run_name="__main__")\n'
            'except SystemExit as end:\n'
            '    assert not end.code\n'
            f'print(*(name for name in {HEAVY!r} if name in sys.modules))\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=REPO, check=True)
    *text, loaded = done.stdout.split('\n')[:-1]
    return text, loaded.split()


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_loads_nothing_heavy_and_explains_every_flag(script):
    text, loaded = run_and_see_what_is_loaded(script, '--help')
    assert loaded == []
    assert any('--' in line for line in text)


@pytest.mark.parametrize('argv', [('demo.py', '--dry_run'),
                                  ('reproduce.py', '--dry_run', '--weights', 'x.pth')], ids=lambda argv: argv[0])
def test_a_chain_is_printed_without_waiting_for_torch(argv):
    text, loaded = run_and_see_what_is_loaded(*argv)
    assert any(line.startswith('    python contrast_train.py') for line in text)
    assert 'torch' not in loaded


@pytest.mark.parametrize('path', [*REPO.glob('*.md'), *REPO.glob('docs/*.md'), REPO / 'tests/golden/README.md'],
                         ids=lambda path: str(path.relative_to(REPO)))
def test_lines_of_text_have_at_most_120_columns(path):
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        assert len(line) <= 120 or line.startswith('|'), f'line {number}'  # rows of tables cannot be wrapped


def test_the_readme_stays_short():
    assert len((REPO / 'README.md').read_text(encoding='utf-8').splitlines()) < 300


def headings():
    """The numbers of the headings in docs/METHOD.md: '3', '3.4'."""
    text = (REPO / 'docs' / 'METHOD.md').read_text(encoding='utf-8')
    return set(re.findall(r'^#{2,4} (\d+(?:\.\d+)?) ', text, re.MULTILINE))


@pytest.mark.parametrize('path', [*SOURCES, REPO / 'README.md', REPO / 'CONTRIBUTING.md', REPO / 'CHANGES.md'],
                         ids=lambda path: str(path.relative_to(REPO)))
def test_every_section_of_the_method_that_is_cited_exists(path):
    text = path.read_text(encoding='utf-8')
    cited = [number for found in re.findall(r'METHOD (\d+(?:\.\d+)?(?:(?:, | and | to )\d+(?:\.\d+)?)*)', text)
             for number in re.findall(r'\d+(?:\.\d+)?', found)]
    assert set(cited) <= headings(), sorted(set(cited) - headings())


def test_modules_of_the_method_are_cited_in_it():
    text = (REPO / 'docs' / 'METHOD.md').read_text(encoding='utf-8')
    for path in sorted((REPO / 'tool').glob('*.py')):
        if path.name not in ('__init__.py',):
            assert f'tool/{path.name}' in text, path.name


@pytest.mark.parametrize('path', sorted((REPO / 'tests' / 'golden').rglob('*.npz')), ids=lambda path: path.name)
def test_every_golden_file_is_described(path):
    assert path.name in (REPO / 'tests' / 'golden' / 'README.md').read_text(encoding='utf-8')


def test_no_module_below_the_scripts_knows_a_data_set():
    for path in MODULES:
        package = name_of(path).split('.')[0]
        if package in ('tool', 'network', 'data', 'engine', 'report', 'segmentation', 'reference'):
            assert not any(name.startswith('voc12') for name in imports_of(path)), name_of(path)
