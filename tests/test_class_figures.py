"""The metrics of each class: recall, precision, F1, confusion, ECE; against scikit-learn, in the card and on screen."""
import json
import warnings

import numpy as np
import pytest
import torch

from analysis import figures, metrics, net_figures
from analysis.classes import describe_report, mean_report, read_class_report, shown_classes, worst_classes
from export import model_card
from helper.class_metrics import class_report, predictions
from helper.errors import UserError
from helper.files import write_json
from scripts import compare

NAMES = ['cat', 'dog', 'eel', 'fly']


def by_hand():
    """Six images of cat, dog and eel: no fly, and eel is never predicted."""
    return torch.tensor([[0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 2], [.9, .9, .9, .9, .6, .6]], dtype=torch.float64)


def test_by_hand():
    report = class_report(by_hand(), NAMES)
    assert report['images'] == 6 and report['balanced_acc'] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    assert report['macro_f1'] == pytest.approx(100 * (2 / 3 + 2 / 5 + 0) / 3)
    assert report['ece'] == pytest.approx(100 * (4 / 6 * (0.9 - 3 / 4) + 2 / 6 * 0.6))
    cat, dog, eel, fly = report['classes']
    assert cat == {'name': 'cat', 'images': 3, 'recall': pytest.approx(200 / 3), 'precision': pytest.approx(200 / 3),
                   'f1': pytest.approx(200 / 3), 'predicted_as': {'cat': 2, 'dog': 1}}
    assert [*cat['predicted_as']] == ['cat', 'dog'] and dog['predicted_as'] == {'cat': 1, 'dog': 1}
    assert (eel['recall'], eel['precision'], eel['f1'], eel['predicted_as']) == (0, None, 0, {'dog': 1})
    assert fly == {'name': 'fly', 'images': 0, 'recall': None, 'precision': None, 'f1': None, 'predicted_as': {}}
    assert describe_report(report) == 'macro F1 35.56, balanced accuracy 38.89, ECE 30.00; worst classes: ' \
                                      'eel: 0.00, dog: 50.00, cat: 66.67; left out: 1 without test images'


def test_as_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
    torch.manual_seed(0)
    logits, target = 2 * torch.randn(400, 9), torch.randint(8, (400,))      # class 8 is predicted, but has no images
    target[:200] = logits[:200, :8].argmax(1)
    report = class_report(predictions(logits, target), [*'abcdefghi'])
    predicted, rows = logits.argmax(1), report['classes']
    wanted = precision_recall_fscore_support(target, predicted, labels=range(9), zero_division=np.nan)
    for key, values in zip(('precision', 'recall', 'f1', 'images'), wanted, strict=True):
        scale = 1 if key == 'images' else 100
        assert [row[key] for row in rows[:8]] == pytest.approx(scale * values[:8])
    assert (rows[8]['recall'], rows[8]['precision'], rows[8]['f1']) == (None, 0, None)
    assert report['macro_f1'] == pytest.approx(100 * f1_score(target, predicted, labels=range(8), average='macro'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # about the class without images
        assert report['balanced_acc'] == pytest.approx(100 * balanced_accuracy_score(target, predicted))
    matrix = [[row['predicted_as'].get(name, 0) for name in 'abcdefghi'] for row in rows]
    assert matrix == confusion_matrix(target, predicted, labels=range(9)).tolist()
    assert report['ece'] == pytest.approx(100 * metrics.calibration(logits, target).ece, abs=1e-4)


def test_surest_mistakes():
    logits = torch.tensor([[3.0, 0], [1, 0], [0, 2], [0, 5], [4, 0]])
    assert metrics.surest_mistakes(logits, torch.tensor([1, 1, 0, 1, 1]), 3) == [4, 0, 2]
    assert metrics.surest_mistakes(logits, torch.tensor([0, 0, 1, 1, 0]), 3) == []


def test_most_confused():
    matrix = np.array([[5, 2, 0], [3, 1, 0], [0, 0, 9]])
    assert net_figures.most_confused(matrix) == [(1, 0, 3), (0, 1, 2)]


def test_many_classes():
    """Of many classes a table has the worst, a figure the most confused pairs and the worst and best classes."""
    count = 60
    true = torch.arange(count).repeat_interleave(4)
    predicted = torch.where(torch.arange(4 * count) % 4 < 2 + (true % 3 > 0), true, (true + 1) % count)
    names = [f'class <{n}> $x$' for n in range(count)]
    report = class_report(torch.stack([predicted, true, torch.ones(4 * count)]).double(), names)
    worst = worst_classes(report['classes'])
    assert shown_classes(report['classes']) == worst and [row['name'] for row in worst] == names[:30:3]
    assert len(shown_classes(report['classes'][:30])) == 30
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (true.numpy(), predicted.numpy()), 1)
    text = figures.to_svg(net_figures.confusion({'net': matrix}, names))
    assert text.count('2 of 4: class &lt;') == 10
    recall = np.array([row['recall'] for row in report['classes']])
    text = figures.to_svg(net_figures.class_accuracy({'teacher': recall, 'student': recall}, names, [4] * count))
    assert text.count(' (4)</text>') == 40 and '20 classes between' in text


def test_figures_of_a_class_without_images():
    recall = np.array([50, np.nan, 100.0])
    text = figures.to_svg(net_figures.class_accuracy({'t': recall, 's': recall}, ['ant', 'bee', 'cat'], [2, 0, 3]))
    assert 'ant (2)' in text and 'cat (3)' in text and 'bee' not in text


def test_read_and_mean(tmp_path):
    """Names become printable, NaN null; the mean leaves out no trial; another epoch and other content are refused."""
    names = ['a\x1b[31m', '<script>', 'eel', 'fly']
    write_json(tmp_path / 'test_best_classes.json', {'epoch': 3, **class_report(by_hand(), names)})
    report = read_class_report(tmp_path, 3)
    assert [row['name'] for row in report['classes']] == ['a\\x1b[31m', '<script>', 'eel', 'fly']
    assert read_class_report(tmp_path, 2) is None and read_class_report(tmp_path / 'none', 3) is None
    other = {**report, 'macro_f1': 45.0, 'classes': [{**row, 'recall': 50.0} for row in report['classes']]}
    found = mean_report([report, other])
    assert found['macro_f1'] == pytest.approx((report['macro_f1'] + 45) / 2)
    assert [row['recall'] for row in found['classes']] == [pytest.approx(175 / 3), 50, 25, None]
    assert mean_report([report, None]) is None and mean_report([]) is None
    assert mean_report([report, {**report, 'classes': report['classes'][1:]}]) is None
    for value in ({**report, 'epoch': 3, 'ece': 101}, {'epoch': 3}, [], {**report, 'epoch': 3, 'classes': [1]}):
        write_json(tmp_path / 'test_best_classes.json', value)
        with pytest.raises((ValueError, KeyError, TypeError)):
            read_class_report(tmp_path, 3)
    (tmp_path / 'test_best_classes.json').write_text('{')
    with pytest.raises(UserError, match='test_best_classes.json: no JSON'):
        read_class_report(tmp_path, 3)


def test_in_the_model_card():
    """Hostile names are harmless in Markdown; a class without images is said."""
    report = class_report(by_hand(), ['cat', '<img src=x>|b', 'eel\n# x', 'fly'])
    text = '\n\n'.join(model_card._class_rows(json.loads(json.dumps(report))))
    assert '| macro F1 | 35.56 |\n| balanced accuracy | 38.89 |\n| ECE | 30.00 |' in text
    assert '| cat | 3 | 66.67 | 66.67 | 66.67 | &lt;img src=x&gt;/b (1) |' in text
    assert '| &lt;img src=x&gt;/b | 2 | 50.00 | 33.33 | 40.00 | cat (1) |' in text
    assert '| eel\\n# x | 1 | 0.00 | – | 0.00 |' in text and '| fly | 0 | – | – | – |  |' in text
    assert 'Means leave out the classes without test images: 1.' in text and '<' not in text


def test_in_compare():
    """The mean of the trials; nothing for experiments with a run without the figures."""
    report = {**class_report(by_hand(), NAMES), 'ece': 10.0}

    def run(method, class_report):
        return {'dataset': 'pets', 'model': 'resnet8', 'teacher': 't', 'method': method, 'properties': {},
                'experiment': {}, 'class_report': class_report}
    groups = [[run('kd', report), run('kd', {**report, 'ece': 20.0})], [run('dkd', None), run('dkd', report)]]
    head, line, *rows = compare.class_table(groups).splitlines()
    assert ' '.join(head.split()) == 'model trained macro F1 % balanced accuracy % ECE % worst classes'
    assert [' '.join(row.split()) for row in rows] == [
        'resnet8 kd 35.56 38.89 15.00 eel: 0.00, dog: 50.00, cat: 66.67']
    assert compare.class_table(groups[1:]) == ''
