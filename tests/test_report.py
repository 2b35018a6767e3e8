"""The report is one file that needs nothing else, holds what it was given, and does without what is not there."""
import base64
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers import run_main
from PIL import Image

from data.cams import save_cams
from data.images import devkit_photos
from data.masks import save_mask
from engine import files
from engine.errors import UserError
from engine.workers import count_mask
from report import gallery, page
from tool.metrics import IGNORE
from voc12.classes import VOC

VOID = {'area', 'base', 'br', 'col', 'hr', 'img', 'input', 'link', 'meta', 'source', 'wbr'}
CAT, DOG = VOC.names.index('cat'), VOC.names.index('dog')
NAMES = ('bad', 'fair', 'good')
SIZE = (24, 32)  # H, W


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


# ---------------------------------------------------------------- what a chain leaves

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder with three images and what the chain would leave: `good` predicted well, `bad` as the wrong class."""
    root = tmp_path_factory.mktemp('run')
    write_images(root)
    common = '--list', root / 'list.txt', '--gt_dir', root / 'gt', '--comment', 'x', '--num_workers', 0
    run_main('eval', *common, '--logfile', root / 'seeds', '--predict_dir', root / 'cam', '--type', 'npy', '--curve')
    run_main('eval', *common, '--logfile', root / 'masks.txt', '--predict_dir', root / 'masks')
    scores = json.loads((root / 'masks.txt.json').read_text())['fixed']
    files.save_json(root / 'scores.json', {'images': len(NAMES), 'miou': {'multi': scores['miou']},
                                           'class_iou': {'multi': scores['class_iou']}})
    log = [{'step': step, 'loss': 2 / (step + 1), 'cls': 1 / (step + 1), 'er': 1 / (step + 1)} for step in range(300)]
    (root / 'net.losses.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in log))
    settings = {'lr': 0.01, 'resize_long': [448, 768], 'resume': False}
    files.save_json(root / 'net.json', {
        'settings': settings, 'total_batch': 8, 'seed': 3, 'device': 'CPU <x>', 'git_commit': 'abc1234',
        'python': '3.12.0', 'packages': {'torch': '2.6.0'}, 'platform': 'Linux', 'time': 'today'})
    files.save_json(root / 'step.json', {'fingerprint': '', 'command': '', 'seconds': 3725.2})
    return root


def write_images(root):
    """Photos, ground truth, masks, CAMs and the list of the run."""
    truth = np.zeros(SIZE, np.uint8)
    truth[6:18, 8:24] = CAT
    truth[5, 8:24] = IGNORE
    half = np.where(np.arange(SIZE[1]) < 16, truth, 0)
    masks = dict(zip(NAMES, (np.where(truth == CAT, DOG, 0), half, truth)))
    for folder in ('JPEGImages', 'gt', 'masks', 'cam'):
        (root / folder).mkdir()
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(root / 'JPEGImages' / f'{name}.jpg')
        save_mask(root / 'gt' / f'{name}.png', truth, VOC.palette)
        save_mask(root / 'masks' / f'{name}.png', masks[name], VOC.palette)
        cam = np.where(truth == CAT, .6, .3).astype(np.float32)
        save_cams(root / 'cam' / f'{name}.npy', np.array([CAT - 1]), cam[None])
    (root / 'list.txt').write_text('\n'.join(NAMES))


def images_of(run):
    """The description of the run's images, one stage of which was never made."""
    return {'list': run / 'list.txt', 'photos': devkit_photos(run), 'ground_truth': run / 'gt', 'stages': [
        {'title': 'CAM', 'folder': run / 'cam', 'kind': 'cam'},
        {'title': 'mask', 'folder': run / 'masks', 'kind': 'mask'},
        {'title': 'never made', 'folder': run / 'absent', 'kind': 'mask'}]}


def description(run):
    """A description as report/page.py wants it, of the run."""
    seeds, masks, deeplab = run / 'seeds.json', run / 'masks.txt.json', run / 'scores.json'
    return {
        'title': 'Toy & more', 'notes': ['A <note>.'], 'supervision': 'saliency', 'credits': ['Drawn by somebody.'],
        'rows': [
            {'stage': 'Seeds, best', 'split': 'train', 'scores': seeds, 'entry': 'best', 'published': 61.5,
             'oracle': True},
            {'stage': 'Seeds, fixed', 'split': 'train', 'scores': seeds, 'entry': 'fixed', 'short': 'seeds'},
            {'stage': 'Masks', 'split': 'train', 'scores': masks, 'entry': 'fixed', 'short': 'masks'},
            {'stage': 'DeepLab', 'split': 'val', 'scores': deeplab, 'entry': 'multi', 'short': 'DeepLab'},
            {'stage': 'Given', 'split': 'val', 'here': 12.34, 'published': 50.}],
        'runs': [{'title': 'Step 1', 'session': run / 'net'}],
        'curves': [{'title': 'train', 'scores': seeds}],
        'images': images_of(run),
        'commands': [{'name': 'step', 'line': 'python step.py --flag 1'},
                     {'name': 'not_run', 'line': 'python other.py'}],
        'log_dir': run,
    }


@pytest.fixture(scope='module')
def text(run):
    """The page of the run."""
    return page.build(description(run), run / 'out' / 'report.html', VOC).read_text(encoding='utf-8')


# ---------------------------------------------------------------- the page

def test_the_page_is_one_file_that_needs_no_network(text):
    parsed = Page(text)
    assert parsed.faults == []
    for tag in ('script', 'link', 'iframe'):
        assert parsed.of(tag) == []
    for image in parsed.of('img'):
        assert image['src'].startswith('data:image/')
        assert image['alt']
    assert not re.search(r'url\(|@import|srcset', text)
    assert [link['href'] for link in parsed.of('a')] == ['https://arxiv.org/abs/2110.07110']  # the citation
    outside = re.sub(r'data:image/[^"]+', '', text).replace('https://arxiv.org/abs/2110.07110', '')
    assert 'http' not in outside
    assert 'file:' not in outside


def test_the_pictures_of_the_page_are_whole(text):
    images = [image['src'].split(';base64,') for image in Page(text).of('img')]
    kinds = [kind for kind, _ in images]
    assert kinds.count('data:image/svg+xml') == 4  # 1 of losses, 1 curve, 2 splits of class bars
    assert kinds.count('data:image/png') == 6  # per image: mask, ground truth
    assert kinds.count('data:image/jpeg') == 6  # per image: photo, CAM
    for kind, data in images:
        content = base64.b64decode(data)
        if 'svg' in kind:
            ElementTree.fromstring(content)
        else:
            assert content[:4] in (b'\x89PNG', b'\xff\xd8\xff\xe0')


def test_the_table_holds_published_here_and_difference(run, text):
    seeds = json.loads((run / 'seeds.json').read_text())
    body = re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', text))
    best, fixed = seeds['best']['miou'], seeds['fixed']['miou']
    assert best > fixed
    assert f'Seeds, best at {seeds["best"]["threshold"]:.2f} 61.5 {best:.1f} \u2212{61.5 - best:.1f}' in body
    assert f'Seeds, fixed at 0.26 {fixed:.1f}' in body
    assert 'Given 50.0 12.3 \u221237.7' in body
    assert 'train 3 images' in body


@pytest.mark.parametrize('words', [
    'extra supervision: saliency', 'oracle', 'Toy &amp; more', 'A &lt;note&gt;.', 'CPU &lt;x&gt;', 'abc1234', '448 768',
    '300 steps, batch 8, seed 3', '1 h 02 min', 'Drawn by somebody.', 'tvmonitor', 'ignored'])
def test_the_page_says_what_a_reader_must_know(text, words):
    assert words in text


@pytest.mark.parametrize('words', ['never made', 'resume'])
def test_the_page_is_silent_about_what_does_not_exist_or_is_off(text, words):
    assert words not in text


def test_what_does_not_exist_is_left_out(tmp_path):
    (tmp_path / 'list.txt').write_text('one\n')
    absent = tmp_path / 'absent.json'
    text = page.build({
        'title': 'Empty',
        'rows': [{'stage': 'Seeds', 'split': 'train', 'scores': absent, 'entry': 'best', 'published': 61.5}],
        'runs': [{'title': 'Step 1', 'session': tmp_path / 'net'}], 'curves': [{'title': 'train', 'scores': absent}],
        'images': {'list': tmp_path / 'list.txt', 'photos': devkit_photos(tmp_path), 'ground_truth': tmp_path,
                   'stages': [{'title': 'CAM', 'folder': tmp_path, 'kind': 'cam'}]},
    }, tmp_path / 'r.html', VOC).read_text(encoding='utf-8')
    parsed = Page(text)
    assert parsed.faults == []
    assert parsed.of('img') == []
    assert '–' in text
    assert '61.5' in text
    assert re.findall(r'<h2>([^<]+)', text) == ['Results', 'Settings and environment']


def test_without_published_figures_their_columns_go(run):
    rows = [{'stage': 'Masks', 'split': 'train', 'scores': run / 'masks.txt.json', 'entry': 'fixed'}]
    text = page.build({'title': 'Toy', 'rows': rows}, run / 'plain.html', VOC).read_text(encoding='utf-8')
    for words in ('Published', 'Difference', 'oracle)'):
        assert words not in text


def test_damaged_scores_are_named(tmp_path):
    (tmp_path / 'x.json').write_text('{')
    rows = [{'stage': '', 'split': '', 'scores': tmp_path / 'x.json', 'entry': 'best'}]
    with pytest.raises(UserError, match='x.json'):
        page.build({'title': '', 'rows': rows}, tmp_path / 'r', VOC)


@pytest.mark.parametrize('seconds, words', [(3.4, '3 s'), (65, '1 min 05 s'), (3725.2, '1 h 02 min')])
def test_durations_are_told_in_words(seconds, words):
    assert page.duration(seconds) == words


# ---------------------------------------------------------------- the table as text

def test_the_text_table_has_a_line_a_row(run):
    lines = page.text_table(description(run)['rows']).splitlines()
    assert len(lines) == 6
    assert lines[0].split()[-4:] == ['split', 'here', 'published', 'difference']
    assert lines[-1].split() == ['Given', 'val', '12.3', '50.0', '\u221237.7']


def test_a_run_without_ground_truth_has_a_page_and_says_that_nothing_is_scored(tmp_path, capsys):
    said = page.publish({'title': 'Mine', 'rows': []}, tmp_path / 'mine.html', VOC)
    assert said == 'no ground truth, so nothing is scored'
    assert said in capsys.readouterr().out
    assert Page((tmp_path / 'mine.html').read_text(encoding='utf-8')).faults == []


def test_publishing_prints_the_table_and_where_the_page_is(run, capsys):
    path = run / 'published.html'
    table = page.publish(description(run), path, VOC)
    assert table == page.text_table(description(run)['rows'])
    said = capsys.readouterr().out
    assert table in said
    assert f'wrote {path}' in said
    assert Page(path.read_text(encoding='utf-8')).faults == []


# ---------------------------------------------------------------- images

def test_images_come_worst_first_then_best(run, text):
    assert re.findall(r'<span>(bad|fair|good)</span>', text) == ['bad', 'fair', 'good']
    section = gallery.section(description(run)['images'], VOC, each=1)
    cards = re.findall(r'<b>mIoU ([\d.]+)</b><span>cat</span><span>(\w+)', section)
    assert cards == [('33.3', 'bad'), ('100.0', 'good')]


def test_the_score_of_an_image_is_over_its_own_classes(run):
    """`bad`: background right, cat missed, dog invented: the mean of three IoU, not of 21."""
    scored = gallery.score('bad', count_mask('bad', run / 'masks', run / 'gt', VOC)[0])
    assert scored.labels == (0, CAT)
    assert scored.miou == pytest.approx(100 / 3)


def test_the_sheet_grows_by_an_image_a_row(run):
    images = images_of(run)
    images['stages'] = images['stages'][:2]
    heights = []
    for count in (1, 2, 3):
        gallery.save_sheet(images, run / 'sheet.png', VOC, count)
        with Image.open(run / 'sheet.png') as sheet:
            heights.append(sheet.height)
            assert sheet.width > 4 * SIZE[1]  # photo, CAM, mask, ground truth
    assert heights[2] > heights[1] > heights[0] > SIZE[0]
