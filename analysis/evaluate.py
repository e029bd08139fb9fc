"""--evaluate of the train scripts: the accuracy of a checkpoint on the test images."""
from dataset import get_dataloaders
from distiller_zoo import load_inference_net
from helper import distributed
from helper.class_metrics import class_report
from helper.cli import as_list, word_list
from helper.device import memory_format
from helper.loops import PREDICTIONS, validate
from helper.records import show_evaluation
from models.ensemble import as_teacher
from models.load import open_checkpoint
from option_checkpoints import open_teacher, set_evaluation_preprocessing, warn_of_split

from .classes import describe_report


def evaluate(opt, device) -> None:
    """Print the accuracy and the metrics of the classes of the checkpoint opt.evaluate (True: the teacher opt.path_t).

    Of several teachers the accuracy of each, and the metrics of their ensemble. All processes call this.
    """
    if opt.evaluate is True:
        paths, flag = as_list(opt.path_t), '--path-t'
        names, checkpoints = map(as_list, open_teacher(opt))
    else:
        paths, flag, names = [opt.evaluate], '--evaluate', [None]
        checkpoints = [open_checkpoint(opt.evaluate, flag, opt.checkpoint_key)]
        warn_of_split(opt, checkpoints[0], f'{flag} {opt.evaluate}')
    inputs = set_evaluation_preprocessing(opt, checkpoints[0], f'{flag} {paths[0]}')
    data = get_dataloaders(distributed.per_process_options(opt), device, inputs=inputs)
    nets = [(*load_inference_net(path, data, flag, name, checkpoint), f'{flag} {path}')
            for path, name, checkpoint in zip(paths, names, checkpoints, strict=True)]
    if len(nets) > 1:
        nets.append(('ensemble', as_teacher(opt, [net for _, net, _ in nets]), f'{flag} {word_list(paths)}'))
    for name, net, source in nets:
        net.to(device, memory_format=memory_format(opt))
        test = validate(data.test_loader, net, source=source)
        show_evaluation(name, test)
    print(describe_report(class_report(test[PREDICTIONS], data.classes)))
