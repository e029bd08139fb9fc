"""The studies of Optuna behind a search: their file, the values of the next trial, and the early end of hopeless ones.

All functions get the trials as an argument or read them from the file, so that a search continues from the file alone.
"""
import contextlib
import copy
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from helper.errors import UserError, import_optional, reason
from helper.files import locked

from .space import METHOD, ranges_of
from .table_file import Row

STARTUP = 6         # trials of a row with random values before TPE proposes values
FEWEST = 4          # complete trials of a row before any is ended early
ATTEMPTS = 20       # to draw values that no earlier trial of the row has
RETRY_OF = 'retry of'       # attribute of a trial: the number of the failed one that it repeats
IMPORTANCE = 'PED-ANOVA, Watanabe et al., IJCAI 2023'
FEWEST_FOR_IMPORTANCE = 10  # complete trials of a row before it has importances
HOPELESS = 'hopeless'       # attribute of a trial: the epoch after which it ended early


def optuna():
    """Return the module. Raises UserError if it is not installed."""
    module = import_optional('optuna', 'tune.py')
    module.logging.set_verbosity(module.logging.ERROR)
    return module


def open_storage(path: Path):
    """Return the storage in a file, which is made if it is missing. Raises UserError for a damaged one."""
    journal = optuna().storages.journal
    try:
        with locked(path):
            _cut_unfinished_line(path)
        storage = optuna().storages.JournalStorage(journal.JournalFileBackend(str(path), _Lock(path)))
        for line in path.read_bytes().splitlines()[-1:]:
            json.loads(line)        # Optuna accepts a damaged last line until another one follows
        return storage
    except OSError as error:
        raise UserError(f'{path}: cannot be opened ({error.strerror}); give another --save_dir') from error
    except Exception as error:      # of many kinds
        raise UserError(f'{path}: no study that can be read ({reason(error)}); move it away, and the search begins '
                        f'again; finished runs are kept') from error


class _Lock:
    """A lock of Optuna that ends with its process; Optuna's own stays behind if the process is killed."""

    def __init__(self, path: Path):
        self.path, self.stack = path, contextlib.ExitStack()

    def acquire(self) -> bool:
        self.stack.enter_context(locked(self.path))
        return True

    def release(self) -> None:
        self.stack.close()


def _cut_unfinished_line(path):
    """Remove a last line that a killed process has not finished: Optuna could not read the file any more.

    Raises ValueError for a file that is no journal of Optuna.
    """
    content = path.read_bytes() if path.exists() else b''
    *lines, last = content.split(b'\n')
    for line in lines[:1] + lines[-1:]:
        json.loads(line)['op_code']
    if last and not lines and not last.startswith(b'{"op_code"'):
        raise ValueError('Optuna has not written it')
    if last:
        os.truncate(path, len(content) - len(last))


def open_study(storage, name: str, is_new: bool):
    """Return the study of this name, which is made if it is new."""
    if not is_new:
        return optuna().load_study(storage=storage, study_name=name)        # writes nothing
    return optuna().create_study(storage=storage, study_name=name, direction='maximize', load_if_exists=True)


def next_values(row: Row, trials: list, published: list[dict], seed_text: str) -> dict:
    """Return range name -> value for the trial of a row after `trials` of Optuna.

    The first trials have published values as far as the ranges contain them, one for each method of the row; TPE draws
    all others. The values depend only on the arguments; seed_text: what the seed is computed from. Values that an
    earlier trial has are avoided if possible.
    """
    tried = [trial.params for trial in trials]
    given = published[len(trials)] if len(trials) < len(published) else {}
    for attempt in range(ATTEMPTS):
        values = _draw(row, trials, given, f'{seed_text}, trial {len(trials)}, attempt {attempt}')
        if values not in tried:
            return values
    # TPE prefers a method without untried values: take another one.
    if untried := next((values for values in _combinations(row) if values not in tried), None):
        return untried
    with_numbers = [method for method in row.methods if _count(method, row) == math.inf]
    if not with_numbers:
        return values
    given = {METHOD: with_numbers[len(trials) % len(with_numbers)]} if len(row.methods) > 1 else {}
    return _draw(row, trials, given, f'{seed_text}, trial {len(trials)}')


def _draw(row, trials, given, seed_text):
    """Draw values by TPE, in a study in memory with copies of the trials; those of `given` replace the drawn ones."""
    states = optuna().trial.TrialState
    seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:4], 'little')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', optuna().exceptions.ExperimentalWarning)        # of `group`
        sampler = optuna().samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=True, group=len(row.methods) > 1,
            constant_liar=any(trial.state == states.RUNNING for trial in trials))
    study = optuna().create_study(direction='maximize', sampler=sampler)
    study.add_trials([trial for trial in trials if trial.state != states.FAIL])
    drawn, values = study.ask(), {}
    for part in row.ranges:
        if part.name == METHOD or part in ranges_of(values.get(METHOD, row.method), row.ranges):
            value = _suggest(drawn, part)
            values[part.name] = part.rounded(given.get(part.name, value))
    return values


def _suggest(drawn, part):
    if part.choices:
        return drawn.suggest_categorical(part.name, part.choices)
    suggest = drawn.suggest_int if part.is_whole else drawn.suggest_float
    return suggest(part.name, part.low, part.high, log=part.is_log)


def _distribution(part):
    kinds = optuna().distributions
    if part.choices:
        return kinds.CategoricalDistribution(part.choices)
    kind = kinds.IntDistribution if part.is_whole else kinds.FloatDistribution
    return kind(part.low, part.high, log=part.is_log)


def _combinations(row) -> Iterator[dict]:
    """All values of the methods of a row that have no range of real numbers, in order."""
    for method in [method for method in row.methods if _count(method, row) < math.inf]:
        parts = ranges_of(method, row.ranges)
        names = [*([METHOD] if len(row.methods) > 1 else []), *(part.name for part in parts)]
        each = [part.choices or range(part.low, part.high + 1) for part in parts]
        for values in itertools.product(*([[method]] if len(row.methods) > 1 else []), *each):
            yield dict(zip(names, values, strict=True))


def count(row: Row) -> float:
    """Return the number of different trials of a row; infinite with a range of real numbers."""
    return sum(_count(method, row) for method in row.methods)


def _count(method, row):
    return math.prod(part.count for part in ranges_of(method, row.ranges))


def add_trial(study, row: Row, values: dict, retry_of: int | None = None):
    """Add a running trial in one write, so that no trial has a part of its values. Returns it.

    retry_of: the number of the failed trial that it repeats.
    """
    trial = optuna().trial
    distributions = {part.name: _distribution(part) for part in row.ranges if part.name in values}
    study.add_trial(trial.create_trial(state=trial.TrialState.RUNNING, params=values, distributions=distributions,
                                       user_attrs={} if retry_of is None else {RETRY_OF: retry_of}))
    return study.trials[-1]


def retried(trials: list) -> set[int]:
    """Return the numbers of the failed trials that another trial repeats."""
    return {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}


def _trial_id(storage, study, number):
    """Return the identity of a trial in the storage."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study.study_name), number)


def report(storage, study, trial, curve: list[float], warmup: int | None) -> bool:
    """Add the epochs of a running trial to its study. Returns whether the trial is hopeless.

    It writes into the storage, since an optuna.trial.Trial would draw values. curve: the accuracies of its epochs so
    far. warmup: the epochs in which no trial is hopeless; None: all. A trial is hopeless when its best accuracy up to
    an epoch is below the median of those of the complete trials up to that epoch. Each epoch is judged once, in order,
    whenever the function is called: later epochs do not count.
    """
    trial = copy.deepcopy(trial)
    pruner = optuna().pruners.NopPruner() if warmup is None else \
        optuna().pruners.MedianPruner(n_startup_trials=FEWEST, n_warmup_steps=warmup + 1)
    trial_id = _trial_id(storage, study, trial.number)
    if HOPELESS in trial.user_attrs:
        curve = curve[:trial.user_attrs[HOPELESS]]
    for epoch in range(len(trial.intermediate_values) + 1, len(curve) + 1):
        best = trial.intermediate_values[epoch] = max(curve[:epoch])
        if HOPELESS not in trial.user_attrs and pruner.prune(study, trial):
            storage.set_trial_user_attr(trial_id, HOPELESS, epoch)      # before the epoch counts as judged
            trial.user_attrs[HOPELESS] = epoch
        storage.set_trial_intermediate_value(trial_id, epoch, best)
        if trial.user_attrs.get(HOPELESS) == epoch:
            break
    return HOPELESS in trial.user_attrs


def end(storage, study, number: int, state: str, accuracy: float | None, attributes: dict) -> None:
    """End a running trial. state: a name of optuna.trial.TrialState; accuracy: of a complete trial."""
    for name, value in attributes.items():
        storage.set_trial_user_attr(_trial_id(storage, study, number), name, value)
    study.tell(number, accuracy, state=optuna().trial.TrialState[state])


def importances(study) -> dict[str, float]:
    """Return range name -> its share in reaching the better half of the complete trials, the largest first.

    Empty for fewer than two ranges that all trials have, or fewer than FEWEST_FOR_IMPORTANCE complete trials.
    """
    done = [trial for trial in study.trials if trial.state.name == 'COMPLETE']
    names = set.intersection(*({*trial.params} for trial in done)) if done else set()
    if len(names) < 2 or len(done) < FEWEST_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', optuna().exceptions.ExperimentalWarning)
        evaluator = optuna().importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
        return optuna().importance.get_param_importances(study, evaluator=evaluator, params=sorted(names))
