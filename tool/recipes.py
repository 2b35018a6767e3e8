"""The one table of baselines: what the contrast is added to, or measured against. No torch here.

A Recipe is a baseline's network, losses, term weights and settings. Its settings become flags of the scripts
(engine/cli.py): adding a baseline is one entry here and, where it has losses of its own, one function.
"""
import dataclasses
from dataclasses import dataclass
from pkgutil import resolve_name


@dataclass(frozen=True)
class Term:
    """A named loss term. meaning: in words, for --help. needs: what the network must have beside the CAM head."""
    meaning: str
    needs: tuple = ()


TERMS = {
    'cls': Term('classification'),
    'saliency': Term('the saliency that the CAM explains'),
    'saliency_rv': Term('the saliency that the revised CAM explains', ('pcm',)),
    'rvmin': Term('adaptive min pooling of the revised CAM', ('pcm',)),
    'er': Term('equivariance between the views', ('pcm',)),
    'ecr': Term('equivariant cross regularisation', ('pcm',)),
    'cross_prototype': Term("contrast with the other view's prototypes", ('pcm', 'projection')),
    'cross_cam': Term("contrast with the other view's pseudo labels", ('pcm', 'projection')),
    'intra': Term('contrast within a view: semi-hard prototypes, hard pixels', ('pcm', 'projection')),
}


def setting(help, scripts, kind=float, low=None, high=None, above=None, choices=None, before=None):
    """A field of Recipe that is also a flag of `scripts` ('train', 'infer').

    A recipe whose value is None has no such setting, and its flag is refused; '' must be given by the user.
    kind, low, high (inclusive), above (exclusive), choices: the values that the flag takes. before: the value that the
    code had before the flag existed, where that is not the recipe's; see engine.cli.values_before.
    """
    return dataclasses.field(default=None, metadata={
        'help': help, 'scripts': scripts.split(), 'kind': kind, 'low': low, 'high': high, 'above': above,
        'choices': choices, 'before': before})


@dataclass(frozen=True)
class Recipe:
    """A baseline.

    name: of --baseline. title: in reports. losses, cams: dotted names of functions, resolved when first called, so that
    reading this table does not load torch. weights: {term: its weight in the loss}, the terms that `losses` gives.
    seed_crf: name of the settings in tool.crf that refine the seeds. affinity: whether Step 2 follows (AffinityNet and
    random walk); without it the seeds after the CRF are the pseudo masks. experiment: Step 3's, see
    segmentation/experiment/config.py. published: {(stage, split): mIoU in %} of the papers, for the report.
    """
    name: str
    title: str
    losses: str
    weights: dict
    cams: str
    seed_crf: str
    affinity: bool
    experiment: str
    published: dict
    network: str = setting('module whose class Net is trained or run', 'train infer', kind=str)
    max_epoches: int = setting('epochs', 'train', kind=int, low=1)
    view2_size: int = setting('side of the second view in pixels', 'train', kind=int, low=8, high=16384)
    bg_threshold: float = setting('background score of the pseudo labels in the contrast, above 0, at most 1', 'train',
                                  above=0, high=1)
    temperature: float = setting('temperature of the contrast', 'train', above=0)
    prototype_fraction: float = setting(
        "pixels averaged into a prototype, as a fraction of one image's (chosen from the whole batch)", 'train',
        low=0, high=1)
    saliency_dir: str = setting('folder of the saliency maps <id>.png, 8-bit grey', 'train', kind=str)
    tau: float = setting('a class counts as salient where more than this fraction of its pixels is', 'train',
                         low=0, high=1)
    alpha: float = setting('weight of the foreground, against the background, in the explained saliency', 'train',
                           low=0, high=1)
    ecr_target: str = setting(
        "target of ECR: background and classes but the data set's first compete, or the classes alone as in SEAM",
        'train', kind=str, choices=('published', 'seam'), before='seam')
    save_layout: str = setting('layout of <session>.pth: background first (ours), or last and proj_fc for fc_proj',
                               'train', kind=str, choices=('ours', 'published'))
    map: str = setting('CAMs as the PCM revises them, or as the classifier makes them', 'infer', kind=str,
                       choices=('revised', 'plain'))
    crf_iters: int = setting('mean-field iterations of the CRF', 'infer', kind=int, low=1)
    crf_alpha: float = setting('exponent of the background score (1 - strongest class)^alpha in the CRF', 'infer',
                               above=0)

    @property
    def saliency(self):
        """Whether the baseline learns from saliency maps, which is extra supervision."""
        return self.saliency_dir is not None

    @property
    def two_views(self):
        """Whether training compares two views of each image; a recipe without a second view has the crop alone."""
        return self.view2_size is not None

    @property
    def contrast(self):
        """Whether training has the pixel-to-prototype contrast."""
        return self.bg_threshold is not None

    @property
    def terms(self):
        """The names of the terms with a weight, in the order of the table."""
        return [name for name in TERMS if self.weights.get(name)]

    @property
    def needs(self):
        """What the network must have beside the CAM head: a set of 'pcm', 'projection'."""
        return {part for name in self.terms for part in TERMS[name].needs}

    def terms_that_need(self, part):
        """The names of the terms with a weight that need 'pcm' or 'projection'."""
        return [name for name in self.terms if part in TERMS[name].needs]

    def loss_terms(self, view1, view2, target):
        """The terms with a weight of a batch, unweighted: {name: 0-dim tensor}.

        view1, view2: tool.cam.View; view2 is None for a recipe of one view. target: tool.seam.Target.
        """
        return {name: term for name, term in resolve_name(self.losses)(view1, view2, target, self).items()
                if self.weights.get(name)}

    def multi_scale_cams(self, cams_of, scaled, present, size):
        """CAMs of one image at inference; see tool.cam.multi_scale."""
        return resolve_name(self.cams)(cams_of, scaled, present, size)


SEAM = Recipe(
    name='seam', title='SEAM + PPC', losses='tool.objectives:seam', cams='tool.cam:multi_scale',
    weights={'cls': 1., 'rvmin': 1., 'er': 1., 'ecr': 1., 'cross_prototype': 0.1, 'cross_cam': 0.1, 'intra': 0.1},
    seed_crf='SEED', affinity=True, experiment='SEAM_deeplabv1_resnet38',
    # Seeds at the best threshold, before a CRF; the median of three runs (Du et al., CVPR 2022).
    published={('seeds', 'train'): 61.5},
    network='network.resnet38_contrast', max_epoches=8, view2_size=128, bg_threshold=0.20, temperature=0.1,
    prototype_fraction=1 / 8, map='revised', crf_iters=10)

CAM = dataclasses.replace(
    SEAM, name='cam', title='plain CAM', losses='tool.objectives:cam', weights={'cls': 1.}, published={},
    bg_threshold=None, temperature=None, prototype_fraction=None, map='plain')

# Published EPS trains 20,000 steps of 8 images; the last 170 come after the end of its 15-epoch schedule, at about
# 1/7000 of the learning rate, and are left out here.
EPS = Recipe(
    name='eps', title='EPS + PPC', losses='tool.objectives:eps', cams='tool.eps:multi_scale',
    weights={'cls': 1., 'saliency': 1., 'saliency_rv': 1., 'rvmin': 1., 'er': 1., 'ecr': 1.,
             'cross_prototype': 0.1, 'cross_cam': 0.1, 'intra': 0.1},
    seed_crf='EPS', affinity=False, experiment='EPS_deeplabv2_resnet101',
    published={('seeds', 'train'): 70.5},  # from the README of the published code
    network='network.resnet38_eps_contrast', max_epoches=15, view2_size=128, bg_threshold=0.10, temperature=0.1,
    prototype_fraction=1 / 16, saliency_dir='', tau=0.4, alpha=0.5, ecr_target='published', save_layout='ours',
    crf_iters=5, crf_alpha=8.)

EPS_PLAIN = dataclasses.replace(
    EPS, name='eps_plain', title='EPS', losses='tool.objectives:eps_plain', weights={'cls': 1., 'saliency': 1.},
    published={}, network='network.resnet38_eps', view2_size=None, bg_threshold=None, temperature=None,
    prototype_fraction=None, ecr_target=None)

RECIPES = {recipe.name: recipe for recipe in (SEAM, EPS, EPS_PLAIN, CAM)}
