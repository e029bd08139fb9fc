"""--evaluate of the train scripts: the accuracy of a checkpoint on the test images."""
from dataset import get_dataloaders
from distiller_zoo import load_inference_net
from helper import distributed
from helper.class_metrics import class_report
from helper.device import memory_format
from helper.loops import PREDICTIONS, validate
from helper.records import show_evaluation
from models.load import open_checkpoint
from option_checkpoints import open_teacher, set_evaluation_preprocessing, warn_of_split

from .classes import describe_report


def evaluate(opt, device) -> None:
    """Print the accuracy and the metrics of the classes of the checkpoint opt.evaluate (True: the teacher opt.path_t).

    All processes call this.
    """
    if opt.evaluate is True:
        path, flag = opt.path_t, '--path-t'
        arch, checkpoint = open_teacher(opt)
    else:
        path, flag, arch = opt.evaluate, '--evaluate', None
        checkpoint = open_checkpoint(path, flag, opt.checkpoint_key)
        warn_of_split(opt, checkpoint, f'{flag} {path}')
    inputs = set_evaluation_preprocessing(opt, checkpoint, f'{flag} {path}')
    data = get_dataloaders(distributed.per_process_options(opt), device, inputs=inputs)
    name, net = load_inference_net(path, data, flag, arch, checkpoint)
    net.to(device, memory_format=memory_format(opt))
    test = validate(data.test_loader, net, source=f'{flag} {path}')
    show_evaluation(name, test)
    print(describe_report(class_report(test[PREDICTIONS], data.classes)))
