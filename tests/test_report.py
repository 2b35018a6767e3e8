"""The report is one file that needs nothing else, holds what it was given, and does without what is not there."""
import base64
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

import eval as eval_script
from data.masks import save_mask
from engine import files
from report import gallery, page
from voc12.classes import VOC

VOID = {'area', 'base', 'br', 'col', 'hr', 'img', 'input', 'link', 'meta', 'source', 'wbr'}
CAT, DOG = VOC.names.index('cat'), VOC.names.index('dog')


class Page(html.parser.HTMLParser):
    """Collects the tags with their attributes, and what is wrong with their nesting."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.faults = [], [], []
        self.feed(text)
        self.close()
        self.faults += self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f'/{tag}')

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def save_masks(folder, masks):
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        save_mask(folder / f'{name}.png', mask, VOC.palette)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder with three images and what the chain would leave: image `good` is predicted well, `bad` as the wrong class."""
    root = tmp_path_factory.mktemp('run')
    truth = np.zeros((24, 32), np.uint8)
    truth[6:18, 8:24] = CAT
    truth[5, 8:24] = 255
    some, wrong = np.where(np.arange(32) < 16, truth, 0).astype(np.uint8), np.where(truth == CAT, DOG, 0).astype(np.uint8)
    names = ('bad', 'fair', 'good')
    (root / 'JPEGImages').mkdir()
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(root / 'JPEGImages' / f'{name}.jpg')
    save_masks(root / 'gt', dict.fromkeys(names, truth))
    save_masks(root / 'masks', dict(zip(names, (wrong, some, truth))))
    (root / 'cam').mkdir()
    for name in names:
        files.save_npy(root / 'cam' / f'{name}.npy', {CAT - 1: np.where(truth == CAT, .6, .3).astype(np.float32)})
    (root / 'list.txt').write_text('\n'.join(names))
    common = ['--list', str(root / 'list.txt'), '--gt_dir', str(root / 'gt'), '--comment', 'x', '--num_workers', '0', '--logfile']
    parse = eval_script.get_args_parser().parse_args
    eval_script.main(parse([*common, str(root / 'seeds'), '--predict_dir', str(root / 'cam'), '--type', 'npy', '--curve']))
    eval_script.main(parse([*common, str(root / 'masks.txt'), '--predict_dir', str(root / 'masks')]))
    scores = json.loads((root / 'masks.txt.json').read_text())['fixed']
    files.save_json(root / 'scores.json', {'images': 3, 'miou': {'multi': scores['miou']}, 'class_iou': {'multi': scores['class_iou']}})
    log = [{'step': step, 'loss': 2 / (step + 1), 'cls': 1 / (step + 1), 'er': 1 / (step + 1)} for step in range(300)]
    (root / 'net.losses.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in log))
    info = {'settings': {'lr': 0.01, 'resize_long': [448, 768], 'resume': False}, 'total_batch': 8, 'seed': 3, 'device': 'CPU <x>',
            'git_commit': 'abc1234', 'python': '3.12.0', 'packages': {'torch': '2.6.0'}, 'platform': 'Linux', 'time': 'today'}
    files.save_json(root / 'net.json', info)
    files.save_json(root / 'step.json', {'fingerprint': '', 'command': '', 'seconds': 3725.2})
    return root


def description(run):
    return {
        'title': 'Toy & more', 'notes': ['A <note>.'], 'supervision': 'saliency', 'credits': ['Drawn by somebody.'],
        'rows': [{'stage': 'Seeds, best', 'split': 'train', 'scores': run / 'seeds.json', 'entry': 'best', 'published': 61.5, 'oracle': True},
                 {'stage': 'Seeds, fixed', 'split': 'train', 'scores': run / 'seeds.json', 'entry': 'fixed', 'short': 'seeds'},
                 {'stage': 'Masks', 'split': 'train', 'scores': run / 'masks.txt.json', 'entry': 'fixed', 'short': 'masks'},
                 {'stage': 'DeepLab', 'split': 'val', 'scores': run / 'scores.json', 'entry': 'multi', 'short': 'DeepLab'},
                 {'stage': 'Given', 'split': 'val', 'here': 12.34, 'published': 50.}],
        'runs': [{'title': 'Step 1', 'session': run / 'net'}],
        'curves': [{'title': 'train', 'scores': run / 'seeds.json'}],
        'images': {'list': run / 'list.txt', 'photos': run / 'JPEGImages', 'ground_truth': run / 'gt',
                   'stages': [{'title': 'CAM', 'folder': run / 'cam', 'kind': 'cam'}, {'title': 'mask', 'folder': run / 'masks', 'kind': 'mask'},
                              {'title': 'never made', 'folder': run / 'absent', 'kind': 'mask'}]},
        'commands': [{'name': 'step', 'line': 'python step.py --flag 1'}, {'name': 'not_run', 'line': 'python other.py'}], 'log_dir': run,
    }


@pytest.fixture(scope='module')
def text(run):
    return page.build(description(run), run / 'out' / 'report.html', VOC).read_text(encoding='utf-8')


def test_is_one_file_that_needs_no_network(text):
    page = Page(text)
    assert page.faults == []
    assert not page.of('script') and not page.of('link') and not page.of('iframe')
    assert all(image['src'].startswith('data:image/') and image['alt'] for image in page.of('img'))
    assert not re.search(r'url\(|@import|srcset', text)
    assert [link['href'] for link in page.of('a')] == ['https://arxiv.org/abs/2110.07110']  # the citation
    outside = re.sub(r'data:image/[^"]+', '', text).replace('https://arxiv.org/abs/2110.07110', '')
    assert 'http' not in outside and 'file:' not in outside


def test_its_pictures_are_whole(text):
    images = [image['src'].split(';base64,') for image in Page(text).of('img')]
    kinds = [kind for kind, _ in images]
    # 1 of losses, 1 curve, 2 splits of class bars; per image: photo, CAM, mask, ground truth
    assert kinds.count('data:image/svg+xml') == 4 and kinds.count('data:image/png') == 6 and kinds.count('data:image/jpeg') == 6
    for kind, data in images:
        content = base64.b64decode(data)
        if 'svg' in kind:
            ElementTree.fromstring(content)
        else:
            assert content[:4] in (b'\x89PNG', b'\xff\xd8\xff\xe0')


def test_table_holds_published_here_difference(run, text):
    seeds = json.loads((run / 'seeds.json').read_text())
    body = re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', text))
    best, fixed = seeds['best']['miou'], seeds['fixed']['miou']
    assert best > fixed
    assert f'Seeds, best at {seeds["best"]["threshold"]:.2f} 61.5 {best:.1f} \u2212{61.5 - best:.1f}' in body
    assert f'Seeds, fixed at 0.26 {fixed:.1f}' in body
    assert 'Given 50.0 12.3 \u221237.7' in body
    assert 'train 3 images' in body


def test_says_what_a_reader_must_know(text):
    for words in ('extra supervision: saliency', 'oracle', 'Toy &amp; more', 'A &lt;note&gt;.', 'CPU &lt;x&gt;', 'abc1234', '448 768',
                  '300 steps, batch 8, seed 3', '1 h 02 min', 'Drawn by somebody.', 'tvmonitor', 'ignored'):
        assert words in text, words
    assert 'never made' not in text and 'resume' not in text


def test_images_come_worst_first_then_best(run, text):
    assert re.findall(r'<span>(bad|fair|good)</span>', text) == ['bad', 'fair', 'good']
    section = gallery.section(description(run)['images'], VOC, each=1)
    assert re.findall(r'<b>mIoU ([\d.]+)</b><span>cat</span><span>(\w+)', section) == [('33.3', 'bad'), ('100.0', 'good')]


def test_score_of_an_image_is_over_its_own_classes(run):
    """`bad`: background right, cat missed, dog invented: the mean of three IoU, not of 21."""
    scored = gallery.score('bad', run / 'masks', run / 'gt', VOC.num_classes)
    assert scored.labels == (0, CAT)
    assert scored.miou == pytest.approx(100 / 3)


def test_what_does_not_exist_is_left_out(tmp_path):
    rows = [{'stage': 'Seeds', 'split': 'train', 'scores': tmp_path / 'absent.json', 'entry': 'best', 'published': 61.5}]
    absent = {'list': tmp_path / 'list.txt', 'photos': tmp_path, 'ground_truth': tmp_path,
              'stages': [{'title': 'CAM', 'folder': tmp_path, 'kind': 'cam'}]}
    (tmp_path / 'list.txt').write_text('one\n')
    text = page.build({'title': 'Empty', 'rows': rows, 'runs': [{'title': 'Step 1', 'session': tmp_path / 'net'}], 'images': absent,
                         'curves': [{'title': 'train', 'scores': tmp_path / 'absent.json'}]}, tmp_path / 'r.html', VOC).read_text()
    page = Page(text)
    assert page.faults == [] and not page.of('img')
    assert '–' in text and '61.5' in text
    assert re.findall(r'<h2>([^<]+)', text) == ['Results', 'Settings and environment']


def test_without_published_figures_their_columns_go(run):
    rows = [{'stage': 'Masks', 'split': 'train', 'scores': run / 'masks.txt.json', 'entry': 'fixed'}]
    text = page.build({'title': 'Toy', 'rows': rows}, run / 'plain.html', VOC).read_text()
    assert 'Published' not in text and 'Difference' not in text and 'oracle)' not in text


def test_text_table(run):
    lines = page.text_table(description(run)['rows']).splitlines()
    assert len(lines) == 6
    assert lines[0].split()[-4:] == ['split', 'here', 'published', 'difference']
    assert lines[-1].split() == ['Given', 'val', '12.3', '50.0', '\u221237.7']


def test_damaged_scores_are_named(tmp_path):
    (tmp_path / 'x.json').write_text('{')
    with pytest.raises(files.UserError, match='x.json'):
        page.build({'title': '', 'rows': [{'stage': '', 'split': '', 'scores': tmp_path / 'x.json', 'entry': 'best'}]}, tmp_path / 'r', VOC)


@pytest.mark.parametrize('seconds, words', [(3.4, '3 s'), (65, '1 min 05 s'), (3725.2, '1 h 02 min')])
def test_duration(seconds, words):
    assert page.duration(seconds) == words
