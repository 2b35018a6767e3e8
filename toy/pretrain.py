"""Make the small backbone that the demo starts from: the stand-in for ImageNet weights.

    python toy/pretrain.py --out toy/backbone.pth

Reads:  nothing but the graphics of the toy VOC (toy/make.py), from which it draws its own images.
Writes: <out>, the state dict of a ResNet-38 (network/resnet38d.py) of width 1/8 in float16, BatchNorm statistics
        included; rewritten every --save_every steps.

Two stages, both with one cycle of the learning rate and trainable BatchNorm. Stage 1 classifies close views of single
things (all classes and distractors); the network has strides where stage 2 dilates, which makes stage 1 cheap. Stage 2
trains the dilated network on scenes with image-level labels only. No toy set should use the seed of these scenes. At
the end the plain CAMs of stage 2's head are scored on the toy set. Both stages take about half an hour on two cores in
bfloat16 arithmetic.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, whatever the working directory

from engine import cli, files


def get_args_parser():
    parser = cli.ArgumentParser(description='Pretrain the small backbone of the demo.')
    parser.add_argument('--out', default=str(files.REPO / 'toy' / 'backbone.pth'), help='weights file to write')
    parser.add_argument('--crops', type=cli.positive, default=24000, help='close views to draw for stage 1')
    parser.add_argument('--crop_steps', type=cli.positive, default=2400, help='steps of stage 1, of 64 images')
    parser.add_argument('--crop_weights',
                        help='begin with stage 2, from these weights (of an interrupted run: its --out)')
    parser.add_argument('--scenes', type=cli.positive, default=10000, help='scenes to draw for stage 2')
    parser.add_argument('--scene_steps', type=cli.positive, default=4500, help='steps of stage 2, of 16 images')
    parser.add_argument('--save_every', type=cli.positive, default=500, help='steps between saving and log lines')
    parser.add_argument('--check_images', type=cli.positive, default=200,
                        help='toy images on which each saved state is scored; three times as many at the end')
    parser.add_argument('--seed', type=cli.seed, default=20220624,
                        help='seed; keep it apart from the seeds of toy sets, or their images are trained on')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    import torch

    from toy import pretraining

    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # count numbers under 1e-38 as 0: a CPU is a hundred times slower with them
    files.out_dir(Path(args.out).parent, '--out')
    pretraining.pretrain(args)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
