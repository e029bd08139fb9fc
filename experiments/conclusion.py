"""The conclusion of a report: which method is best, whether the published figures are reproduced, what to doubt."""
import time
from collections import Counter
from dataclasses import dataclass, field

from analysis.runs import ACCURACY_KEYS
from analysis.statistics import CLEAR, beyond_by_chance, sampling_sigma, signed
from helper.cli import readable_hours
from helper.errors import counted, listed

from .results import TableResults
from .table_file import ALONE

MOST_NAMES = 4          # names in a list of a sentence
CHANCE_MARGIN = 0.1     # a teacher below this part of the way from chance to 100 % is barely better than chance


@dataclass
class Conclusion:
    """The first lines of a report."""

    sentences: list[str]                                    # the results, the most important one first; without a dot
    details: list[str]                                      # data set, epochs, trials, dates, time
    warnings: list[str] = field(default_factory=list)       # whole sentences

    @property
    def lines(self) -> list[str]:
        """The sentences and the details as one line, and a line for each warning."""
        return [f'{"; ".join(self.sentences)}. {", ".join(self.details)}.', *self.warnings]


def conclude(results: TableResults, epoch: str) -> Conclusion:
    """Return the conclusion of a table so far. epoch: of the accuracies, 'best' or 'last'."""
    parts = (_best, _headline, _published, _one_trial)
    sentences = [sentence for part in parts if (sentence := part(results, epoch))]
    return Conclusion(sentences, _details(results), _warnings(results, epoch))


def _gain_text(results, row, over, epoch):
    """Return '+1.4 points over KD'; with a remark if it is not clear."""
    mean_gain = results.mean_gain(row, over, epoch)
    if not mean_gain:
        return ''
    gain, _ = mean_gain
    name = 'the student alone' if over.method == ALONE else over.label
    return f'{signed(gain.value, 1)} points over {name}{gain.remark}'


def _leaders(results, epoch):
    """Return (pairs with at least two methods, row label -> number of pairs in which it is best, the best rows).

    Of these rows, the one with the highest gain over KD, or over the student alone, is first.
    """
    pairs = [pair for pair in results.table.pairs if len(results.pair_cells(pair)) > 1]
    wins = Counter(best.row.label for pair in pairs if (best := results.best(pair, epoch)))
    base = results.first_row('kd') or results.first_row(ALONE)

    def gain(row):
        mean_gain = results.mean_gain(row, base, epoch)
        return mean_gain[0].value if mean_gain else 0

    leaders = [row for row in results.table.rows if wins and wins[row.label] == max(wins.values())]
    return pairs, wins, sorted(leaders, key=gain, reverse=True)


def _best(results, epoch):
    """Return which method is best, with its gains."""
    pairs, wins, leaders = _leaders(results, epoch)
    if not pairs:
        return 'no two methods have finished runs for the same pair, so nothing is compared yet'
    if not leaders:
        return 'no method is best alone in any pair'
    row, has_deviations = leaders[0], _has_deviations(results)
    gains = [text for method in ('kd', ALONE)
             if (text := _gain_text(results, row, results.first_row(method), epoch))]
    if len(pairs) == 1:
        accuracy = results.cell(row, pairs[0]).mean(epoch)
        near = [cell.row.label for cell in results.near_best(pairs[0], epoch)] if has_deviations else []
        doubt = f'; within {CLEAR} σ of it: {listed(near, MOST_NAMES)}' if near else ''
        verb = 'best' if has_deviations and not near else 'highest'     # of one pair, best is only what is clearly so
        return f'{row.label} is {verb}: ' + ', '.join([f'{accuracy:.1f} %', *gains]) + doubt
    mean_gains = f'{" and ".join(gains)} on average' if gains else ''
    count = f'{wins[row.label]} of {len(pairs)} pairs'
    if len(leaders) > 1:
        return f'{listed([row.label for row in leaders], MOST_NAMES)} are each best in {count}' + (
            f', {row.label} {mean_gains}' if gains else '')
    clear = sum(best.row is row and not results.near_best(best.pair, epoch) for pair in pairs
                if (best := results.best(pair, epoch)))
    doubt = f' (by more than {CLEAR} σ in {clear})' if has_deviations else ''
    return f'{row.label} is best in {count}{doubt}' + (f', {mean_gains}' if gains else '')


def _has_deviations(results):
    return any(len(cell.results) > 1 for cell in results.cells.values())


def _headline(results, epoch):
    """Return how the table's last method stands, if it is not among the best."""
    row, (pairs, wins, leaders) = results.headline_row, _leaders(results, epoch)
    mean_gain = results.mean_gain(row, leaders[0], epoch) if row and leaders and row not in leaders else None
    if not mean_gain:
        return ''
    gain, _ = mean_gain
    side = f'{abs(gain.value):.1f} points {"below" if gain.value < 0 else "above"} {leaders[0].label}{gain.remark}'
    return f'{row.label} is ' + (
        side if len(pairs) == 1 else f'best in {wins[row.label]} of {len(pairs)} pairs, and on average {side}')


def _published(results, epoch):
    """Return how many cells agree with the published figures."""
    cells = [cell for cell in results.cells.values() if cell.published and cell.results]
    if not cells:
        return ''
    differences = [difference for cell in cells if (difference := cell.difference(epoch))]
    tested = [difference for difference in differences if difference.sigma]
    sources = listed(list(dict.fromkeys(cell.published.source for cell in cells)), MOST_NAMES)
    if not differences:
        return f'the published figures ({sources}) are of the other epoch, so none is compared'
    if not tested:
        average = sum(difference.value for difference in differences) / len(differences)
        return (f'the mean difference from the published figures ({sources}) is {signed(average, 1)} points, without a '
                f'deviation to test it')
    higher = sum(difference.is_clear and difference.value > 0 for difference in tested)
    lower = sum(difference.is_clear and difference.value < 0 for difference in tested)
    outside = ', '.join(f'{number} {"are" if number > 1 else "is"} {side}'
                        for number, side in ((higher, 'higher'), (lower, 'lower')) if number)
    by_chance = beyond_by_chance(len(results.table.seeds))
    usual = f' (about {len(tested) * (1 - by_chance):.0f} if all are equal)' if by_chance else ''
    return (f'{len(tested) - higher - lower} of {len(tested)} cells{usual} are within {CLEAR} σ of the published '
            f'figures ({sources})' + (f', {outside}' if outside else ''))


def _one_trial(results, epoch):
    """Return a sentence if no cell has a deviation, with the smallest difference that the number of images shows."""
    cells = [cell for cell in results.cells.values() if cell.results]
    if not cells or _has_deviations(results):
        return ''
    best = max(cells, key=lambda cell: cell.mean(epoch))
    report = best.results[0]['class_report']
    if not report:
        return 'one trial: no deviation, so no conclusion on differences between methods'
    least = CLEAR * sampling_sigma(best.mean(epoch), report['images'])
    return (f'one trial: no deviation, so no conclusion on differences under {least:.1f} points ({CLEAR} σ of two nets '
            f'on {report["images"]:,} test images)')


def _details(results):
    trials = [trial for trial in results.trials() if trial.result]
    students = [trial for trial in trials if trial.run.cells]
    options = [trial.run.opt for cell in results.cells.values() for trial in cell.trials]
    images = sorted({trial.result['properties']['training images'] for trial in students
                     if 'training images' in trial.result['properties']})
    data = ' and '.join(dict.fromkeys(trial.result['dataset'] for trial in trials)) or \
        ' and '.join(dict.fromkeys(opt.dataset for opt in options))
    epochs = ' or '.join(map(str, sorted({opt.epochs for opt in options})))
    return [data + (f' with {" or ".join(f"{number:,}" for number in images)} training images' if images else ''),
            '1 epoch' if epochs == '1' else f'{epochs} epochs', counted(len(results.table.seeds), 'trial'),
            *_dates(trials), f'{readable_hours(results.seconds / 3600)} of training']


def _dates(trials):
    """Return ['2026-11-20 to 2026-11-29'], the first start and last end of finished runs; [] if not recorded."""
    ends = [(ended, trial.result['seconds']) for trial in trials
            if isinstance(ended := trial.record.read().get('ended'), (int, float))]
    if not ends:
        return []
    days = [time.strftime('%Y-%m-%d', time.localtime(moment))
            for moment in (min(ended - seconds for ended, seconds in ends), max(ended for ended, _ in ends))]
    return [' to '.join(dict.fromkeys(days))]


def _warnings(results, epoch):
    warnings = []
    trials = results.trials()
    failed = sum(trial.has_failed for trial in trials)
    missing = sum(trial.result is None for trial in trials) - failed
    if failed or missing:
        warnings.append(f'Of {len(trials)} runs {failed} failed and {missing} {"are" if missing != 1 else "is"} not '
                        f'finished; all figures are of the finished ones.')
    for trial in results.teachers:
        if trial.result and (chance := chance_of(trial.result)):
            accuracy = trial.result[ACCURACY_KEYS[epoch]]
            if accuracy - chance < CHANCE_MARGIN * (100 - chance):
                warnings.append(f'The {trial.run.short_label} is barely better than chance: top-1 {accuracy:.1f} %, '
                                f'chance {chance:.1f} %. Its students learn little from it.')
    for pair in results.table.pairs:
        row, teacher = results.first_row(ALONE), results.teacher(pair, epoch)
        alone = row and results.cell(row, pair)
        if alone and alone.results and teacher is not None and teacher < alone.mean(epoch):
            warnings.append(f'{pair}: the teacher ({teacher:.1f} %) is worse than the student alone '
                            f'({alone.mean(epoch):.1f} %).')
    return warnings


def chance_of(result: dict) -> float | None:
    """Return the top-1 in percent of a net that always predicts the most frequent class; None if it is unknown."""
    report, classes = result['class_report'], result['properties'].get('classes')
    if report and report['images']:
        return max(row['images'] for row in report['classes']) / report['images'] * 100
    return 100 / classes if isinstance(classes, int) and classes > 0 else None
