"""The training step and CAM inference at full size under each precision: what to choose on a given GPU."""
from benchmarks import frame
from benchmarks.stages import step1

PRECISIONS = ('float32', 'float32, TF32', 'bf16', 'bf16, channels-last', 'bf16, compiled')
WORK = {'training step': step1.training_step, 'CAMs, one scale': step1.batch_of_cams}


def sweep(options, rates, width=1.0, crop=448, batches=(8, 16)):
    """[{'work', 'batch', 'precision', 'ours', 'published', 'floor': images/s, 'ours_memory', 'published_memory': bytes above weights
    and inputs}]. The published side runs in float32, with TF32 wherever ours may use it or less. nan: out of memory."""
    rows = []
    for work in WORK:
        for batch in batches:
            for precision in PRECISIONS:
                sizes = {'width': width, 'crop': crop, 'batch': batch, 'precision': precision}
                row = {'work': work, 'batch': batch, 'precision': precision}
                for side in ('ours', 'published'):
                    speed, memory, flops = frame.in_child(measure, work, side, sizes, options)
                    row |= {side: speed, f'{side}_memory': memory}
                    if side == 'ours':
                        row['floor'] = rates['flops'] / flops
                rows.append(row)
    return rows


def measure(work, side, sizes, options):
    """(images a second, peak bytes, operations an image) of one side."""
    import torch
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = sizes['precision'] != 'float32'
    case = WORK[work](options, **sizes)
    call = getattr(case, side)
    try:
        memory, _ = frame.first_call(call, options.device)
        call()  # compiled code is recompiled for the second size of view at most
        seconds = sorted(frame.timed(call, options.device)[0] for _ in range(5))[2]
    except torch.OutOfMemoryError:
        return float('nan'), float('nan'), case.flops / case.count
    return case.count / seconds, memory, case.flops / case.count
