"""The stages of the table: their names, sizes and aims. No torch here: bench.py --help names them at once."""
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import resolve_name

PYDENSECRF = 'pydensecrf.densecrf'


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    title: in the report. setup: dotted name of a function(frame.Options, **sizes) → frame.Case, resolved when called.
    sizes, quick: its sizes, and what differs with --quick. aim: published over ours, wall time, at least. memory_aim:
    ours over published, peak memory, at most. aim_text: the aim in words where it is another. limit: why the stage
    misses its aim, in words. timed: False where only memory is measured. needs: a module that the published side
    imports and that need not be installed.
    """
    name: str
    title: str
    setup: str
    sizes: dict = field(default_factory=dict)
    quick: dict = field(default_factory=dict)
    aim: float = None
    memory_aim: float = None
    aim_text: str = ''
    limit: str = ''
    timed: bool = True
    needs: str = ''

    @property
    def function(self):
        """The function that `setup` names."""
        return resolve_name(self.setup)

    @property
    def missing(self):
        """Whether the module that it needs cannot be imported."""
        try:
            return bool(self.needs) and not import_module(self.needs)
        except ImportError:
            return True


STEP_1 = (
    Stage('contrast_loss', 'losses of Step 1, forward + backward, batch 8', 'benchmarks.stages.step1:contrast_loss',
          quick={'batch': 2}, aim=8, aim_text='at first 5x'),
    Stage('training_step', 'training step, width 1/8, crop 224, batch 8', 'benchmarks.stages.step1:training_step',
          quick={'crop': 112, 'batch': 4}, aim=1.3),
    Stage('data_loading', 'loading a training image', 'benchmarks.stages.step1:data_loading', quick={'images': 5},
          aim=1.5),
    Stage('cam_inference', 'multi-scale CAMs, width 1, photo 120x160', 'benchmarks.stages.step1:cam_inference',
          {'size': (120, 160)}, {'size': (60, 80)}, aim=1.3,
          limit='On a CPU nine tenths of both sides are the same convolutions, and the floor alone is more than the '
                'aim leaves.'),
    # The PCM's affinity matrix, which decides the peak of memory, does not depend on the width.
    Stage('cam_inference_large', 'multi-scale CAMs, width 1/8, photo 375x500',
          'benchmarks.stages.step1:cam_inference', {'width': 1 / 8}, {'size': (150, 200)}, memory_aim=0.5),
    Stage('pcm', 'PCM of a photo 375x500 at scale 2', 'benchmarks.stages.step1:pcm', quick={'scale': 1},
          memory_aim=0.25),
)
STEP_2 = (
    Stage('crf', 'CRF of a seed, 375x500, 2 classes, one core', 'benchmarks.stages.step2:crf',
          quick={'size': (150, 200)}, aim=2.7, needs=PYDENSECRF),
    Stage('aff_prepare', 'aff_prepare, two alphas, 375x500', 'benchmarks.stages.step2:aff_prepare',
          quick={'size': (150, 200)}, aim=6, aim_text='disk at most 0.125', needs=PYDENSECRF),
    Stage('affinity_labels', 'affinity labels of a crop of 448', 'benchmarks.stages.step2:affinity_labels', aim=3),
    Stage('random_walk', 'random walk, 375x500', 'benchmarks.stages.step2:random_walk', quick={'size': (250, 334)},
          aim=30),
    Stage('random_walk_memory', 'random walk, 1000x1000, memory only', 'benchmarks.stages.step2:random_walk_memory',
          {'size': (1000, 1000)}, {'size': (500, 667)}, timed=False, aim_text='ours under 1 GiB, dense over 2 GiB'),
)
STEP_3 = (
    Stage('curve', 'eval.py --curve, 60 scores, 200 images of 375x500', 'benchmarks.stages.step3:curve',
          quick={'images': 20, 'size': (188, 250)}, aim=30),
    Stage('deeplab', 'DeepLab v2 multi-scale test, photo 120x160', 'benchmarks.stages.step3:deeplab',
          {'size': (120, 160)}, {'size': (60, 80)}, aim=1.2,
          limit='On a CPU nine tenths of both sides are the same convolutions.'),
    Stage('start_up', 'contrast_train.py --help', 'benchmarks.stages.step3:start_up', aim_text='under 1 s'),
)
STAGES = {stage.name: stage for stage in STEP_1 + STEP_2 + STEP_3}
