"""The chain of commands from image-level labels to a segmentation network, and what each leaves to be reported.

Lists of words and paths only: tool/pipeline.py runs them, tool/report.py shows what came out.
"""
from dataclasses import dataclass, replace

from tool.cli import UserError
from tool.pipeline import Step

BASELINES = ('seam', 'eps')
EXPERIMENT = {'seam': 'SEAM_deeplabv1_resnet38', 'eps': 'EPS_deeplabv2_resnet101'}  # Step 3's default per baseline

# mIoU in percent, by baseline, stage and split. PPC (Du et al., CVPR 2022); seeds at the best threshold, before a CRF.
# SEAM: the median of three runs. EPS: from the README of the published code. What is not known for certain is left out.
PUBLISHED = {('seam', 'seeds', 'train'): 61.5, ('eps', 'seeds', 'train'): 70.5}

NETWORK_SCRIPTS = ('contrast_train.py', 'contrast_infer.py', 'aff_train.py', 'aff_infer.py',
                   'segmentation/experiment/train.py', 'segmentation/experiment/test.py')


@dataclass(frozen=True)
class Paths:
    """Where the chain reads and writes; relative paths from the repository's root.

    weights: pretrained backbone of Step 1 and 2. out: the run's folder. lists: folder of the lists and cls_labels.npy.
    deeplab_weights: pretrained backbone of Step 3 ('': weights). saliency_dir: saliency maps, EPS only.
    experiment: Step 3's experiment ('': the baseline's). masks_crf: train Step 3 on the random walk's masks after the
    CRF (as the published README has it) or before. SEAM only: EPS takes the CRF's masks.
    """
    weights: str
    out: str
    voc12_root: str = 'VOC2012'
    lists: str = 'voc12'
    deeplab_weights: str = ''
    saliency_dir: str = ''
    experiment: str = ''
    masks_crf: bool = True
    alphas: tuple = (4, 24)

    def under(self, name):
        """A path in the run's folder."""
        return f'{self.out}/{name}'

    def list(self, split):
        """The list of a split: 'train', 'train_aug' or 'val'."""
        return f'{self.lists}/{split}.txt'

    def scores(self, name):
        """The JSON file that the evaluation step `name` leaves."""
        return self.under('segmentation_val/scores.json' if name == 'segmentation_test' else f'scores/{name}.txt.json')

    def masks(self, baseline):
        """The folder of the pseudo masks of train_aug; those of val are in <it>_val."""
        return self.under('crf' if baseline == 'eps' else 'rw_crf' if self.masks_crf else 'rw')


def chain(baseline, paths, extra=None, shared=(), workers=None, device=None):
    """The steps of a baseline ('seam' or 'eps') as a list of pipeline.Step.

    extra: {step name: words added to its command}. shared: words added to every step that runs a network.
    workers, device: --num_workers of every step and --device of those with a network; neither changes what is computed.
    UserError: extra names a step that the chain lacks.
    """
    steps = [*seed_steps(baseline, paths), *(affinity_steps(paths) if baseline == 'seam' else ()),
             *mask_evaluations(baseline, paths), *segmentation_steps(baseline, paths)]
    extra = extra or {}
    names = [step.name for step in steps]
    unknown = set(extra).difference(names)
    if unknown:
        raise UserError(min(unknown), 'is no step of the chain', f'choose one of {", ".join(names)}')
    return [completed(step, extra.get(step.name, ()), shared, workers, device) for step in steps]


def completed(step, extra, shared, workers, device):
    """A step with the words that `chain` adds to it."""
    network = step.words[0] in NETWORK_SCRIPTS
    machine = () if workers is None else ('--num_workers', str(workers))
    machine += ('--device', device) if network and device else ()
    return replace(step, words=(*step.words, *(shared if network else ()), *map(str, extra)), machine=machine)


def training_lists(paths, val=True):
    """Flags for lists that are not the scripts' defaults. val: the script takes --val_list."""
    if paths.lists == 'voc12':
        return ()
    return ('--train_list', paths.list('train_aug'), *(('--val_list', paths.list('val')) if val else ()))


def label_flag(paths):
    """--cls_labels, where they are not the scripts' default."""
    return () if paths.lists == 'voc12' else ('--cls_labels', f'{paths.lists}/cls_labels.npy')


# ---------------------------------------------------------------- Step 1

def seed_steps(baseline, paths):
    """Lists and labels, training, CAMs of train_aug (for the next steps) and val (to compare with DeepLab), scores."""
    eps = ('--baseline', 'eps') if baseline == 'eps' else ()
    saliency = ('--saliency_dir', paths.saliency_dir) if eps else ()
    out = () if paths.lists == 'voc12' else ('--out', paths.lists)
    session, root = paths.under('contrast'), ('--voc12_root', paths.voc12_root)
    train = ('contrast_train.py', *eps, '--weights', paths.weights, *root, '--session_name', session, *saliency,
             *training_lists(paths), *label_flag(paths), '--tblog_dir', paths.under('tblog'), '--resume')
    return [
        Step('prepare', ('voc12/prepare.py', *root, *out, *saliency)),
        Step('contrast_train', train, ('prepare',), makes=(f'{session}.*',)),
        infer_step('contrast_infer', eps, paths, 'train_aug', ''),
        infer_step('contrast_infer_val', eps, paths, 'val', '_val'),
        eval_step('eval_seeds', paths, 'train', paths.under('cam'), 'contrast_infer', 'npy'),
        eval_step('eval_seeds_val', paths, 'val', paths.under('cam_val'), 'contrast_infer_val', 'npy'),
    ]


def infer_step(name, eps, paths, split, tail):
    """CAMs (cam), seeds (cam_pred) and seeds after the CRF (crf) of a split, in folders that end in `tail`."""
    folders = {'--out_cam': f'cam{tail}', '--out_cam_pred': f'cam_pred{tail}', '--out_crf': f'crf{tail}'}
    outputs = [word for flag, folder in folders.items() for word in (flag, paths.under(folder))]
    words = ('contrast_infer.py', *eps, '--weights', paths.under('contrast.pth'), '--infer_list', paths.list(split),
             '--voc12_root', paths.voc12_root, *label_flag(paths), *outputs)
    return Step(name, words, ('contrast_train',), makes=tuple(map(paths.under, folders.values())))


def eval_step(name, paths, split, predict_dir, after, kind='png'):
    """The score of a folder of predictions of a split, over all background scores where they are CAMs."""
    words = ('eval.py', '--list', paths.list(split), '--predict_dir', predict_dir,
             '--gt_dir', f'{paths.voc12_root}/SegmentationClass', '--comment', name.removeprefix('eval_'),
             '--type', kind, '--logfile', paths.under(f'scores/{name}.txt'))
    return Step(name, words + (('--curve', 'True') if kind == 'npy' else ()), (after,))


# ---------------------------------------------------------------- Step 2

def affinity_steps(paths):
    """Labels of AffinityNet, its training, and the random walk with and without the CRF."""
    session, root, cams = paths.under('aff'), ('--voc12_root', paths.voc12_root), paths.under('cam')
    refined = paths.under('aff_crf')
    prepare = ('aff_prepare.py', *root, '--infer_list', paths.list('train_aug'), '--cam_dir', cams,
               '--out_crf', refined)
    low, high = paths.alphas
    if paths.alphas != Paths.alphas:
        prepare += ('--alpha', low, high)
    train = ('aff_train.py', '--weights', paths.weights, *root, '--la_crf_dir', f'{refined}/{low:.2f}',
             '--ha_crf_dir', f'{refined}/{high:.2f}', '--session_name', session, *training_lists(paths),
             '--tblog_dir', paths.under('tblog'), '--resume')
    # DeepLab reads train_aug's masks; the other variant is scored only, on train.
    plain, crf = ('train', 'train_aug') if paths.masks_crf else ('train_aug', 'train')
    return [
        Step('aff_prepare', prepare, ('contrast_infer',), makes=(refined,)),
        Step('aff_train', train, ('aff_prepare',), makes=(f'{session}.*',)),
        walk_step('aff_infer', paths, plain, '', False),
        walk_step('aff_infer_crf', paths, crf, '', True),
        walk_step('aff_infer_val', paths, 'val', '_val', False),
        walk_step('aff_infer_crf_val', paths, 'val', '_val', True),
    ]


def walk_step(name, paths, split, tail, crf):
    """The random walk from the CAMs of a split, with or without the CRF behind it."""
    folder = paths.under(f'rw{"_crf" if crf else ""}{tail}')
    words = ('aff_infer.py', '--weights', paths.under('aff.pth'), '--voc12_root', paths.voc12_root,
             '--infer_list', paths.list(split), '--cam_dir', paths.under(f'cam{tail}'), '--out_rw', folder)
    return Step(name, words + (('--crf',) if crf else ()), ('aff_train', f'contrast_infer{tail}'), makes=(folder,))


def mask_evaluations(baseline, paths):
    """The scores of the masks on train and val."""
    steps = [eval_step('eval_seeds_crf', paths, 'train', paths.under('crf'), 'contrast_infer'),
             eval_step('eval_seeds_crf_val', paths, 'val', paths.under('crf_val'), 'contrast_infer_val')]
    if baseline == 'seam':
        steps += [eval_step('eval_walk', paths, 'train', paths.under('rw'), 'aff_infer'),
                  eval_step('eval_walk_val', paths, 'val', paths.under('rw_val'), 'aff_infer_val'),
                  eval_step('eval_walk_crf', paths, 'train', paths.under('rw_crf'), 'aff_infer_crf'),
                  eval_step('eval_walk_crf_val', paths, 'val', paths.under('rw_crf_val'), 'aff_infer_crf_val')]
    return steps


# ---------------------------------------------------------------- Step 3

def segmentation_steps(baseline, paths):
    """DeepLab on the pseudo masks, and its four numbers on val."""
    experiment = ('--experiment', paths.experiment or EXPERIMENT[baseline])
    session, out = paths.under('segmentation'), paths.under('segmentation_val')
    root = ('--voc12_root', paths.voc12_root)
    masks_from = 'contrast_infer' if baseline == 'eps' else 'aff_infer_crf' if paths.masks_crf else 'aff_infer'
    train = ('segmentation/experiment/train.py', *experiment, '--pseudo_gt', paths.masks(baseline),
             '--weights', paths.deeplab_weights or paths.weights, *root, '--session_name', session,
             *training_lists(paths, val=False), '--tblog_dir', paths.under('tblog'), '--resume')
    test = ('segmentation/experiment/test.py', *experiment, '--weights', f'{session}.pth', *root,
            '--infer_list', paths.list('val'), '--out_dir', out)
    return [Step('segmentation_train', train, (masks_from,), makes=(f'{session}.*',)),
            Step('segmentation_test', test, ('segmentation_train',), makes=(out,))]


# ---------------------------------------------------------------- what came out

def rows(baseline, paths):
    """The Model Zoo table's rows, for tool/report.py: stage, split, the JSON file with the score and its entry there,
    the published figure or None; short: its name among the steps of the chain, for rows that are one."""
    found = [row(baseline, paths, 'seeds', 'train', 'eval_seeds', 'best', 'Seeds, best threshold', oracle=True)]
    for split, tail in (('train', ''), ('val', '_val')):
        seeds = f'eval_seeds{tail}'
        found.append(row(baseline, paths, 'seeds', split, seeds, 'fixed', 'Seeds, fixed threshold', short='seeds'))
        title = 'Pseudo masks: seeds + CRF' if baseline == 'eps' else 'Seeds + CRF'
        short = 'pseudo masks' if baseline == 'eps' else 'seeds + CRF'
        found.append(row(baseline, paths, 'crf', split, f'eval_seeds_crf{tail}', 'fixed', title, short=short))
        if baseline == 'seam':
            walk, crf = walk_names(paths)
            found += [row(baseline, paths, 'walk', split, f'eval_walk{tail}', 'fixed', *walk),
                      row(baseline, paths, 'walk + CRF', split, f'eval_walk_crf{tail}', 'fixed', *crf)]
    return found + [row(baseline, paths, variant, 'val', 'segmentation_test', variant, f'DeepLab, {title}',
                        short='DeepLab' if variant == 'multi_crf' else '')
                    for variant, title in (('single', 'single-scale'), ('single_crf', 'single-scale + CRF'),
                                           ('multi', 'multi-scale'), ('multi_crf', 'multi-scale + CRF'))]


def walk_names(paths):
    """(title, short name) of the random walk's masks before and after the CRF; DeepLab trains on the pseudo masks."""
    if paths.masks_crf:
        return ('Random walk', 'random walk'), ('Pseudo masks: random walk + CRF', 'pseudo masks')
    return ('Pseudo masks: random walk', 'pseudo masks'), ('Random walk + CRF', '')


def row(baseline, paths, stage, split, step, entry, title, short='', oracle=False):
    """One row; see `rows`. oracle: its score was chosen with the ground truth that it is measured on."""
    published = PUBLISHED.get((baseline, stage, split)) if entry != 'fixed' else None
    return {'stage': title, 'split': split, 'scores': paths.scores(step), 'entry': entry, 'published': published,
            'short': short, 'oracle': oracle}


def report_input(baseline, paths, steps, title, notes=()):
    """The description of a run that tool/report.py builds its page from. steps: those of `chain`. notes: paragraphs."""
    sessions = {'contrast': 'Step 1: classification and contrast', 'aff': 'Step 2: AffinityNet',
                'segmentation': 'Step 3: DeepLab'}
    curves = {'train': 'eval_seeds', 'val': 'eval_seeds_val'}
    return {
        'title': title, 'notes': list(notes), 'supervision': 'saliency' if baseline == 'eps' else '',
        'rows': rows(baseline, paths),
        'runs': [{'title': text, 'session': paths.under(name)} for name, text in sessions.items()],
        'curves': [{'title': split, 'scores': paths.scores(step)} for split, step in curves.items()],
        'images': {'list': paths.list('val'), 'photos': f'{paths.voc12_root}/JPEGImages',
                   'ground_truth': f'{paths.voc12_root}/SegmentationClass', 'stages': picture_stages(baseline, paths)},
        'commands': [{'name': step.name, 'line': step.line} for step in steps], 'log_dir': paths.under('log'),
    }


def picture_stages(baseline, paths):
    """The folders of val's predictions that the report shows side by side, in the order of the steps."""
    folders = {'CAM': paths.under('cam_val'), 'seed': paths.under('cam_pred_val')}
    if baseline == 'seam' and paths.masks_crf:
        folders['random walk'] = paths.under('rw_val')
    folders |= {'pseudo mask': f'{paths.masks(baseline)}_val', 'DeepLab': paths.under('segmentation_val/multi_crf')}
    return [{'title': title, 'folder': folder, 'kind': 'cam' if title == 'CAM' else 'mask'}
            for title, folder in folders.items()]
