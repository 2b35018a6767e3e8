"""--baseline: SEAM and EPS by a flag of the same scripts. Beside losses, they differ in a table of defaults. No torch.

A table is {flag: (default for SEAM, for EPS, for EPS without contrast)}: None where a flag does not belong to one of
them, '' where it must be given.
"""
from tool import cli

BASELINES = ('seam', 'eps')
PLAIN = 'network.resnet38_eps'  # EPS as it was before contrast: neither PCM nor projection


class Parser(cli.ArgumentParser):
    """A parser with --baseline and --background_last. With --baseline eps, flags not given have EPS's defaults."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table
        changed = ', '.join(f'--{flag} {eps:.4g}' if isinstance(eps, float) else f'--{flag} {eps}'
                            for flag, (seam, eps, _) in table.items() if None not in (seam, eps) and eps != seam)
        self.add_argument('--baseline', choices=BASELINES, default='seam',
                          help=f'what the contrast is added to; with eps the defaults are {changed}')
        cli.add_switch(self, '--background_last', '--weights are of published EPS without contrast, where background '
                                                  'is the last channel (its files with contrast are recognised)')

    def parse_known_args(self, args=None, namespace=None):
        chosen, _ = super().parse_known_args(args)
        self.set_defaults(**{flag: defaults[_column(chosen)] for flag, defaults in self.table.items()})
        return super().parse_known_args(args, namespace)


def _column(args):
    return 0 if args.baseline == 'seam' else 2 if args.network == PLAIN else 1


def check(args, table):
    """UserError where a flag is given that the baseline or its network has no use for, or one is missing that it needs.

    A weight (--w_...) of 0 may always be given.
    """
    if args.baseline == 'seam' and args.network == PLAIN:
        raise cli.UserError('--network', f'{PLAIN} has no revised CAM, which SEAM needs', 'add --baseline eps')
    for flag, defaults in table.items():
        default, value = defaults[_column(args)], getattr(args, flag)
        if default == value == '':
            raise cli.UserError(f'--{flag}', f'is missing, --baseline {args.baseline} needs it', 'give it')
        if default is None and value is not None and not (flag.startswith('w_') and value == 0):
            if defaults[1] is not None and args.network == PLAIN:
                raise cli.UserError(f'--{flag}', f'{PLAIN} has neither PCM nor projection', 'leave it out, or give 0')
            way_out = 'leave it out, or add --baseline eps' if args.baseline == 'seam' else 'leave it out'
            raise cli.UserError(f'--{flag}', f'--baseline {args.baseline} does not use it', way_out)
