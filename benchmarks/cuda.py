"""The training step and CAM inference at full size under each precision: what to choose on a given GPU."""
import torch

from benchmarks import frame
from benchmarks.stages import step1

PRECISIONS = ('float32', 'float32, TF32', 'bf16', 'bf16, channels-last', 'bf16, compiled')
WORK = {'training step': step1.training_step, 'CAMs, one scale': step1.batch_of_cams}


def sweep(options, rates, width=1.0, crop=448, batches=(8, 16), precisions=PRECISIONS):
    """Rows {'work', 'batch', 'precision', 'ours', 'published', 'floor', 'ours_memory', 'published_memory'}.

    Speeds in images/s, memory in bytes above weights and inputs, nan where it did not suffice. The published side runs
    in float32; where ours has TF32 or fewer bits, it has TF32.
    """
    rows = []
    for work in WORK:
        operations = frame.in_child(count, work, {'width': width, 'crop': crop, 'batch': 1}, options)
        for batch in batches:
            for precision in precisions:
                sizes = {'width': width, 'crop': crop, 'batch': batch, 'precision': precision}
                row = {'work': work, 'batch': batch, 'precision': precision, 'floor': rates['flops'] / operations}
                for side in ('ours', 'published'):
                    row[side], row[f'{side}_memory'] = frame.in_child(measure, work, side, sizes, options)
                rows.append(row)
    return rows


def count(work, sizes, options):
    """Operations of one image."""
    return WORK[work](options, **sizes).flops()


def measure(work, side, sizes, options):
    """(images a second, peak bytes) of one side."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = sizes['precision'] != 'float32'
    case = WORK[work](options, **sizes)
    call = getattr(case, side)
    try:
        memory, _ = frame.first_call(call, options.device)
        call()  # whatever is still compiled or tuned at a second call
        seconds = sorted(frame.timed(call, options.device)[0] for _ in range(5))[2]
    except torch.OutOfMemoryError:
        return float('nan'), float('nan')
    return case.count / seconds, memory
