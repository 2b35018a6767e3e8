"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Printed by engine.cli.run as one line: `error: <what>: <what is wrong>; <what to do>`, exit code 2.

    what: the file or flag. wrong: what is the matter with it. do: the way out.
    """

    def __init__(self, what, wrong, do):
        # Pass all three arguments on: an exception that crosses processes is rebuilt from its args.
        super().__init__(what, wrong, do)
        self.what, self.wrong, self.do = what, wrong, do

    def __str__(self):
        return ' '.join(f'{self.what}: {self.wrong}; {self.do}'.split())
