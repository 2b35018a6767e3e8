"""tool/recipes.py and the flags it becomes: every baseline's terms, needs, settings, a step of it; what is refused."""
import dataclasses
import functools
import importlib
import re
import sys
from pkgutil import resolve_name
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, script, tree_bytes

from data.cams import read_cams
from data.labels import read_labels
from data.lists import read_list
from engine import cli
from engine.errors import UserError
from engine.loss_log import read_loss_log
from network import resnet38_eps
from network.heads import PCM, PROJECTION, CAMHeads
from network.resnet38d import FrozenResNet38
from segmentation.experiment.config import EXPERIMENTS
from tool import crf, seam
from tool.cam import View
from tool.recipes import RECIPES, TERMS
from voc12.classes import VOC

CONTRAST = ('cross_prototype', 'cross_cam', 'intra')
NEED_PCM = ('saliency_rv', 'rvmin', 'er', 'ecr', *CONTRAST)
SEAM_WEIGHTS = {'cls': 1., 'rvmin': 1., 'er': 1., 'ecr': 1., 'cross_prototype': 0.1, 'cross_cam': 0.1, 'intra': 0.1}
EPS_WEIGHTS = SEAM_WEIGHTS | {'saliency': 1., 'saliency_rv': 1.}
WEIGHTS = {'seam': SEAM_WEIGHTS, 'eps': EPS_WEIGHTS, 'eps_plain': {'cls': 1., 'saliency': 1.}, 'cam': {'cls': 1.}}
ON_RESNET38 = [recipe for recipe in RECIPES.values()
               if recipe.network.startswith('network.resnet38')]  # those that the toy backbone fits
every_recipe = pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES.keys())


# ---------------------------------------------------------------- the table

@pytest.mark.parametrize('name', WEIGHTS)
def test_terms_have_their_published_weights(name):
    for term, weight in WEIGHTS[name].items():
        assert RECIPES[name].weights[term] == weight and term in RECIPES[name].terms, term
    assert RECIPES[name].terms == [term for term in TERMS if term in RECIPES[name].terms]  # in the order of the table


@pytest.mark.parametrize('name, needs', [('seam', {PCM, PROJECTION}), ('eps', {PCM, PROJECTION}), ('eps_plain', set()),
                                         ('cam', set())])
def test_a_recipe_needs_what_its_terms_need(name, needs):
    recipe = RECIPES[name]
    assert recipe.needs == needs
    for term in WEIGHTS[name]:
        assert (term in recipe.terms_that_need(PCM)) == (term in NEED_PCM), term
        assert (term in recipe.terms_that_need(PROJECTION)) == (term in CONTRAST), term


def test_a_term_of_weight_zero_is_none_of_the_terms_and_needs_nothing():
    without_contrast = dataclasses.replace(RECIPES['seam'], weights=SEAM_WEIGHTS | dict.fromkeys(CONTRAST, 0.))
    assert without_contrast.terms == ['cls', 'rvmin', 'er', 'ecr'] and without_contrast.needs == {PCM}
    assert without_contrast.terms_that_need(PROJECTION) == []


def test_published_numbers_are_those_of_the_papers():
    assert RECIPES['seam'].published[('seeds', 'train')] == 61.5
    assert RECIPES['eps'].published[('seeds', 'train')] == 70.5
    assert RECIPES['eps_plain'].published == RECIPES['cam'].published == {}  # not the contrast's numbers


@pytest.mark.parametrize('name, learns', [('seam', False), ('eps', True), ('eps_plain', True), ('cam', False)])
def test_only_eps_learns_from_saliency(name, learns):
    assert RECIPES[name].saliency == learns


@every_recipe
def test_everything_that_a_recipe_names_exists_and_its_network_has_what_it_needs(recipe):
    assert RECIPES[recipe.name] is recipe and recipe.title
    assert callable(resolve_name(recipe.losses)) and callable(resolve_name(recipe.cams))
    assert isinstance(getattr(crf, recipe.seed_crf), crf.Settings)
    assert recipe.experiment in EXPERIMENTS
    with torch.device('meta'):
        net = importlib.import_module(recipe.network).Net(VOC.num_classes, 1 / 16)
    assert recipe.needs <= set(net.parts)
    assert recipe.map != 'revised' or PCM in net.parts


@pytest.mark.parametrize('off', [(), CONTRAST, NEED_PCM], ids=['all terms', 'no contrast', 'none that needs a PCM'])
@every_recipe
def test_losses_see_only_what_the_recipe_needs_and_give_its_terms(recipe, off):
    weights = {name: 0. if name in off else weight for name, weight in recipe.weights.items()}
    recipe = dataclasses.replace(recipe, weights=weights)
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(2, VOC.num_foreground)
    label[0, 3] = label[1, [0, 7]] = 1

    def maps(channels, side):
        return torch.randn(2, channels, side, side, generator=generator)
    views = [View(maps(VOC.num_classes, side), maps(VOC.num_classes, side) if PCM in recipe.needs else None,
                  maps(8, side).relu() if PROJECTION in recipe.needs else None, (8 * side, 8 * side))
             for side in (7, 4)]
    if not recipe.two_views:
        views[1] = None
    saliency = torch.rand(2, 1, 56, 56, generator=generator) if recipe.saliency else None
    terms = recipe.loss_terms(*views, seam.Target(label, seam.present_channels(label), saliency))
    assert terms.keys() == set(recipe.terms)
    for name in recipe.terms:
        assert terms[name].shape == () and terms[name] > 0, name


# ---------------------------------------------------------------- flags

REQUIRED = {'contrast_train': ['--weights', 'w.pth', '--session_name', 's'], 'contrast_infer': ['--weights', 'w.pth']}
# One parser for all tests: nothing may be left in it of an earlier baseline.
PARSERS = {name: script(name).get_args_parser() for name in REQUIRED}


def parse(name, *flags):
    """A Step 1 script's arguments and the recipe that they choose."""
    args = PARSERS[name].parse_args([*REQUIRED[name], *map(str, flags)])
    return args, cli.chosen_recipe(args, name.removeprefix('contrast_'))


def chosen(name, baseline):
    """The flags that choose a baseline, with what it must be given."""
    saliency = name == 'contrast_train' and RECIPES[baseline].saliency
    return ['--baseline', baseline, *(['--saliency_dir', 'd'] if saliency else [])]


@pytest.mark.parametrize('baseline, expected', [
    ('seam', {'network': 'network.resnet38_contrast', 'max_epoches': 8, 'bg_threshold': 0.20, 'temperature': 0.1,
              'view2_size': 128, 'ecr_target': None, 'prototype_fraction': 1 / 8, 'tau': None, 'alpha': None,
              'save_layout': None, 'w_saliency': None, 'w_intra': 0.1}),
    ('eps', {'network': 'network.resnet38_eps_contrast', 'max_epoches': 15, 'bg_threshold': 0.10, 'temperature': 0.1,
             'prototype_fraction': 1 / 16, 'saliency_dir': 'd', 'tau': 0.4, 'alpha': 0.5, 'save_layout': 'ours',
             'view2_size': 128, 'ecr_target': 'published', 'w_saliency': 1, 'w_intra': 0.1}),
    ('eps_plain', {'network': 'network.resnet38_eps', 'max_epoches': 15, 'bg_threshold': None, 'temperature': None,
                   'prototype_fraction': None, 'saliency_dir': 'd', 'tau': 0.4, 'alpha': 0.5, 'save_layout': 'ours',
                   'view2_size': None, 'ecr_target': None, 'w_saliency': 1, 'w_intra': None}),
    ('cam', {'network': 'network.resnet38_contrast', 'max_epoches': 8, 'bg_threshold': None, 'temperature': None,
             'prototype_fraction': None, 'tau': None, 'alpha': None, 'save_layout': None, 'w_cls': 1, 'w_er': None,
             'view2_size': 128, 'ecr_target': None, 'w_intra': None})])
def test_flags_that_are_not_given_have_the_baselines_training_values(baseline, expected):
    args, recipe = parse('contrast_train', *chosen('contrast_train', baseline))
    for name, value in expected.items():
        assert getattr(args, name) == value, name
        assert (recipe.weights.get(name[2:]) if name.startswith('w_') else getattr(recipe, name)) == value, name


@pytest.mark.parametrize('baseline, expected', [
    ('seam', {'network': 'network.resnet38_contrast', 'map': 'revised', 'crf_iters': 10, 'crf_alpha': None}),
    ('eps', {'network': 'network.resnet38_eps_contrast', 'map': None, 'crf_iters': 5, 'crf_alpha': 8}),
    ('eps_plain', {'network': 'network.resnet38_eps', 'map': None, 'crf_iters': 5, 'crf_alpha': 8}),
    ('cam', {'network': 'network.resnet38_contrast', 'map': 'plain', 'crf_iters': 10, 'crf_alpha': None})])
def test_flags_that_are_not_given_have_the_baselines_inference_values(baseline, expected):
    args, recipe = parse('contrast_infer', '--baseline', baseline)
    for name, value in expected.items():
        assert getattr(args, name) == getattr(recipe, name) == value, name


def test_a_flag_that_is_given_beats_the_baseline_and_leaves_no_trace_in_it():
    eps = chosen('contrast_train', 'eps')
    changed = ('--bg_threshold', 0.2, '--max_epoches', 8, '--w_saliency', 0, '--w_er', 2)
    args, recipe = parse('contrast_train', *eps, *changed)
    assert (args.bg_threshold, args.max_epoches, args.w_saliency, args.w_er) == (0.2, 8, 0, 2)
    assert (recipe.bg_threshold, recipe.max_epoches, recipe.prototype_fraction) == (0.2, 8, 1 / 16)
    assert recipe.weights['er'] == 2 and 'saliency' not in recipe.terms
    again, _ = parse('contrast_train', *eps)
    assert (again.bg_threshold, again.max_epoches, again.w_saliency, again.w_er) == (0.10, 15, 1, 1)
    args, recipe = parse('contrast_infer', '--baseline', 'eps', '--crf_iters', 10, '--crf_alpha', 16)
    assert (args.crf_iters, args.crf_alpha, recipe.crf_iters, recipe.crf_alpha) == (10, 16, 10, 16)


def unused_flags(recipe):
    """(script, flag without its dashes, a value) of every flag of Step 1 that a recipe has no use for."""
    values = {str: 'x', int: 9, float: 0.5}
    for name in PARSERS:
        for field in cli.recipe_settings(name.removeprefix('contrast_')):
            if getattr(recipe, field.name) is None:
                yield name, field.name, (field.metadata['choices'] or [values[field.metadata['kind']]])[0]
    yield from (('contrast_train', f'w_{term}', 0.5) for term in TERMS if term not in recipe.weights)


@every_recipe
def test_a_flag_that_a_baseline_does_not_use_is_refused_and_those_that_do_are_named(recipe):
    for name, flag, value in unused_flags(recipe):
        with pytest.raises(UserError, match=f'--baseline {recipe.name} does not use it') as caught:
            parse(name, *chosen(name, recipe.name), f'--{flag}', value)
        assert caught.value.what == f'--{flag}'
        others = caught.value.do.removeprefix('leave it out, or choose --baseline ').split(' or ')
        for other in others:
            args, _ = parse(name, *chosen(name, other), f'--{flag}', value)
            assert getattr(args, flag) == value


@every_recipe
def test_a_weight_of_zero_may_be_given_to_every_baseline(recipe):
    zeros = [f'--w_{term}=0' for term in TERMS if term != 'cls']
    _, changed = parse('contrast_train', *chosen('contrast_train', recipe.name), *zeros)
    assert changed.terms == ['cls'] and not changed.needs


@pytest.mark.parametrize('name, flags, what', [
    ('contrast_train', ['--saliency_dir', 'SALImages'], '--saliency_dir'),
    ('contrast_train', ['--baseline', 'seam', '--tau', 0.4], '--tau'),
    ('contrast_train', ['--save_layout', 'published'], '--save_layout'),
    ('contrast_train', ['--w_saliency', 1], '--w_saliency'),
    ('contrast_train', ['--ecr_target', 'seam'], '--ecr_target'),
    ('contrast_train', ['--baseline', 'eps_plain', '--saliency_dir', 's', '--view2_size', 128], '--view2_size'),
    ('contrast_train', ['--baseline', 'eps'], '--saliency_dir'),
    ('contrast_train', ['--baseline', 'eps_plain', '--saliency_dir', 's', '--w_intra', 0.1], '--w_intra'),
    ('contrast_train', ['--baseline', 'cam', '--bg_threshold', 0.2], '--bg_threshold'),
    ('contrast_infer', ['--crf_alpha', 8], '--crf_alpha'),
    ('contrast_infer', ['--baseline', 'eps', '--map', 'plain'], '--map'),
    # Values out of bounds, and baselines and choices that do not exist.
    ('contrast_train', ['--baseline', 'eps', '--saliency_dir', 's', '--tau', 1.5], 'command line: argument --tau'),
    ('contrast_train', ['--temperature', 0], 'command line: argument --temperature'),
    ('contrast_train', ['--w_er', -1], 'command line: argument --w_er'),
    ('contrast_train', ['--max_epoches', 0], 'command line: argument --max_epoches'),
    ('contrast_train', ['--baseline', 'another'], 'command line: argument --baseline'),
    ('contrast_infer', ['--map', 'another'], 'command line: argument --map')])
def test_flags_that_do_not_go_together_get_one_line(capsys, name, flags, what):
    assert assert_refused(capsys, name, *REQUIRED[name], *flags).startswith(f'error: {what}: ')


# ---------------------------------------------------------------- a few steps of each

@pytest.fixture
def train(toy, tmp_path):
    """Function from more flags to the loss log of an epoch of three steps, session tmp_path/run unless given."""
    def train(*flags, session=tmp_path / 'run'):
        run_main('contrast_train', *training_flags(toy, session), *flags)
        return read_loss_log(f'{session}.losses.jsonl')
    return train


def training_flags(toy, session):
    """Flags of a tiny run; those of two views are given TWO_VIEWS as well."""
    return ['--weights', toy.backbone, '--voc12_root', toy.root, '--cls_labels', toy.labels, '--train_list', toy.train,
            '--val_list', '', '--session_name', session, '--tblog_dir', f'{session}.tb', '--num_workers', 0,
            '--device', 'cpu', '--batch_size', 4, '--max_epoches', 1, '--crop_size', 48, '--resize_long', 40, 64,
            '--picture_every', 2, '--lr', 0.05]


TWO_VIEWS = ('--view2_size', 32)


def inference_flags(toy, weights, out):
    return ['--weights', weights, '--infer_list', toy.val, '--voc12_root', toy.root, '--cls_labels', toy.labels,
            '--out_cam', out / 'cam', '--out_cam_pred', out / 'pred', '--out_crf', out / 'crf', '--scales', 0.5, 1,
            '--crf_iters', 1, '--num_workers', 0, '--device', 'cpu']


@pytest.mark.parametrize('recipe', ON_RESNET38, ids=lambda recipe: recipe.name)
def test_every_recipe_trains_and_makes_seeds(recipe, toy, train, tmp_path):
    saliency = ['--saliency_dir', toy.saliency] if recipe.saliency else []
    rows = train('--baseline', recipe.name, *saliency, *(TWO_VIEWS if recipe.two_views else ()))
    assert [row['step'] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row['loss'] == pytest.approx(sum(recipe.weights[name] * row[name] for name in recipe.terms), rel=1e-5)
    assert not rows[0].keys() & (TERMS.keys() - recipe.terms)
    assert len({row['cls'] for row in rows}) == 3
    assert (tmp_path / 'run.maps.png').exists()

    run_main('contrast_infer', *inference_flags(toy, tmp_path / 'run.pth', tmp_path / 'out'), '--baseline', recipe.name)
    labels = read_labels(toy.labels, VOC.num_foreground)
    for name in read_list(toy.val):
        present, cams = read_cams(tmp_path / 'out' / 'cam' / f'{name}.npy', VOC.num_foreground)
        assert present.tolist() == labels[name].nonzero()[0].tolist()
        assert np.isfinite(cams).all() and cams.max() <= 1
    assert len(tree_bytes(tmp_path / 'out', '.png')) == 2 * 4


def test_plain_cam_is_seam_with_classification_alone(toy, train, tmp_path):
    train('--baseline', 'cam', *TWO_VIEWS)
    train('--baseline', 'seam', *TWO_VIEWS, *(f'--w_{name}=0' for name in SEAM_WEIGHTS if name != 'cls'),
          session=tmp_path / 'seam')
    assert (tmp_path / 'run.losses.jsonl').read_bytes() == (tmp_path / 'seam.losses.jsonl').read_bytes()
    cam, other = (torch.load(tmp_path / f'{name}.pth', weights_only=True) for name in ('run', 'seam'))
    assert cam.keys() == other.keys() and all(torch.equal(cam[key], other[key]) for key in cam)
    infer = functools.partial(run_main, 'contrast_infer')
    infer(*inference_flags(toy, tmp_path / 'run.pth', tmp_path / 'cams'), '--baseline', 'cam')
    infer(*inference_flags(toy, tmp_path / 'run.pth', tmp_path / 'plain'), '--baseline', 'seam', '--map', 'plain')
    for suffix in ('.npy', '.png'):
        assert tree_bytes(tmp_path / 'cams', suffix) == tree_bytes(tmp_path / 'plain', suffix)
    infer(*inference_flags(toy, tmp_path / 'run.pth', tmp_path / 'revised'), '--baseline', 'cam', '--map', 'revised')
    assert tree_bytes(tmp_path / 'cams', '.npy') != tree_bytes(tmp_path / 'revised', '.npy')


# ---------------------------------------------------------------- networks that lack a part

class PCMAlone(CAMHeads, FrozenResNet38):
    """A network that has a PCM and no projection."""

    def __init__(self, num_classes, width=1.0):
        super().__init__(width)
        self.add_heads(num_classes, (PCM,))
        self.freeze()


@pytest.mark.parametrize('network, part, terms', [
    ('network.resnet38_eps', PCM, ('rvmin', 'er', 'ecr', *CONTRAST)), ('pcm_alone', PROJECTION, CONTRAST)])
def test_training_a_network_that_lacks_a_part_is_refused_until_the_terms_are_off(
        toy, train, tmp_path, capsys, monkeypatch, network, part, terms):
    monkeypatch.setitem(sys.modules, 'pcm_alone', SimpleNamespace(Net=PCMAlone))
    message = assert_refused(capsys, 'contrast_train', *training_flags(toy, tmp_path / 'run'), '--network', network)
    assert message.startswith(f'error: --network: {network} has no {part}, which --baseline seam needs; ')
    assert not (tmp_path / 'run.json').exists()
    way_out = re.findall(r'--w_\w+ 0', message)
    assert set(way_out) >= {f'--w_{name} 0' for name in terms}
    rows = train('--network', network, *TWO_VIEWS, *(word for flag in way_out for word in flag.split()))
    for name in SEAM_WEIGHTS:
        assert (name in rows[0]) == (name not in terms), name


def test_revised_cams_of_a_network_without_pcm_are_refused(toy, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(resnet38_eps.Net(VOC.num_classes, 1 / 16).state_dict(), tmp_path / 'w.pth')
    flags = [*inference_flags(toy, tmp_path / 'w.pth', tmp_path / 'out'), '--network', 'network.resnet38_eps']
    message = assert_refused(capsys, 'contrast_infer', *flags)
    assert message.startswith('error: --network: network.resnet38_eps has no pcm, which --map revised needs; ')
    assert not tree_bytes(tmp_path / 'out')
    run_main('contrast_infer', *flags, '--map', 'plain')  # the way out that the message names
    assert len(tree_bytes(tmp_path / 'out')) == 3 * (4 + 1)  # each folder's run.json
