"""Every numeric flag of every script has bounds: what lies outside ends parsing with one line and exit code 2."""
import argparse
import math

import numpy as np
import pytest
from helpers import assert_refused, script
from test_house import SCRIPTS

from data.transforms import at_scale
from engine import cli
from engine.files import REPO

TEXTS = ('0', '-1', 'nan', 'inf', '1e30', '', '99999999999999999999', '-inf')
WITH_FLAGS = [name.removesuffix('.py') for name in SCRIPTS]


def numeric_flags(parser):
    """The flags whose values are numbers."""
    return [action for action in parser._actions if hasattr(action.type, 'inside')]


def parsed_alone(action, text):
    """What a parser with this flag alone makes of a text, as one list of values; None where it ends with exit code 2.

    The text stands in every place that the flag has.
    """
    parser = cli.ArgumentParser(prog='x')
    parser.add_argument('--flag', type=action.type, nargs=action.nargs)
    places = action.nargs if isinstance(action.nargs, int) else 1
    try:
        value = parser.parse_args(['--flag', *[text] * places]).flag
    except SystemExit as end:
        assert end.code == 2
        return None
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize('name', WITH_FLAGS)
def test_a_number_is_inside_the_bounds_or_refused(name, capsys):
    for action in numeric_flags(script(name).get_args_parser()):
        for text in TEXTS:
            values = parsed_alone(action, text)
            said = capsys.readouterr().err
            if values is None:
                assert said.startswith('error: command line: argument --flag: ') and said.count('\n') == 1, said
            else:
                assert text in ('0', '-1'), (action.dest, text, values)  # the others are inside no bounds
                assert all(action.type.inside(value) and math.isfinite(value) for value in values), action.dest


@pytest.mark.parametrize('name', WITH_FLAGS)
def test_no_flag_takes_a_number_without_bounds(name):
    for action in script(name).get_args_parser()._actions:
        assert action.type not in (int, float), f'{action.dest} has no bounds'
        defaults = action.default if isinstance(action.default, (list, tuple)) else [action.default]
        numbers = [value for value in defaults if isinstance(value, (int, float)) and not isinstance(value, bool)]
        assert not numbers or hasattr(action.type, 'inside'), f'{action.dest} has no bounds'
        assert all(map(action.type.inside, numbers)) if numbers else True, f'the default of {action.dest}'


def test_the_scripts_have_many_such_flags():
    found = {name: len(numeric_flags(script(name).get_args_parser())) for name in WITH_FLAGS}
    assert found['contrast_train'] >= 25 and found['aff_infer'] >= 8 and found['segmentation/experiment/train'] >= 15
    assert all((REPO / f'{name}.py').is_file() for name in found)


@pytest.mark.parametrize('flags, message', [
    (('--lr', '-1'), 'argument --lr: -1 is not above 0 and at most 1000000000'),
    (('--lr', '0'), 'argument --lr: 0 is not above 0'),
    (('--momentum', '-1'), 'argument --momentum: -1 is not at least 0 and at most 1'),
    (('--wt_dec', '-1'), 'argument --wt_dec: -1 is not at least 0'),
    (('--temperature', '-1'), 'argument --temperature: -1 is not above 0'),
    (('--seed', '99999999999999999999'), 'argument --seed: 99999999999999999999 is not at least 0 and at most 4294967'),
    (('--session_name', ''), 'argument --session_name: is empty'),
    (('--session_name', '..'), 'argument --session_name: .. names no file'),
    (('--crop_size', '1e3'), "argument --crop_size: invalid whole number value: '1e3'"),
    (('--batch_size', '0'), 'argument --batch_size: 0 is not at least 1'),
    (('--num_workers', '5000'), 'argument --num_workers: 5000 is not at least 0 and at most 1024'),
    (('--w_cls', 'nan'), 'argument --w_cls: nan is not at least 0'),
    (('--voc12_root', ''), 'argument --voc12_root: is empty')])
def test_slips_of_the_keyboard_are_one_line(flags, message, tmp_path, capsys):
    error = assert_refused(capsys, 'contrast_train', '--weights', 'w.pth', '--session_name', tmp_path / 'run', *flags)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_an_empty_text_means_none_where_the_help_says_so():
    args = script('contrast_train').get_args_parser().parse_args(
        ['--weights', 'w', '--session_name', 's', '--val_list', '', '--tblog_dir', ''])
    assert (args.val_list, args.tblog_dir) == ('', '')


def test_a_scale_that_leaves_no_pixel_is_refused_and_the_smallest_one_leaves_one(capsys):
    argv = ['--weights', 'w.pth', '--out_cam', 'cam', '--scales', '0.005', '1']
    assert 'argument --scales: 0.005 is not at least 0.05' in assert_refused(capsys, 'contrast_infer', *argv)
    assert at_scale(np.zeros((8, 9, 3), np.uint8), 0.05).shape == (3, 1, 1)


def test_a_word_or_a_number():
    kind = cli.word_or('alpha', cli.unit_interval)
    assert kind('alpha') == 'alpha' and kind('0.3') == 0.3
    with pytest.raises(argparse.ArgumentTypeError):
        kind('1.3')
