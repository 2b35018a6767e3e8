"""The chain of commands from image-level labels to a segmentation network, and what each leaves to be reported.

Command lines and paths only: report/pipeline.py runs them, report/page.py shows what came out.
"""
from dataclasses import dataclass, replace

from data.description import BUILT_IN
from data.images import devkit_photos
from engine import cli
from engine.errors import UserError
from report.pipeline import Step, portable

NETWORK_SCRIPTS = ('contrast_train.py', 'contrast_infer.py', 'aff_train.py', 'aff_infer.py',
                   'segmentation/experiment/train.py', 'segmentation/experiment/test.py')


@dataclass(frozen=True)
class Paths:
    """Where the chain reads and writes; relative paths from the repository's root.

    weights: pretrained backbone of Step 1 and 2. out: the run's folder. lists: folder of the lists and cls_labels.npy.
    deeplab_weights: pretrained backbone of Step 3 ('': weights). saliency_dir: saliency maps, where a recipe learns
    from them. experiment: Step 3's experiment ('': the recipe's). masks_crf: train Step 3 on the random walk's masks
    after the CRF (as the published README has it) or before; a recipe without Step 2 takes the CRF's masks.
    data: a data.description.DataSet in place of VOC's lists, its paths absolute if it is a file; then voc12_root may be
    '', for the data set's own root. only: folder of the ids that VOC's lists are limited to ('': none).
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
    data: object = None
    only: str = ''

    def under(self, name):
        """A path in the run's folder."""
        return f'{self.out}/{name}'

    def list(self, split):
        """The list of a split: 'train', 'train_aug' or 'val' (test_split, where there is none)."""
        if not self.data:
            return f'{self.lists}/{split}.txt'
        path = self.data.list(self.test_split if split == 'val' else split)
        return path if self.data.source in BUILT_IN else portable(path)

    @property
    def described(self):
        """The flag of a data set in place of VOC; () for VOC."""
        if not self.data:
            return ()
        return '--dataset', self.data.source if self.data.source in BUILT_IN else portable(self.data.source)

    @property
    def where(self):
        """The flags that say where the data set is."""
        return (*self.described, *(('--voc12_root', self.voc12_root) if self.voc12_root else ()))

    @property
    def truth(self):
        """The folder of the ground truth; '' where the data set has none."""
        if not self.data:
            return f'{self.voc12_root}/SegmentationClass'
        return self.data.truth(self.voc12_root) if self.voc12_root else portable(self.data.truth())

    @property
    def photos(self):
        """The data.images.PhotoFolders of the data set."""
        return self.data.photos(self.voc12_root or None) if self.data else devkit_photos(self.voc12_root)

    @property
    def test_split(self):
        """The split that DeepLab is tested on and whose images the report shows: val, or train where there is none."""
        return 'train' if self.data and 'val' not in self.data.lists else 'val'

    def scores(self, name):
        """The JSON file that the evaluation step `name` leaves."""
        return self.under('segmentation_val/scores.json' if name == 'segmentation_test' else f'scores/{name}.txt.json')

    def masks(self, recipe):
        """The folder of the pseudo masks of train_aug; those of val are in the folder of that name with `_val`."""
        return self.under('crf' if not recipe.affinity else 'rw_crf' if self.masks_crf else 'rw')


@dataclass(frozen=True)
class Machine:
    """How a chain uses the machine: flags of that name; None leaves each script's default. No result depends on them
    but for rounding."""
    device: str = None
    threads: object = None
    num_workers: object = None

    def flags(self, script):
        """The arguments of a step that runs `script`. One without a network takes no threads, nor 'auto' workers."""
        values = dict(vars(self))
        if script not in NETWORK_SCRIPTS:
            values['threads'] = None
            if values['num_workers'] == 'auto':
                values['num_workers'] = None
            if script != 'aff_prepare.py':  # its CRF runs on a GPU too
                values['device'] = None
        return tuple(text for name, value in values.items() if value is not None for text in (f'--{name}', str(value)))


def add_flags(parser):
    """Add the flags of Machine, --amp and --seed to the parser of a script that runs a chain."""
    cli.add_device_flags(parser)
    parser.set_defaults(**vars(Machine()))  # each script's own default, and not in the printed commands


def machine(args):
    """The Machine of a script's flags."""
    return Machine(args.device, args.threads, args.num_workers)


def shared_flags(args):
    """The flags of every step with a network that change what is computed and are not at their default."""
    return (*(('--amp', args.amp) if args.amp != 'off' else ()), *(('--seed', str(args.seed)) if args.seed else ()))


def chain(recipe, paths, extra=None, shared=(), machine=Machine()):
    """The steps of a tool.recipes.Recipe as a list of pipeline.Step.

    extra: {step name: arguments added to its command}. shared: arguments added to every step that runs a network.
    machine: a Machine. UserError: extra names a step that the chain lacks.
    """
    steps = [*seed_steps(recipe, paths), *(affinity_steps(paths) if recipe.affinity else ()),
             *mask_evaluations(recipe, paths), *segmentation_steps(recipe, paths)]
    extra = extra or {}
    steps = [step for step in steps if is_wanted(step.name, paths)]
    names = [step.name for step in steps]
    unknown = set(extra).difference(names)
    if unknown:
        raise UserError(min(unknown), 'is no step of the chain', f'choose one of {", ".join(names)}')
    return [completed(step, extra.get(step.name, ()), shared, machine) for step in steps]


def is_wanted(name, paths):
    """Whether a step has something to do: lists to write, images of val, ground truth to score with."""
    if name == 'prepare':
        return not paths.data
    return (paths.truth or not name.startswith('eval_')) and (paths.test_split == 'val' or not name.endswith('_val'))


def completed(step, extra, shared, machine):
    """A step with the arguments that `chain` adds to it."""
    network = step.argv[0] in NETWORK_SCRIPTS
    argv = (*step.argv, *(shared if network else ()), *map(str, extra))
    return replace(step, argv=argv, machine=machine.flags(step.argv[0]))


def training_lists(paths, val=True):
    """Flags for lists that are not the scripts' defaults. val: the script takes --val_list."""
    if paths.data or paths.lists == 'voc12':
        return ()
    return ('--train_list', paths.list('train_aug'), *(('--val_list', paths.list('val')) if val else ()))


def label_flag(paths):
    """--cls_labels, where they are not the scripts' default."""
    return () if paths.data or paths.lists == 'voc12' else ('--cls_labels', f'{paths.lists}/cls_labels.npy')


# ---------------------------------------------------------------- Step 1

def baseline_flag(recipe):
    """--baseline, where it is not the scripts' default."""
    return () if recipe.name == 'seam' else ('--baseline', recipe.name)


def seed_steps(recipe, paths):
    """Lists and labels, training, CAMs of train_aug (for the next steps) and val (to compare with DeepLab), scores."""
    saliency = ('--saliency_dir', paths.saliency_dir) if recipe.saliency else ()
    out = () if paths.lists == 'voc12' else ('--out', paths.lists)
    session, root = paths.under('contrast'), paths.where
    train = ('contrast_train.py', *baseline_flag(recipe), '--weights', paths.weights, *root,
             '--session_name', session, *saliency, *training_lists(paths), *label_flag(paths),
             '--tblog_dir', paths.under('tblog'), '--resume')
    return [
        Step('prepare', ('voc12/prepare.py', *root, *out, *saliency, *(('--only', paths.only) if paths.only else ())),
             leaves=(*map(paths.list, ('train', 'train_aug', 'val')), f'{paths.lists}/cls_labels.npy')),
        Step('contrast_train', train, ('prepare',), makes=(f'{session}.*',), leaves=(f'{session}.pth',)),
        infer_step('contrast_infer', recipe, paths, 'train_aug', ''),
        infer_step('contrast_infer_val', recipe, paths, 'val', '_val'),
        eval_step('eval_seeds', paths, 'train', paths.under('cam'), 'contrast_infer', 'npy'),
        eval_step('eval_seeds_val', paths, 'val', paths.under('cam_val'), 'contrast_infer_val', 'npy'),
    ]


def infer_step(name, recipe, paths, split, tail):
    """CAMs (cam), seeds (cam_pred) and seeds after the CRF (crf) of a split, in folders that end in `tail`."""
    folders = {'--out_cam': f'cam{tail}', '--out_cam_pred': f'cam_pred{tail}', '--out_crf': f'crf{tail}'}
    outputs = [text for flag, folder in folders.items() for text in (flag, paths.under(folder))]
    argv = ('contrast_infer.py', *baseline_flag(recipe), '--weights', paths.under('contrast.pth'),
            '--infer_list', paths.list(split), *paths.where, *label_flag(paths), *outputs)
    return Step(name, argv, ('contrast_train',), makes=tuple(map(paths.under, folders.values())))


def eval_step(name, paths, split, predict_dir, after, kind='png'):
    """The score of a folder of predictions of a split, over all background scores where they are CAMs."""
    argv = ('eval.py', *paths.described, '--list', paths.list(split), '--predict_dir', predict_dir,
            '--gt_dir', paths.truth, '--comment', name.removeprefix('eval_'),
            '--type', kind, '--logfile', paths.under(f'scores/{name}.txt'))
    return Step(name, argv + (('--curve', 'True') if kind == 'npy' else ()), (after,))


def box_steps(paths):
    """A centred box of a class of each image's label, what seeds must beat without a network, and its score."""
    argv = ('toy/centred_box.py', '--list', paths.list('train'), '--voc12_root', paths.voc12_root,
            '--cls_labels', f'{paths.lists}/cls_labels.npy', '--out', paths.under('box'))
    return [Step('box', argv, ('prepare',), makes=(paths.under('box'),)),
            eval_step('eval_box', paths, 'train', paths.under('box'), 'box')]


def box_row(recipe, paths):
    """The row of that score."""
    return row(recipe, paths, 'box', 'train', 'eval_box', 'fixed', 'A centred box, no network')


# ---------------------------------------------------------------- Step 2

def affinity_steps(paths):
    """Labels of AffinityNet, its training, and the random walk with and without the CRF."""
    session, root, cams = paths.under('aff'), paths.where, paths.under('cam')
    refined = paths.under('aff_crf')
    prepare = ('aff_prepare.py', *root, '--infer_list', paths.list('train_aug'), '--cam_dir', cams,
               '--out_crf', refined)
    low, high = paths.alphas
    if paths.alphas != Paths.alphas:
        prepare += ('--alpha', low, high)
    train = ('aff_train.py', '--weights', paths.weights, *root, '--la_crf_dir', f'{refined}/{low:.2f}',
             '--ha_crf_dir', f'{refined}/{high:.2f}', '--session_name', session, *training_lists(paths),
             '--tblog_dir', paths.under('tblog'), '--resume')
    return [
        Step('aff_prepare', prepare, ('contrast_infer',), makes=(refined,),
             leaves=(f'{refined}/{low:.2f}', f'{refined}/{high:.2f}')),
        Step('aff_train', train, ('aff_prepare',), makes=(f'{session}.*',), leaves=(f'{session}.pth',)),
        walk_step('aff_infer', paths, 'train_aug', ''),
        walk_step('aff_infer_val', paths, 'val', '_val'),
    ]


def walk_step(name, paths, split, tail):
    """The random walk from the CAMs of a split: its masks (rw), and these after the CRF (rw_crf)."""
    plain, refined = paths.under(f'rw{tail}'), paths.under(f'rw_crf{tail}')
    argv = ('aff_infer.py', '--weights', paths.under('aff.pth'), *paths.where, '--infer_list', paths.list(split),
            '--cam_dir', paths.under(f'cam{tail}'), '--out_rw', plain, '--out_rw_crf', refined)
    return Step(name, argv, ('aff_train', f'contrast_infer{tail}'), makes=(plain, refined))


def mask_evaluations(recipe, paths):
    """The scores of the masks on train and val."""
    steps = [eval_step('eval_seeds_crf', paths, 'train', paths.under('crf'), 'contrast_infer'),
             eval_step('eval_seeds_crf_val', paths, 'val', paths.under('crf_val'), 'contrast_infer_val')]
    if recipe.affinity:
        steps += [eval_step('eval_walk', paths, 'train', paths.under('rw'), 'aff_infer'),
                  eval_step('eval_walk_val', paths, 'val', paths.under('rw_val'), 'aff_infer_val'),
                  eval_step('eval_walk_crf', paths, 'train', paths.under('rw_crf'), 'aff_infer'),
                  eval_step('eval_walk_crf_val', paths, 'val', paths.under('rw_crf_val'), 'aff_infer_val')]
    return steps


# ---------------------------------------------------------------- Step 3

def segmentation_steps(recipe, paths):
    """DeepLab on the pseudo masks, and its masks of val with, where there is ground truth, their four numbers."""
    experiment = ('--experiment', paths.experiment or recipe.experiment)
    session, out = paths.under('segmentation'), paths.under('segmentation_val')
    root = paths.where
    masks_from = 'aff_infer' if recipe.affinity else 'contrast_infer'
    train = ('segmentation/experiment/train.py', *experiment, '--pseudo_gt', paths.masks(recipe),
             '--weights', paths.deeplab_weights or paths.weights, *root, '--session_name', session,
             *training_lists(paths, val=False), '--tblog_dir', paths.under('tblog'), '--resume')
    test = ('segmentation/experiment/test.py', *experiment, '--weights', f'{session}.pth', *root,
            '--infer_list', paths.list(paths.test_split), '--out_dir', out)
    return [Step('segmentation_train', train, (masks_from,), makes=(f'{session}.*',), leaves=(f'{session}.pth',)),
            Step('segmentation_test', test, ('segmentation_train',), makes=(out,))]


# ---------------------------------------------------------------- what came out

def rows(recipe, paths):
    """The rows of the Model Zoo table, as report/page.py describes them: see `row`. None without ground truth."""
    if not paths.truth:
        return []
    found = [row(recipe, paths, 'seeds', 'train', 'eval_seeds', 'best', 'Seeds, best threshold', oracle=True)]
    final = not recipe.affinity
    for split, tail in (('train', ''), ('val', '_val'))[:1 if paths.test_split == 'train' else 2]:
        seeds = f'eval_seeds{tail}'
        found.append(row(recipe, paths, 'seeds', split, seeds, 'fixed', 'Seeds, fixed threshold', short='seeds'))
        title = 'Pseudo masks: seeds + CRF' if final else 'Seeds + CRF'
        short = 'pseudo masks' if final else 'seeds + CRF'
        found.append(row(recipe, paths, 'crf', split, f'eval_seeds_crf{tail}', 'fixed', title, short=short))
        if recipe.affinity:
            walk, crf = walk_names(paths)
            found += [row(recipe, paths, 'walk', split, f'eval_walk{tail}', 'fixed', *walk),
                      row(recipe, paths, 'walk + CRF', split, f'eval_walk_crf{tail}', 'fixed', *crf)]
    return found + [row(recipe, paths, variant, paths.test_split, 'segmentation_test', variant, f'DeepLab, {title}',
                        short='DeepLab' if variant == 'multi_crf' else '')
                    for variant, title in (('single', 'single-scale'), ('single_crf', 'single-scale + CRF'),
                                           ('multi', 'multi-scale'), ('multi_crf', 'multi-scale + CRF'))]


def walk_names(paths):
    """(title, short name) of the random walk's masks before and after the CRF; DeepLab trains on the pseudo masks."""
    if paths.masks_crf:
        return ('Random walk', 'random walk'), ('Pseudo masks: random walk + CRF', 'pseudo masks')
    return ('Pseudo masks: random walk', 'pseudo masks'), ('Random walk + CRF', '')


def row(recipe, paths, stage, split, step, entry, title, short='', oracle=False):
    """One row: stage, split, the JSON file with the score (of the evaluation `step`) and its entry there, the published
    figure or None. short: the row's name among the steps of the chain, '' for a row that is no step.
    oracle: its score was chosen with the ground truth that it is measured on."""
    published = recipe.published.get((stage, split)) if entry != 'fixed' and not paths.data else None  # of VOC alone
    return {'stage': title, 'split': split, 'scores': paths.scores(step), 'entry': entry, 'published': published,
            'short': short, 'oracle': oracle}


def report_input(recipe, paths, steps, title, notes=()):
    """The description of a run that report/page.py builds its page from. steps: those of `chain`. notes: paragraphs."""
    sessions = {'contrast': 'Step 1: classification and contrast', 'aff': 'Step 2: AffinityNet',
                'segmentation': 'Step 3: DeepLab'}
    curves = {'train': 'eval_seeds', 'val': 'eval_seeds_val'}
    return {
        'title': title, 'notes': list(notes), 'supervision': 'saliency' if recipe.saliency else '',
        'rows': rows(recipe, paths),
        'runs': [{'title': text, 'session': paths.under(name)} for name, text in sessions.items()],
        'curves': [{'title': split, 'scores': paths.scores(step)} for split, step in curves.items()],
        'images': {'list': paths.list(paths.test_split), 'photos': paths.photos, 'ground_truth': paths.truth,
                   'stages': picture_stages(recipe, paths)},
        'commands': [{'name': step.name, 'line': step.line} for step in steps], 'log_dir': paths.under('log'),
    }


def picture_stages(recipe, paths):
    """The folders of val's predictions that the report shows side by side, in the order of the steps."""
    tail = '_val' if paths.test_split == 'val' else ''
    folders = {'CAM': paths.under(f'cam{tail}'), 'seed': paths.under(f'cam_pred{tail}')}
    if recipe.affinity and paths.masks_crf:
        folders['random walk'] = paths.under(f'rw{tail}')
    folders |= {'pseudo mask': f'{paths.masks(recipe)}{tail}', 'DeepLab': paths.under('segmentation_val/multi_crf')}
    return [{'title': title, 'folder': folder, 'kind': 'cam' if title == 'CAM' else 'mask'}
            for title, folder in folders.items()]
