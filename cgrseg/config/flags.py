"""Flags and exit status of `run_cgrseg.py` and of the scripts in `tools/`.

Messages have the four parts of :class:`~cgrseg.errors.CGRSegError` and suggest the flag or setting
with the same meaning.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from cgrseg.config.suggestions import unknown_option
from cgrseg.console import plain_warnings, report_problem
from cgrseg.errors import EXIT_PROBLEM, CGRSegError, ConfigError, FrontEnd, speaking_as
from cgrseg.processes import Terminated, ending_by_signals, is_first_process
from cgrseg.surroundings import readable_machine_problems

_SETTING = re.compile(r"[A-Za-z_][\w.]*=")

REPLACED = {
    "--eval-options": "metrics have no options: --format-only --out FOLDER writes the label files "
    "of a submission",
    "--show": "there is no window: --show-dir FOLDER writes the overlays",
    "--wait-time": "there is no window: --show-dir FOLDER writes the overlays",
}
"""Flags of mmsegmentation that no script has, to what to use in `tools/test.py`."""
_OF_TEST = "leave it out: mmsegmentation has it in tools/test.py only, which measures and draws"

_NOTES = {
    "options": "--options is --cfg-options here",
    "amp": "--amp is train.precision=auto here: bf16 where the device computes it in hardware, "
    "else fp32",
    "gpu_ids": "--gpu-ids is --gpu-id here: one process uses one GPU, the first of the list",
    "gpus": "--gpus has no effect: one process uses one GPU",
    "diff_seed": "--diff-seed has no effect: each process draws its own images and augmentation",
    "gpu_collect": "--gpu-collect has no effect: processes exchange the counts of the metrics only",
    "tmpdir": "--tmpdir has no effect: processes exchange the counts of the metrics only",
}
"""Accepted flags of mmsegmentation, by attribute, to the note that is printed."""
_USAGE_STATUS = 2


class FlagParser(argparse.ArgumentParser):
    """Argument parser with readable messages; wrong usage ends the script with status 2.

    Args:
        settings_flags: setting to the flag that sets it, e.g. `optimizer.lr` to `--lr`.
        takes_settings: whether `KEY=VALUE` may follow, or come after `--cfg-options`.
        **options: arguments of :class:`argparse.ArgumentParser`.
    """

    def __init__(
        self,
        *,
        settings_flags: Mapping[str, str] | None = None,
        takes_settings: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._settings_flags = dict(settings_flags or {})
        self._takes_settings = takes_settings

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the flags that exist; argparse would take `--show` for `--show-dir`."""
        for word in sys.argv[1:] if args is None else args:
            name = word.partition("=")[0]
            if name in REPLACED:
                named = set(re.findall(r"--[a-z][a-z-]+", REPLACED[name]))
                wrong = ConfigError(
                    name,
                    found="there is no such option",
                    expected=", ".join(sorted(self.flags())),
                    remedy=REPLACED[name] if named <= set(self.flags()) else _OF_TEST,
                )
                report_problem(wrong)
                raise SystemExit(_USAGE_STATUS)
        return super().parse_known_args(args, namespace)

    def parse_with_settings(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse flags; `KEY=VALUE` anywhere has the effect of `--cfg-options KEY=VALUE`."""
        found, rest = self.parse_known_args(argv)
        settings = [word for word in rest if _SETTING.match(word)]
        unknown = [word for word in rest if word not in settings]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for name, note in _NOTES.items():
            value = getattr(found, name, None)
            if value is not None and value is not False and is_first_process():
                print(f"note: {note}", file=sys.stderr, flush=True)
        found.cfg_options = [*found.cfg_options, *(found.options or ()), *settings]
        return found

    def add_flags_of_mmsegmentation(self, *flags: str) -> None:
        """Accept flags that are hidden in the help; `--local_rank` and `--options` always."""
        self.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
        self.add_argument("--options", nargs="+", metavar="KEY=VALUE", help=argparse.SUPPRESS)
        kinds: dict[str, dict[str, Any]] = {
            "--gpus": {"type": int},
            "--gpu-ids": {"type": int, "nargs": "+"},
            "--tmpdir": {},
        }
        for flag in flags:
            names = [flag, *([flag.replace("_", "-")] if "_" in flag else [])]
            options = kinds.get(flag, {"action": "store_true"})
            self.add_argument(*names, help=argparse.SUPPRESS, **options)

    def flags(self) -> list[str]:
        """All long flags that the help shows."""
        return [
            name
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
            if name.startswith("--")
        ]

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end with status 2."""
        report_problem(self._problem(message))
        raise SystemExit(_USAGE_STATUS)

    def _problem(self, message: str) -> CGRSegError:
        help_command = f"{self.prog} --help"
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown is not None and unknown[1].startswith("-"):
            name = unknown[1].partition("=")[0]
            return unknown_option(name, self.flags(), help_command, self._spell())
        wrong = re.match(r"argument (\S+?):? (.*)", message, re.DOTALL)
        where = self.prog if wrong is None else wrong[1].split("/")[0].rstrip(":")
        action = next((a for a in self._actions if where in (*a.option_strings, a.dest)), None)
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        return ConfigError(
            where,
            found=message if wrong is None else wrong[2],
            expected=usage if action is None else _expected(action) or usage,
            remedy=f"correct it; {help_command} lists the flags",
        )

    def _spell(self) -> Callable[[str], str] | None:
        if not self._takes_settings:
            return None

        def spell(setting: str) -> str:
            flag = self._settings_flags.get(setting)
            return f"{flag} VALUE" if flag is not None else f"{setting}=VALUE, without dashes"

        return spell


def _expected(action: argparse.Action) -> str | None:
    """Help of a flag; of a hidden one, the form of its value."""
    if action.help != argparse.SUPPRESS:
        return action.help
    kind = {int: "an integer"}.get(action.type)  # type: ignore[call-overload]
    return None if action.nargs == 0 else str(action.metavar or kind or "a value")


def run_script(work: Callable[[], int]) -> int:
    """Run the work of a script and return its exit status; print problems, raise bugs only."""
    with plain_warnings(), speaking_as(FrontEnd.SCRIPT):
        try:
            with ending_by_signals(), readable_machine_problems():
                return work()
        except CGRSegError as error:
            report_problem(error)
            return EXIT_PROBLEM
        except Terminated as end:
            return int(str(end.code))
