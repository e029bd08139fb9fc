"""Train the runs of a table and write its report."""
from collections.abc import Callable
from pathlib import Path

from helper.cli import show
from helper.errors import UserError
from helper.files import FolderLock, make_folder

from . import report, report_text
from .folder_check import check_data, note_owner
from .planned_run import PlannedRun
from .progress import Progress, Record, failures
from .table_file import Table


def make_folders(save: Path) -> None:
    """Make the folder of a table or a search, and the folder of its logs. Raises UserError."""
    for folder in (save, save / 'logs'):
        make_folder(folder, f'--save_dir {save}')


def run_table(table: Table, runs: list[PlannedRun], save: Path,
              train: Callable[[list[PlannedRun]], dict[PlannedRun, Progress]], extra_args: list[str],
              retry: bool = False, is_final: bool = False) -> dict[PlannedRun, Progress]:
    """Train the runs that folder_check.check accepts, and print and write the report. Returns the progress.

    extra_args: the flags of every run. retry: also run again what has failed. is_final: the table ends a search, which
    prints the results itself: wait for another process that is at work there, else raise UserError.
    """
    make_folders(save)
    lock = FolderLock(save, shared=True)      # with report.py
    if is_final:
        lock.wait()
    elif not lock.take():
        raise UserError(f'--save_dir {save}: another reproduce.py is at work there; --status shows its progress')
    try:
        note_owner(table, save, extra_args)
        if retry:
            for record in (Record(save / 'logs', run) for run in runs):
                if record.has_failed():
                    record.path.unlink()
        progress = train(runs)
        print(failures(progress, save / 'logs'), end='')
        results = report.write(table, save, progress)
        if not is_final:
            show(report_text.plain(results))
            print(f'report: {save}/report.html')
        check_data(runs)
    finally:
        lock.release()
    return progress
