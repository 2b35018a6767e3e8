"""The chain on the toy set, the scripts as a user runs them, with the networks on the device: seconds of each step."""
import dataclasses
import tempfile

from benchmarks.gpu_parts.measure import Row
from engine import files
from engine.errors import UserError
from report import chain, pipeline
from report.presets import TOY
from tool.recipes import RECIPES

AMP = 'bf16'
TRIAL = dataclasses.replace(  # sizes for a minute on a CPU, from which the networks learn nothing
    TOY, images={'train': 8, 'val': 2},
    contrast_train=(*TOY.contrast_train, '--max_epoches', 1), aff_train=(*TOY.aff_train, '--max_epoches', 1),
    segmentation_train=(*TOY.segmentation_train, '--TRAIN_ITERATION', 2, '--TRAIN_BATCHES', 2),
    segmentation_test=('--TEST_MULTISCALE', 1))


def rows(settings):
    """A Row for each step, with the mIoU that an evaluation found; the first step that fails is the last."""
    recipe, preset = RECIPES['seam'], TRIAL if settings.tiny else TOY
    with tempfile.TemporaryDirectory() as folder:
        paths = chain.Paths(
            weights=preset.weights, out=folder, voc12_root=f'{folder}/VOC2012', lists=f'{folder}/lists',
            experiment=preset.experiment, alphas=preset.alphas)
        make = pipeline.Step('toy', ('toy/make.py', '--out', paths.voc12_root, *preset.image_counts()))
        steps = chain.chain(recipe, paths, preset.extra(recipe), ('--amp', AMP, '--seed', '0'),
                            chain.Machine(settings.device))
        for step in (make, *steps):
            row = Row('toy', step.name, precision=AMP)
            try:
                seconds = pipeline.run_steps([step], f'{folder}/log', quiet=True)[step.name]
            except UserError:  # the step's message is in its log, which is deleted with the folder
                yield dataclasses.replace(row, note=last_line(folder, step))
                return
            yield dataclasses.replace(row, value=seconds, unit='s', note=score(paths, step))


def last_line(folder, step):
    """The last line of a step's log."""
    with open(f'{folder}/log/{step.name}.log', encoding='utf-8') as log:
        return ([text.strip() for text in log if text.strip()] or [''])[-1]


def score(paths, step):
    """The mIoU that an evaluation step found, in words; '' for another step."""
    if step.name == 'segmentation_test':
        miou = files.read_json(paths.scores(step.name), '')['miou']
        return ', '.join(f'{variant} {value:.1f}' for variant, value in miou.items())
    if not step.name.startswith('eval_'):
        return ''
    found = files.read_json(paths.scores(step.name), '')
    return ', '.join(f'{name} {found[name]["miou"]:.1f}' for name in ('fixed', 'best') if found[name])
