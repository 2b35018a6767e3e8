"""Whatever a message advises works, and what it names exists; photos are looked at before the first step."""
import functools
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_refused, run_main, tree_bytes
from PIL import Image
from test_training import arguments_of, make_run, rows_of, step_of

from data.images import devkit_photos, image_folder, read_image
from data.labels import labels_of, read_labels, save_labels
from data.lists import read_list
from data.photo_check import check_photo
from data.photos import Photos
from engine import checkpoint
from engine.datasets import check_photos
from engine.errors import UserError
from engine.validation import warn_of_shared_ids
from voc12.classes import VOC

train = functools.partial(run_main, 'contrast_train')
HOPELESS = '--lr', 100, '--momentum', 0.99


@pytest.fixture
def command(toy, tmp_path):
    """Function from more flags to the arguments of a run in tmp_path."""
    return functools.partial(arguments_of, toy, tmp_path)


# ---------------------------------------------------------------- a loss that is not finite

@pytest.fixture
def diverged(command, tmp_path, capsys):
    """The message of a run that ended with a loss that is not a number, after its first checkpoint."""
    message = assert_refused(capsys, 'contrast_train', *command(*HOPELESS, '--save_every', 1, '--max_epoches', 8))
    assert (tmp_path / 'run.ckpt').exists()
    return message


def test_the_advice_names_the_checkpoint_and_can_be_followed(diverged, command, tmp_path, capsys):
    step = checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['step']
    assert f'lower the learning rate, and add --resume to go on from step {step}' in diverged
    assert str(tmp_path / 'run.ckpt') in diverged and '--amp off' not in diverged  # it is off
    assert len(rows_of(tmp_path)) >= step
    train(*command(*HOPELESS, '--save_every', 1, '--max_epoches', 8, '--lr', 1e-9, '--overwrite'))
    assert len(rows_of(tmp_path)) == 48


@pytest.mark.parametrize('change, words', [(('--lr', 0.01), 'lr 0.05 -> 0.01'),
                                           (('--amp', 'bf16'), 'amp off -> bf16')])
def test_resuming_with_what_is_advised_works_and_is_said(command, tmp_path, capsys, change, words):
    train_half(command, tmp_path)
    capsys.readouterr()
    train(*command('--resume', *change))
    assert f'at step 12 of 24, with other settings from here on: {words}' in capsys.readouterr().out
    assert [row['step'] for row in rows_of(tmp_path)] == list(range(24))
    assert checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['settings']['lr'] in (0.05, 0.01)


def train_half(command, folder):
    """Leave the checkpoint of half a run: that of step 12 of 24."""
    kept = checkpoint.save_checkpoint

    def keep(path, state, settings):
        kept(path, state, settings)
        if state['step'] == 12:
            raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, 'save_checkpoint', keep)
        train(*command())
    assert checkpoint.read_checkpoint(folder / 'run.ckpt')['step'] == 12


def test_the_schedule_goes_on_with_the_new_learning_rate(tmp_path):
    run = make_run(tmp_path)
    for batch in run.batches(torch.zeros(9, 2)):
        step_of(run, batch)
        if run.step == 4:
            break
    args = make_run(tmp_path, '--resume').args
    for group, rate in zip(run.optimizer.param_groups, (0.01, 0.02)):
        group['lr'] = group['initial_lr'] = rate
    checkpoint.set_rates(run.optimizer, run.scheduler, [0.01, 0.02])
    assert run.scheduler.get_last_lr() and args.resume
    factor = (1 - 4 / 8) ** 0.9
    assert [group['lr'] for group in run.optimizer.param_groups] == pytest.approx([0.01 * factor, 0.02 * factor])
    step_of(run, torch.zeros(2, 2))
    factor = (1 - 5 / 8) ** 0.9
    assert [group['lr'] for group in run.optimizer.param_groups] == pytest.approx([0.01 * factor, 0.02 * factor])


def test_no_checkpoint_is_named_where_there_is_none(command, tmp_path, capsys):
    message = assert_refused(capsys, 'contrast_train', *command('--lr', 1e6, '--save_every', 0, '--amp', 'bf16'))
    assert not (tmp_path / 'run.ckpt').exists()
    assert 'ckpt' not in message
    assert message.endswith('lower the learning rate or use --amp off, and start anew: there is no checkpoint yet')


def test_weights_that_are_spoilt_do_not_replace_the_older_checkpoint(tmp_path):
    """The loss of the step is finite, its gradient is not: the next loss would be the first to show it."""
    run = make_run(tmp_path)
    with pytest.raises(UserError, match=r'weights: not finite after step 5: weight; .*--resume to go on from step 4'):
        for batch in run.batches(torch.ones(9, 2)):
            if run.step == 5:
                with torch.no_grad():
                    run.net.weight.fill_(float('inf'))
                run.update({'a': torch.zeros((), requires_grad=True)}, {'a': 1.})
            else:
                step_of(run, batch)
    state = checkpoint.read_checkpoint(tmp_path / 'run.ckpt')
    assert state['step'] == 4 and all(value.isfinite().all() for value in state['model'].values())


def test_other_settings_than_the_advised_ones_are_still_refused(command, tmp_path, capsys):
    train_half(command, tmp_path)
    message = assert_refused(capsys, 'contrast_train', *command('--resume', '--lr', 0.01, '--momentum', 0.5))
    assert 'was made with other settings (lr 0.05 -> 0.01, momentum 0.0005 -> 0.5)' in message


# ---------------------------------------------------------------- lists and labels of a resumed run

def test_a_resumed_run_finds_its_lists_and_labels_elsewhere(toy, command, tmp_path):
    train_half(command, tmp_path)
    names = shutil.copy(toy.train, tmp_path / 'moved.txt')
    labels = shutil.copy(toy.labels, tmp_path / 'moved.npy')
    train(*command('--resume', '--train_list', names, '--cls_labels', labels, '--val_list', toy.val, '--convert_rgb'))
    assert len(rows_of(tmp_path)) == 24


def test_a_resumed_run_with_another_list_under_the_same_name_is_refused(toy, command, tmp_path, capsys):
    names = tmp_path / 'list.txt'
    shutil.copy(toy.train, names)
    train_half(functools.partial(command, '--train_list', names), tmp_path)
    names.write_text('\n'.join(reversed(read_list(names))))  # of the same length: another order is another run
    message = assert_refused(capsys, 'contrast_train', *command('--resume', '--train_list', names))
    assert re.search(r'other settings \(train_ids 12 \(\w{16}\) -> 12 \(\w{16}\), .*labels|train_ids 12', message)


def test_a_resumed_run_with_other_labels_under_the_same_name_is_refused(toy, command, tmp_path, capsys):
    labels = tmp_path / 'labels.npy'
    shutil.copy(toy.labels, labels)
    train_half(functools.partial(command, '--cls_labels', labels), tmp_path)
    changed = read_labels(labels, VOC.num_foreground)
    ids = read_list(toy.train)
    extra = read_list(toy.val)[0]
    changed[extra] = 1 - changed[extra]  # of an image that is not in the list: nothing is learned from it
    save_labels(labels, changed)
    train(*command('--resume', '--cls_labels', labels))
    changed[ids[0]] = 1 - changed[ids[0]]
    save_labels(labels, changed)
    assert not np.array_equal(labels_of(ids, changed, labels), labels_of(ids, read_labels(toy.labels, 20), labels))
    message = assert_refused(capsys, 'contrast_train', *command('--resume', '--cls_labels', labels))
    assert 'was made with other settings (labels 12 (' in message


# ---------------------------------------------------------------- photos before the first step

@pytest.fixture
def devkit(toy, tmp_path):
    """A copy of the toy set's photos, to be damaged."""
    shutil.copytree(toy.root / 'JPEGImages', tmp_path / 'voc' / 'JPEGImages')
    return tmp_path / 'voc'


def truncated(path):
    path.write_bytes(path.read_bytes()[:900])


def grey(path):
    Image.open(path).convert('L').save(path)


def web_page(path):
    path.write_text('<html>404 not found</html>')


def empty(path):
    path.write_bytes(b'')


@pytest.mark.parametrize('damage, words', [(truncated, 'image cannot be read'), (grey, 'image mode is L, not RGB'),
                                           (web_page, 'image cannot be read'), (empty, 'image cannot be read')])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_photos_are_looked_at_before_the_first_step(toy, devkit, command, tmp_path, capsys, damage, words, split):
    name = read_list(getattr(toy, split))[-1]
    damage(image_folder(devkit) / f'{name}.jpg')
    argv = command('--voc12_root', devkit, '--val_list', toy.val, '--session_name', tmp_path / 'out' / 'run')
    message = assert_refused(capsys, 'contrast_train', *argv)
    total = len(read_list(getattr(toy, split)))
    assert f'{name}.jpg: {words}' in message and f'(1 of the {total} photos are unfit)' in message
    assert not (tmp_path / 'out').exists()


def test_a_photo_with_bytes_behind_its_end_is_whole(toy, devkit):
    path = image_folder(devkit) / f'{read_list(toy.train)[0]}.jpg'
    path.write_bytes(path.read_bytes() + b'\0' * 300)  # as some cameras write them
    check_photo(path)
    Image.open(path).save(path, 'PNG')
    check_photo(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match='image cannot be read'):
        check_photo(path)


def test_the_look_agrees_with_reading(toy, devkit):
    """A photo cut at any length is refused by the look where reading it refuses it."""
    path = image_folder(devkit) / f'{read_list(toy.train)[0]}.jpg'
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole), 25).astype(int):
        path.write_bytes(whole[:length])
        outcomes = []
        for look in (check_photo, read_image):
            try:
                look(path)
                outcomes.append('read')
            except UserError:
                outcomes.append('refused')
        assert outcomes[0] == outcomes[1], length


@pytest.mark.parametrize('exif', [b'Exif\0\0', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff', b'Exif\0\0rubbish' * 9])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_a_tag_that_cannot_be_read_spoils_no_photo(tmp_path, exif, kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    picture.save(tmp_path / 'x.jpg', kind, exif=exif)
    assert not check_photo(tmp_path / 'x.jpg')
    assert read_image(tmp_path / 'x.jpg').shape == (40, 60, 3)


class Sized(Photos):
    """Photos whose items have a companion of a fixed size, (64, 80), as a CAM file of an unturned photo has."""

    def item(self, index, name, pixels):
        if pixels.shape[:2] != (64, 80):
            raise UserError(name, 'has another size', 'make it again')
        return {}


def test_what_goes_with_a_turned_photo_is_looked_at_too(tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.zeros((60, 80, 3), np.uint8))
    picture.save(tmp_path / 'JPEGImages' / 'upright.jpg')
    picture.save(tmp_path / 'JPEGImages' / 'turned.jpg', exif=exif)
    assert [check_photo(tmp_path / 'JPEGImages' / f'{i}.jpg') for i in ('upright', 'turned')] == [False, True]
    check_photos(Sized(['upright'], devkit_photos(tmp_path)), 'photos')
    with pytest.raises(UserError, match='turned: has another size'):
        check_photos(Sized(['upright', 'turned'], devkit_photos(tmp_path)), 'photos')


def test_sound_photos_are_looked_at_without_decoding_them(toy, monkeypatch):
    def decoded(path, convert):
        raise AssertionError(f'{path} was decoded')
    monkeypatch.setattr('data.photo_check.read_image', decoded)
    check_photos(Photos(read_list(toy.train), devkit_photos(toy.root)), 'photos')


# ---------------------------------------------------------------- validation

def test_a_validation_that_fails_is_a_warning_and_the_epoch_is_saved(toy, devkit, command, tmp_path, capsys,
                                                                     monkeypatch):
    """Damage that the look cannot see: between the header and the end."""
    path = image_folder(devkit) / f'{read_list(toy.val)[0]}.jpg'
    data = bytearray(path.read_bytes())
    tables = data.index(b'\xff\xc4')  # the Huffman tables
    data[tables + 4:tables + 14] = b'\xff' * 10
    path.write_bytes(data)
    check_photo(path)
    with pytest.raises(UserError):
        read_image(path)
    train(*command('--voc12_root', devkit, '--val_list', toy.val, '--max_epoches', 2))
    said = capsys.readouterr().err
    assert f'warning: validation after step 6 failed, the training goes on: {path}: image cannot be read' in said
    assert 'warning: validation after step 12 failed' in said and 'Traceback' not in said
    assert len(rows_of(tmp_path)) == 12 and (tmp_path / 'run.pth').exists()


def test_the_checkpoint_is_there_when_validation_begins(tmp_path):
    run, seen = make_run(tmp_path), []

    def measure():
        seen.append(checkpoint.read_checkpoint(tmp_path / 'run.ckpt')['step'])
        torch.rand(3)
        return {'val/x': 1.}
    for batch in run.batches(torch.ones(9, 2)):
        step_of(run, batch)
        if run.epoch_ended:
            state = torch.get_rng_state()
            run.validate(measure)
            assert torch.equal(torch.get_rng_state(), state)  # as a run that resumes here finds it
    assert seen == [4, 8]


def test_a_bug_in_validation_shows_its_traceback_and_training_goes_on(tmp_path, capsys):
    run = make_run(tmp_path)
    for batch in run.batches(torch.ones(9, 2)):
        assert run.net.training
        step_of(run, batch)
        if run.epoch_ended:
            run.net.eval()
            run.validate(lambda: {}['nothing'])
    said = capsys.readouterr().err
    assert run.step == 8 and said.count("KeyError: 'nothing'") == 2 and 'Traceback' in said


# ---------------------------------------------------------------- lists that share ids

def test_training_on_images_of_val_is_warned_of(toy, tmp_path, capsys):
    both = tmp_path / 'both.txt'
    both.write_text('\n'.join([*read_list(toy.train), read_list(toy.val)[1]]))
    ids = read_list(both)
    warn_of_shared_ids(ids, both, toy.val)
    first = read_list(toy.val)[1]
    assert capsys.readouterr().err == (f'warning: 1 of the 13 ids of {both} are in {toy.val} too ({first} the first): '
                                       'scores on them say nothing about new images\n')
    warn_of_shared_ids(ids, both)  # no val.txt beside it
    warn_of_shared_ids(read_list(toy.train), toy.train, toy.val)
    assert capsys.readouterr().err == ''
    warn_of_shared_ids(read_list(toy.val), toy.train)  # without --val_list: the val.txt beside the list
    assert 'warning: 4 of the 4 ids' in capsys.readouterr().err


def test_training_warns_of_shared_ids(toy, command, capsys):
    train(*command('--max_epoches', 1, '--val_list', toy.train))
    assert 'warning: 12 of the 12 ids of' in capsys.readouterr().err


def test_all_files_of_a_refused_run_stay_as_they_were(command, tmp_path, capsys):
    train_half(command, tmp_path)
    before = tree_bytes(tmp_path)
    assert_refused(capsys, 'contrast_train', *command('--resume', '--batch_size', 3))
    assert tree_bytes(tmp_path) == before
